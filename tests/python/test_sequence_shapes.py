"""Sequences with windows, trees of draft tokens and picked tokens."""

import copy
import pickle
from dataclasses import replace

import pytest
from support import refused

import seqattn

HEADS, DIM = 2, 16


def make(num_pages=64, page_size=4, **keywords):
    manager = seqattn.PagedKVCacheManager(num_pages, page_size, HEADS, DIM, "float32", "cpu")
    return manager, seqattn.CacheDescriptor(manager, **keywords)


def test_a_table_says_nothing_of_positions():
    _, descriptor = make(window=4)
    descriptor.allocate([1], [20])
    descriptor.allocate([1], [1])
    with refused(seqattn.InvalidArgumentError, "length 21 that holds", descriptor):
        descriptor.seq_id_to_data[1] = descriptor.seq_id_to_data[1]
    descriptor.check_invariants()


def test_what_a_window_has_dropped_is_refused():
    _, descriptor = make(window=4)
    descriptor.allocate([1], [20])
    descriptor.allocate([1], [1])
    for call in (
        lambda: descriptor.truncate(1, 12),
        lambda: descriptor.fork(1, 2, num_tokens=15),
        lambda: descriptor.set_window(1),
        lambda: descriptor.set_window(1, window=9),
        lambda: descriptor.set_window(1, 4, num_sink_tokens=1),
    ):
        with refused(seqattn.InvalidArgumentError, "dropped", descriptor):
            call()
    descriptor.truncate(1, 19)
    descriptor.fork(1, 2)
    assert descriptor.length(2) == 19
    assert descriptor.window(2) == (4, 0)
    with refused(seqattn.InvalidArgumentError, "without a window", descriptor):
        descriptor.set_window(1, num_sink_tokens=2)
    with pytest.raises(seqattn.InvalidArgumentError, match="window: got -1"):
        make(window=-1)


def test_a_pending_tree_ends_before_anything_else():
    _, descriptor = make()
    descriptor.allocate([1], [5])
    descriptor.allocate_tree(1, [-1, 0])
    for call in (
        lambda: descriptor.allocate_decoding([1]),
        lambda: descriptor.allocate_tree(1, [-1]),
        lambda: descriptor.keep(1, [0]),
    ):
        with refused(seqattn.InvalidArgumentError, "pending tree of 2", descriptor):
            call()
    with refused(seqattn.InvalidArgumentError, "path: got token 1", descriptor):
        descriptor.commit_tree(1, [1])
    descriptor.truncate(1, 5)
    with refused(seqattn.InvalidArgumentError, "no pending tree", descriptor):
        descriptor.commit_tree(1, [])
    with refused(seqattn.InvalidArgumentError, "parents: got 0 at entry 0", descriptor):
        descriptor.allocate_tree(1, [0])
    with refused(seqattn.UnknownSequenceError, "Sequence ID 2", descriptor):
        descriptor.allocate_tree(2, [-1])


def test_messages_say_which_tokens_there_are():
    _, descriptor = make(window=9, num_sink_tokens=6)
    descriptor.allocate([1, 2, 3], [26, 8, 0])
    descriptor.allocate([1], [4])
    with refused(seqattn.InvalidArgumentError, "; expected 0 to 8, or 24 to 30$", descriptor):
        descriptor.truncate(1, 20)
    with refused(seqattn.InvalidArgumentError, "got 8 at entry 1; expected 0 to 7, the tokens", descriptor):
        descriptor.keep(2, [7, 8])
    with refused(seqattn.InvalidArgumentError, "got 3 at entry 1, behind 3; expected each token once", descriptor):
        descriptor.keep(2, [3, 3])
    with refused(seqattn.InvalidArgumentError, "got 0 for a sequence that holds no tokens", descriptor):
        descriptor.keep(3, [0])


def test_over_a_bare_pool_moves_are_returned_to_be_made():
    pool = seqattn.PagePool(8, 2)
    descriptor = seqattn.CacheDescriptor(pool)
    descriptor.allocate([1], [5])
    assert descriptor.keep(1, [0, 3]) == [seqattn.TokenMove(1, 1, 0, 1)]
    manager = seqattn.PagedKVCacheManager(4, 2, HEADS, DIM, "float32", "cpu")
    manager.allocate(2)
    manager.key_cache[1, 1] = 3
    manager.move_tokens([(1, 1, 0, 1), seqattn.TokenMove(0, 1, 0, 0)])
    assert (manager.key_cache[0] == 3).all()
    for moves in ([(1, 1, 0)], [(1, 1, 0, 2)], [(9, 0, 0, 0)], [(0, 0, 3, 0)]):
        with pytest.raises(seqattn.InvalidArgumentError):
            manager.move_tokens(moves)
    with pytest.raises(TypeError, match="moves"):
        manager.move_tokens(3)


def test_another_descriptor_goes_on_with_a_windowed_sequence():
    manager, first = make(window=6, num_sink_tokens=2)
    second = seqattn.CacheDescriptor(manager)
    first.allocate([1], [14])
    first.allocate_tree(1, [-1, 0])
    details = first.details(1)
    assert details == seqattn.SequenceDetails(
        kv_page_indices=first.pages(1),
        last_page_len=4,
        length=14,
        window=(6, 2),
        dropped_to=8,
        num_dropped=4,
        num_in_front=4,
        compacted_to=0,
        tree_parents=[-1, 0],
    )
    second.attach(7, details)
    assert second.details(7) == details
    first.release([1])
    second.commit_tree(7, [0])
    assert (second.length(7), second.num_kv_tokens(7), second.kept_from(7)) == (15, 11, 8)
    second.check_invariants()

    details = second.details(7)
    impossible = {"num_dropped": 1, "compacted_to": 2}  # 3 tokens that keep left out, of 2
    for wrong in (
        {"length": 3},
        {"last_page_len": 5},
        {"kv_page_indices": [63, 0, 1]},
        {"dropped_to": 2**70},
        impossible,
    ):
        with refused(seqattn.InvalidArgumentError, "expected|beyond", second):
            second.attach(8, replace(details, **wrong))
    for wrong in (None, seqattn.SequenceData([0], 1), {"length": 3}):
        with refused(TypeError, "details: got", second):
            second.attach(8, wrong)


def test_packed_data_carries_windows_and_trees():
    _, descriptor = make(window=5, num_sink_tokens=1)
    descriptor.allocate([1, 2], [30, 2])
    descriptor.allocate_tree(1, [-1, 0, 0], num_tokens=1)
    packed = descriptor.pack_for_flashinfer([1, 2])
    assert packed.windows == [(5, 1, 20, 8), (5, 1, 0, 0)]
    assert packed.trees == [[-1, 0, 0], []]
    for other in (copy.copy(packed), pickle.loads(pickle.dumps(packed))):
        assert other == packed
        assert (other.windows, other.trees) == (packed.windows, packed.trees)
    plain = seqattn.FlashInferPackedData(packed.kv_page_indices, packed.kv_page_indptr, packed.kv_last_page_len)
    assert plain != packed
    assert (plain.windows, plain.trees) == ([], [])
    with pytest.raises(seqattn.InvalidArgumentError, match="windows: got 1 entries"):
        seqattn.FlashInferPackedData([1, 2], [0, 1, 2], [1, 1], windows=[(1, 0, 0, 0)])
    with pytest.raises(seqattn.InvalidArgumentError, match="expected window, num_sink_tokens"):
        seqattn.FlashInferPackedData([1], [0, 1], [1], windows=[(1, 0)])
    with pytest.raises(TypeError, match="trees"):
        seqattn.FlashInferPackedData([1], [0, 1], [1], trees=3)
