"""Windows, trees, picked tokens, shared prefixes and saved sequences under attention, where a test class says."""

import numpy as np
import pytest
from attended_sequences import AttendedSequences
from place import Place
from support import refused, to_numpy

import seqattn

SHAPES = {
    "chain": [-1, 0, 1, 2, 3, 4],
    "wide": [-1] * 17,
    "binary": [-1, 0, 0, 1, 1, 2, 2, 3, 3],
    "with twigs": [-1, 0, 0, 1, -1, 4, 4],
}
windowed = pytest.mark.parametrize(
    "window", [{}, {"window": 6, "num_sink_tokens": 2}, {"window": 3, "num_sink_tokens": 2}], ids=["", "6+2", "3+2"]
)


def last_path(parents):
    path = [len(parents) - 1]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


class SequenceScenarios:
    place: Place

    def test_a_window_with_sinks_keeps_memory_bounded(self, rng):
        model = AttendedSequences(self.place, rng, num_pages=6, window=7, num_sink_tokens=3)
        descriptor = model.descriptor
        model.step({1: 12})
        for _ in range(40):
            model.step({1: 1})
        model.step({1: 3})
        assert descriptor.length(1) == 55
        assert descriptor.num_kv_tokens(1) <= 20
        assert descriptor.stats().num_dropped_tokens == 55 - descriptor.num_kv_tokens(1)
        assert descriptor.kept_from(1) > 40
        assert descriptor.window() == descriptor.window(1) == seqattn.SlidingWindow(7, 3)
        assert "window=7, num_sink_tokens=3" in repr(descriptor)

    def test_a_long_window_over_pages_of_16(self, rng):
        model = AttendedSequences(self.place, rng, 24, 16, window=200, num_sink_tokens=5)
        model.step({1: 300})
        for _ in range(3):
            model.step({1: 1})
        model.step({1: 150})
        for _ in range(20):
            model.step({1: 1})
        assert model.descriptor.stats().num_dropped_tokens > 200
        model.step({1: 1}, {1: SHAPES["binary"]})
        model.commit(1, last_path(SHAPES["binary"]))
        model.step({1: 2})

    @windowed
    def test_a_fork_of_a_fork_goes_on_alone(self, rng, window):
        model = AttendedSequences(self.place, rng, num_pages=12, **window)
        model.step({1: 14})
        model.step({1: 3})
        model.fork(1, 2)
        model.release(1)
        model.fork(2, 1)
        model.step({1: 2})
        model.release(2)
        model.step({3: 16})  # recycles what became free
        model.step({1: 1})
        model.step({1: 4})

    def test_truncation_crosses_into_a_shared_prefix(self, rng):
        model = AttendedSequences(self.place, rng)
        model.step({1: 14})
        model.fork(1, 2)
        model.truncate(1, 6)
        model.step({1: 1})
        model.step({1: 9, 2: 1})
        model.check_cache(1)
        model.check_cache(2)

    @pytest.mark.parametrize("shape", SHAPES)
    @windowed
    def test_trees_of_every_shape_on_a_forked_sequence(self, rng, shape, window):
        parents = SHAPES[shape]
        model = AttendedSequences(self.place, rng, **window)
        model.step({1: 9})
        model.fork(1, 2)
        model.step({1: 1}, {1: parents})
        assert (model.descriptor.length(1), model.descriptor.stats().num_draft_tokens) == (10, len(parents))
        model.commit(1, last_path(parents))
        model.step({1: 1, 2: 1})
        model.step({1: 0}, {1: parents})
        model.truncate(1, model.descriptor.length(1))  # nothing of it is accepted
        model.step({1: 2}, {1: [-1, 0, -1]})
        model.commit(1, [0])
        model.step({1: 1})
        assert model.descriptor.length(1) == 10 + len(last_path(parents)) + 1 + 2 + 1 + 1

    def test_plain_windowed_and_drafting_sequences_in_one_batch(self, rng):
        model = AttendedSequences(self.place, rng)
        model.step({1: 40, 2: 3, 3: 21, 4: 30})
        model.descriptor.set_window(3, 8, 1)
        model.descriptor.set_window(4, 5)
        model.step({1: 1, 2: 1, 3: 1, 4: 2}, {2: SHAPES["binary"], 4: SHAPES["wide"]})
        model.commit(2, [0, 2, 5])
        model.commit(4, [])
        model.step({4: 1, 3: 5, 2: 1, 1: 17})

    def test_kept_tokens_are_attended_to(self, rng):
        model = AttendedSequences(self.place, rng)
        model.step({1: 23})
        model.fork(1, 2)
        assert model.keep(1, [0, 1, 5, 6, 13, 22]) != []
        descriptor = model.descriptor
        assert (descriptor.length(1), descriptor.num_kv_tokens(1), descriptor.kept_from(1)) == (23, 6, 23)
        model.check_cache(1)
        model.step({1: 1})
        model.step({1: 9, 2: 1})
        model.keep(2, list(range(1, 24, 2)))
        model.step({2: 3, 1: 1})
        model.check_cache(2)
        with refused(seqattn.InvalidArgumentError, "token_indices: got 3", descriptor):
            descriptor.keep(1, [4, 3])

    def test_sequences_start_over_cached_prefixes(self, rng):
        model = AttendedSequences(self.place, rng, num_pages=10)
        cache = seqattn.PrefixCache(model.manager, event_capacity=64)
        model.step({1: 18})
        assert cache.insert(model.descriptor, 1, range(18)) == 4
        with refused(seqattn.InvalidArgumentError, "cached already under other tokens", model.descriptor, cache):
            cache.insert(model.descriptor, 1, range(100, 118))
        stored = model.held[1]
        model.release(1)
        for seq_id, (tokens, num_found) in enumerate({(*range(11), 99): 11, tuple(range(16)): 15}.items()):
            with cache.match(tokens) as handle:
                assert handle.num_tokens == num_found
                cache.attach(model.descriptor, seq_id, handle)
            model.held[seq_id] = stored[:, :, :num_found]
        model.step({0: 4, 1: 1})  # both grow inside a page of the cache's
        with cache.pin(range(16)) as handle:
            found = [part for layer in range(2) for part in model.manager.read_kv(handle.pages, 0, 16, layer)]
        for part, expected in zip(found, stored[:, :, :16].reshape(4, 16, *stored.shape[3:])):
            np.testing.assert_array_equal(to_numpy(part), expected)
        model.release(0)
        model.release(1)
        with refused(
            seqattn.NoPageError, "Need 11 pages but only 6 available, and the pool's", model.descriptor, cache
        ):
            model.descriptor.allocate([2], [44])
        model.step({2: 40})  # takes every page, those of the cache too
        assert cache.stats().num_pages_evicted == 4
        model.step({2: 0})

    @pytest.mark.parametrize("layout", ["NHD", "HND"])
    def test_saved_sequences_go_on_elsewhere(self, rng, layout):
        here = AttendedSequences(self.place, rng)
        there = AttendedSequences(Place(self.place.dtype, kv_layout=layout, head_dim=self.place.head_dim), rng, 40, 5)
        here.step({1: 30, 2: 30, 3: 30})
        here.descriptor.set_window(2, 9, 2)
        here.keep(3, list(range(0, 30, 3)))
        here.step({1: 1, 2: 1, 3: 1})
        for source, target in ((here, there), (there, here)):
            for seq_id in (1, 2, 3):
                state = seqattn.save_sequence(source.descriptor, seq_id)
                if seq_id in target.held:
                    target.release(seq_id)
                seqattn.restore_sequence(target.descriptor, seq_id, state)
                assert seqattn.save_sequence(target.descriptor, seq_id) == state
                target.held[seq_id] = source.held[seq_id]
                np.testing.assert_array_equal(target.read(seq_id), source.read(seq_id))
            target.step({1: 1, 2: 4, 3: 1})
            target.step({3: 2, 1: 1, 2: 1})
