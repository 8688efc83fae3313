"""Random calls of all that changes sequences and prefix caches, on pools that are often short, against plain lists."""

from place import Place
from random_engine import EVENTS, make_random_calls


def test_random_calls_leave_every_sequence_with_its_tokens(rng):
    counts = make_random_calls(rng, [Place(), Place()], num_rounds=12, events=EVENTS)
    assert not [event for event in EVENTS if counts[event] == 0]


def test_random_calls_from_torch_in_half_precision(rng):
    make_random_calls(rng, [Place("float16", with_torch=True), Place("bfloat16", with_torch=True)], num_rounds=1)
