"""Sequences with windows, trees of draft tokens and picked tokens."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest

import seqattn

HEADS, DIM = 2, 16


def make(num_pages=64, page_size=4, **keywords):
    manager = seqattn.PagedKVCacheManager(num_pages, page_size, HEADS, DIM, "float32", "cpu")
    return manager, seqattn.CacheDescriptor(manager, **keywords)


def attend(q, keys, values):
    """One query [heads, dim] over keys and values [tokens, heads, dim]."""
    logits = np.einsum("hd,thd->ht", q.astype(np.float64), keys) / np.sqrt(DIM)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    out = np.einsum("ht,thd->hd", weights / weights.sum(axis=1, keepdims=True), values)
    return out, np.log(weights.sum(axis=1)) + logits.max(axis=1)


class Model:
    """A sequence beside all tokens that it has ever had."""

    def __init__(self, manager, descriptor, rng):
        self.descriptor, self.rng = descriptor, rng
        self.attention = seqattn.BatchAttention(manager, HEADS)
        self.keys = np.zeros((0, HEADS, DIM))
        self.values = np.zeros((0, HEADS, DIM))

    def step(self, num_tokens, parents=()):
        """Grows, attends, and compares each new token with what it ought to see."""
        if parents:
            self.descriptor.allocate_tree(1, parents, num_tokens=num_tokens)
        else:
            self.descriptor.allocate([1], [num_tokens])
        total = num_tokens + len(parents)
        k, v, q = self.rng.standard_normal((3, total, HEADS, DIM)).astype(np.float32)
        self.attention.plan(self.descriptor.pack_for_flashinfer([1]), [0, total])
        self.attention.append_kv(k, v)
        out, lse = self.attention.run(q, return_lse=True)
        self.keys = np.concatenate([self.keys, k[:num_tokens]])
        self.values = np.concatenate([self.values, v[:num_tokens]])
        self.tree = k[num_tokens:], v[num_tokens:]
        length = len(self.keys)
        for i in range(total):
            path, at = [], i - num_tokens
            while at >= 0:
                path.insert(0, at)
                at = parents[at]
            end = length - num_tokens + i + 1 if i < num_tokens else length
            keys = np.concatenate([self.keys[:end], self.tree[0][path]])
            values = np.concatenate([self.values[:end], self.tree[1][path]])
            seen = self.visible(len(keys))
            expected, expected_lse = attend(q[i], keys[seen], values[seen])
            np.testing.assert_allclose(out[i], expected, atol=1e-4)
            np.testing.assert_allclose(lse[i], expected_lse, atol=1e-4)
        self.descriptor.check_invariants()

    def visible(self, kv_len):
        window, num_sinks = self.descriptor.window(1)
        return [t for t in range(kv_len) if window == 0 or t < num_sinks or kv_len - 1 - t < window]

    def commit(self, path):
        self.descriptor.commit_tree(1, path)
        self.keys = np.concatenate([self.keys, self.tree[0][path]])
        self.values = np.concatenate([self.values, self.tree[1][path]])


def test_a_window_with_sinks_keeps_memory_bounded(rng):
    manager, descriptor = make(num_pages=6, window=7, num_sink_tokens=3)
    model = Model(manager, descriptor, rng)
    model.step(12)
    for _ in range(40):
        model.step(1)
    model.step(3)
    assert descriptor.length(1) == 55
    assert descriptor.num_kv_tokens(1) <= 20
    assert descriptor.stats().num_dropped_tokens == 55 - descriptor.num_kv_tokens(1)
    assert descriptor.kept_from(1) > 40
    assert descriptor.window() == descriptor.window(1) == seqattn.SlidingWindow(7, 3)
    assert "window=7, num_sink_tokens=3" in repr(descriptor)


def test_a_table_says_nothing_of_positions():
    _, descriptor = make(window=4)
    descriptor.allocate([1], [20])
    descriptor.allocate([1], [1])
    before = (descriptor.length(1), descriptor.num_kv_tokens(1), descriptor.kept_from(1))
    with pytest.raises(seqattn.InvalidArgumentError, match="length 21 that holds"):
        descriptor.seq_id_to_data[1] = descriptor.seq_id_to_data[1]
    assert (descriptor.length(1), descriptor.num_kv_tokens(1), descriptor.kept_from(1)) == before
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
        with pytest.raises(seqattn.InvalidArgumentError, match="dropped"):
            call()
    descriptor.truncate(1, 19)
    descriptor.fork(1, 2)
    assert descriptor.length(2) == 19
    assert descriptor.window(2) == (4, 0)
    with pytest.raises(seqattn.InvalidArgumentError, match="without a window"):
        descriptor.set_window(1, num_sink_tokens=2)
    with pytest.raises(seqattn.InvalidArgumentError, match="window: got -1"):
        make(window=-1)


def forked(model):
    """The rest is computed by a fork, beside a sequence that shares its pages."""
    model.descriptor.fork(1, 2)
    model.descriptor.release([1])
    model.descriptor.fork(2, 1)


@pytest.mark.parametrize("window", [{}, {"window": 6, "num_sink_tokens": 2}])
def test_a_fork_of_a_fork_goes_on_alone(rng, window):
    manager, descriptor = make(num_pages=12, **window)
    model = Model(manager, descriptor, rng)
    model.step(14)
    model.step(3)
    forked(model)
    model.step(2)
    descriptor.release([2])
    descriptor.allocate([3], [16])  # recycles what became free
    model.step(1)
    model.step(4)


def test_truncation_crosses_into_a_shared_prefix(rng):
    manager, descriptor = make()
    model = Model(manager, descriptor, rng)
    model.step(14)
    descriptor.fork(1, 2)
    shared = manager.read_kv(descriptor.pages(2), 0, 14)
    descriptor.truncate(1, 6)
    model.keys, model.values = model.keys[:6], model.values[:6]
    model.step(1)
    model.step(9)
    for before, after in zip(shared, manager.read_kv(descriptor.pages(2), 0, 14)):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "parents", [[-1, 0, 1, 2, 3, 4], [-1] * 17, [-1, 0, 0, 1, 1, 2, 2, 3, 3]], ids=["chain", "wide", "binary"]
)
@pytest.mark.parametrize("window", [{}, {"window": 3, "num_sink_tokens": 2}], ids=["", "windowed"])
def test_trees_of_every_shape_on_a_forked_sequence(rng, parents, window):
    manager, descriptor = make(**window)
    model = Model(manager, descriptor, rng)
    model.step(9)
    forked(model)
    model.step(1, parents)
    path = [len(parents) - 1]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    model.commit(path)
    model.step(1)
    assert descriptor.length(2) == 9


@pytest.mark.parametrize("window", [{}, {"window": 3, "num_sink_tokens": 2}])
def test_draft_tokens_see_their_path(rng, window):
    manager, descriptor = make(**window)
    model = Model(manager, descriptor, rng)
    model.step(9)
    model.step(0, [-1, 0, 0, 1, -1, 4, 4])
    assert (descriptor.length(1), descriptor.stats().num_draft_tokens) == (9, 7)
    model.commit([4, 6])
    model.step(2, [-1, 0, -1])
    model.commit([0, 1])
    model.step(1)
    assert descriptor.length(1) == 9 + 2 + 2 + 2 + 1


def test_a_pending_tree_ends_before_anything_else():
    _, descriptor = make()
    descriptor.allocate([1], [5])
    descriptor.allocate_tree(1, [-1, 0])
    for call in (
        lambda: descriptor.allocate_decoding([1]),
        lambda: descriptor.allocate_tree(1, [-1]),
        lambda: descriptor.keep(1, [0]),
    ):
        with pytest.raises(seqattn.InvalidArgumentError, match="pending tree of 2"):
            call()
    with pytest.raises(seqattn.InvalidArgumentError, match="path: got token 1"):
        descriptor.commit_tree(1, [1])
    descriptor.truncate(1, 5)
    with pytest.raises(seqattn.InvalidArgumentError, match="no pending tree"):
        descriptor.commit_tree(1, [])
    with pytest.raises(seqattn.InvalidArgumentError, match="parents: got 0 at entry 0"):
        descriptor.allocate_tree(1, [0])
    with pytest.raises(seqattn.UnknownSequenceError):
        descriptor.allocate_tree(2, [-1])


def test_kept_tokens_are_attended_to(rng):
    manager, descriptor = make()
    model = Model(manager, descriptor, rng)
    model.step(23)
    descriptor.fork(1, 2)
    kept = [0, 1, 5, 6, 13, 22]
    assert descriptor.keep(1, kept) != []
    assert (descriptor.length(1), descriptor.num_kv_tokens(1), descriptor.kept_from(1)) == (23, 6, 23)
    assert descriptor.num_kv_tokens(2) == 23
    model.keys, model.values = model.keys[kept], model.values[kept]
    model.step(1)
    model.step(9)
    with pytest.raises(seqattn.InvalidArgumentError, match="token_indices: got 3"):
        descriptor.keep(1, [4, 3])


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

    before = second.details(7)
    for wrong in ({"length": 3}, {"last_page_len": 5}, {"kv_page_indices": [63, 0, 1]}, {"dropped_to": 2**70}):
        with pytest.raises(seqattn.InvalidArgumentError):
            second.attach(8, replace(before, **wrong))
    for wrong in (None, seqattn.SequenceData([0], 1), {"length": 3}):
        with pytest.raises(TypeError, match="details: got"):
            second.attach(8, wrong)
    assert second.seq_ids() == [7]
    assert second.details(7) == before


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
