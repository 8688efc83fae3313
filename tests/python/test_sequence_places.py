"""Sequences of every shape under attention on the CPU, from numpy and from torch."""

from place import Place
from sequence_scenarios import SequenceScenarios


class TestFloat32(SequenceScenarios):
    place = Place()


class TestTorchFloat16(SequenceScenarios):
    place = Place("float16", with_torch=True, head_dim=64)


class TestTorchBFloat16(SequenceScenarios):
    place = Place("bfloat16", with_torch=True, kv_layout="HND", head_dim=128)
