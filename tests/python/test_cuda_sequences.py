"""Sequences of every shape on a CUDA device, from torch: the scenarios and the random calls of the CPU."""

from cuda_support import DEVICE
from place import Place
from random_engine import EVENTS, make_random_calls
from sequence_scenarios import SequenceScenarios

HALF = Place("float16", DEVICE, with_torch=True, head_dim=64)
BFLOAT = Place("bfloat16", DEVICE, with_torch=True, kv_layout="HND", head_dim=128)


class TestFloat16(SequenceScenarios):
    place = HALF


class TestBFloat16(SequenceScenarios):
    place = BFLOAT


class TestFloat16OfHeadDim256(SequenceScenarios):
    place = Place("float16", DEVICE, with_torch=True, kv_layout="HND", head_dim=256)


def test_random_calls_leave_every_sequence_with_its_tokens(rng):
    events = [event for event in EVENTS if event[1] == "done"]
    counts = make_random_calls(rng, [HALF, BFLOAT], num_rounds=6, events=events)
    assert not [event for event in events if counts[event] == 0]


def test_random_calls_with_saved_sequences_between_host_and_device(rng):
    counts = make_random_calls(rng, [HALF, Place("float16")], num_rounds=3)
    assert counts["restore", "elsewhere"] > 0
