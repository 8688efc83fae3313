"""Attention against plain numpy in float64."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from support import (
    NUMPY_DTYPES,
    TORCH_DTYPES,
    attention_reference,
    make_manager,
    to_numpy,
    tolerance,
)

import seqattn
from seqattn import BatchAttention, CacheDescriptor, InvalidArgumentError, merge_states

# (tokens before, new tokens) of each row: prefill, chunked prefill, decode, nothing new, empty.
ROWS = [(0, 9), (5, 6), (13, 1), (7, 0), (0, 0)]
HEADS, GROUP, DIM, DIM_V = 2, 3, 8, 12

OPTIONS = {
    "plain": {},
    "not causal": {"causal": False},
    "window": {"window_left": 3},
    "window of one": {"window_left": 0},
    "scale": {"sm_scale": 0.7},
    "soft cap": {"logits_soft_cap": 1.5},
    "mask": {"mask": True},
    "sinks": {"sinks": True},
    "all": {"window_left": 5, "sm_scale": 0.4, "logits_soft_cap": 2.0, "mask": True, "sinks": True},
}


class Batch:
    """The rows above in a fresh cache, with what was written to it."""

    def __init__(self, rng, dtype, layout="NHD"):
        self.rng = rng
        self.manager = make_manager(64, 4, HEADS, DIM, dtype, kv_layout=layout, head_dim_v=DIM_V, num_layers=2)
        self.descriptor = CacheDescriptor(self.manager)
        for seq_id, (before, _) in enumerate(ROWS):
            self.descriptor.allocate([seq_id], [before])
            self.append([seq_id], [before])
        ids = range(len(ROWS))
        self.descriptor.allocate(ids, [new for _, new in ROWS])
        self.append(ids, [new for _, new in ROWS])
        self.packed = self.descriptor.pack_for_flashinfer(ids)
        self.qo_indptr = np.cumsum([0] + [new for _, new in ROWS])

    def append(self, ids, lengths):
        keys = self.rng.standard_normal((sum(lengths), HEADS, DIM), np.float32)
        values = self.rng.standard_normal((sum(lengths), HEADS, DIM_V), np.float32)
        indptr = np.cumsum([0, *lengths])
        self.manager.append_kv(keys, values, self.descriptor.pack_for_flashinfer(ids), indptr, layer=1)

    def stored(self, row):
        length = sum(ROWS[row])
        return self.manager.read_kv(self.descriptor.pages(row), 0, length, layer=1)

    def random_mask(self):
        return [self.rng.random((new, before + new)) < 0.6 for before, new in ROWS]


def check(batch, q, out, lse, dtype_out, mask=None, sinks=None, **options):
    for row, (before, new) in enumerate(ROWS):
        tokens = slice(batch.qo_indptr[row], batch.qo_indptr[row + 1])
        keys, values = batch.stored(row)
        row_mask = None if mask is None else mask[row]
        expected_out, expected_lse = attention_reference(q[tokens], keys, values, mask=row_mask, sinks=sinks, **options)
        tol = tolerance(dtype_out, before + new, DIM, np.abs(to_numpy(values)).max(initial=1))
        np.testing.assert_allclose(to_numpy(out)[tokens], expected_out, rtol=0, atol=tol)
        tol = tolerance("float32", before + new, DIM, 4.0)
        np.testing.assert_allclose(to_numpy(lse)[tokens], expected_lse, rtol=0, atol=tol)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("option", list(OPTIONS))
def test_attention_agrees_with_numpy(option, dtype, layout, rng):
    options = dict(OPTIONS[option])
    batch = Batch(rng, dtype, layout)
    mask = batch.random_mask() if options.pop("mask", False) else None
    num_heads = HEADS * GROUP
    sinks = rng.standard_normal(num_heads, np.float32) if options.pop("sinks", False) else None
    attention = BatchAttention(batch.manager, num_heads, **options)
    attention.plan(batch.packed, batch.qo_indptr, mask)
    q = rng.standard_normal((batch.qo_indptr[-1], num_heads, DIM), np.float32)
    out = np.full((*q.shape[:2], DIM_V), np.nan, np.float32)
    lse = np.full(q.shape[:2], np.nan, np.float32)
    attention.run(q, out=out, lse=lse, sink_logits=sinks, layer=1)
    check(batch, q, out, lse, "float32", mask=mask, sinks=sinks, **options)


@pytest.mark.parametrize("framework", [NUMPY_DTYPES, TORCH_DTYPES], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_new_output_has_the_dtype_of_q(name, framework, rng):
    batch = Batch(rng, framework[name])
    q32 = rng.standard_normal((batch.qo_indptr[-1], HEADS, DIM), np.float32)
    torch_q = framework is TORCH_DTYPES
    q = torch.from_numpy(q32).to(framework[name]) if torch_q else q32.astype(framework[name])
    attention = BatchAttention(batch.manager, HEADS)
    attention.plan(batch.packed, batch.qo_indptr)
    out, lse = attention.run(q, return_lse=True, layer=1)
    assert out.dtype == framework[name]
    assert lse.dtype == framework["float32"]
    check(batch, q, out, lse, name)


def test_the_flat_mask_and_the_list_of_masks_are_one(rng):
    batch = Batch(rng, "float32")
    masks = batch.random_mask()
    q = rng.standard_normal((batch.qo_indptr[-1], HEADS, DIM), np.float32)
    attention = BatchAttention(batch.manager, HEADS)
    flat = np.concatenate([mask.ravel() for mask in masks])
    results = []
    for mask in (
        masks,
        tuple(mask.astype(np.uint8) for mask in masks),
        [np.asfortranarray(mask) for mask in masks],
        [torch.from_numpy(mask) for mask in masks],
        flat,
        np.repeat(flat, 2)[::2],
        torch.from_numpy(flat),
    ):
        attention.plan(batch.packed, batch.qo_indptr, mask=mask)
        results.append(attention.run(q, layer=1))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    attention.plan(batch.packed, batch.qo_indptr)
    assert (attention.run(q, layer=1) != results[0]).any()


def test_masks_that_do_not_fit_leave_the_plan(rng):
    batch = Batch(rng, "float32")
    q = rng.standard_normal((batch.qo_indptr[-1], HEADS, DIM), np.float32)
    attention = BatchAttention(batch.manager, HEADS)
    attention.plan(batch.packed, batch.qo_indptr)
    before = attention.run(q, layer=1)
    masks = batch.random_mask()
    size = sum(mask.size for mask in masks)
    for mask in (
        masks[:-1],
        [*masks[:-1], np.ones((1, 1), bool)],
        [mask.T for mask in masks],
        [mask.ravel() for mask in masks],
        [mask.astype(np.float32) for mask in masks],
        np.ones(size + 1, bool),
        np.ones(size, np.int32),
        np.ones((size, 1), bool),
        [None] * len(masks),
        "mask",
        3,
    ):
        with pytest.raises((InvalidArgumentError, TypeError)):
            attention.plan(batch.packed, batch.qo_indptr, mask=mask)
    np.testing.assert_array_equal(attention.run(q, layer=1), before)


def test_results_are_bit_identical_for_any_number_of_threads(rng):
    batch = Batch(rng, "float16")
    q = rng.standard_normal((batch.qo_indptr[-1], HEADS, DIM), np.float32)
    results = []
    for num_threads in (1, 2, 5):
        attention = BatchAttention(batch.manager, HEADS, num_threads=num_threads)
        attention.plan(batch.packed, batch.qo_indptr)
        results.append(attention.run(q, layer=1).tobytes())
    assert len(set(results)) == 1


def test_the_plan_appends_as_many_tokens_as_it_has_queries(rng):
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0, 1], [3, 5])
    attention = BatchAttention(manager, 2)
    attention.plan(descriptor.pack_for_flashinfer([1, 0]), torch.tensor([0, 5, 8]))
    tokens = rng.standard_normal((8, 2, 8), np.float32)
    attention.append_kv(tokens, tokens + 1)
    keys, values = manager.read_kv(descriptor.pages(1), 0, 5)
    np.testing.assert_array_equal(keys, tokens[:5])
    np.testing.assert_array_equal(values, tokens[:5] + 1)


def test_sequences_are_planned_without_packing(rng):
    manager = seqattn.PagedKVCacheManager(16, 4, 2, 8, "float32", "cpu")
    sequences = seqattn.CacheDescriptor(manager)
    sequences.allocate([1, 2], [5, 9])
    for cache in (manager.key_cache, manager.value_cache):
        cache[...] = rng.standard_normal(cache.shape, np.float32)
    q = rng.standard_normal((3, 4, 8), np.float32)
    attention = seqattn.BatchAttention(manager, 4)
    attention.plan(sequences.pack_for_flashinfer([1, 2]), [0, 1, 3])
    expected = attention.run(q)
    attention.plan_sequences(sequences, [1, 2], [0, 1, 3])
    np.testing.assert_array_equal(attention.run(q), expected)
    with pytest.raises(seqattn.UnknownSequenceError):
        attention.plan_sequences(sequences, [1, 7], [0, 1, 3])
    with pytest.raises(seqattn.InvalidArgumentError, match="descriptor of another pool"):
        attention.plan_sequences(seqattn.CacheDescriptor(seqattn.PagePool(4, 4)), [], [0])
    with pytest.raises(TypeError, match="sequences: got int; expected a CacheDescriptor"):
        attention.plan_sequences(3, [], [0])
    np.testing.assert_array_equal(attention.run(q), expected)


def test_calls_without_a_plan_are_refused():
    attention = BatchAttention(make_manager(), 2)
    tokens = np.ones((3, 2, 8), np.float32)
    for call in (lambda: attention.run(tokens), lambda: attention.append_kv(tokens, tokens)):
        with pytest.raises(InvalidArgumentError, match="plan"):
            call()


@pytest.mark.parametrize(
    "options",
    [
        {"num_qo_heads": 0},
        {"num_qo_heads": 3},
        {"num_qo_heads": -2},
        {"num_qo_heads": 2**40},
        {"window_left": -2},
        {"sm_scale": float("nan")},
        {"sm_scale": 3e38},
        {"sm_scale": 1e-50},
        {"sm_scale": 1e39},
        {"logits_soft_cap": -1.0},
        {"logits_soft_cap": 1e-40},
        {"logits_soft_cap": 1e-50},
        {"num_threads": -1},
        {"max_sequences": -1},
        {"max_pages": 2**70},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidArgumentError):
        BatchAttention(make_manager(), **({"num_qo_heads": 4} | options))


def test_batches_that_do_not_fit_are_refused():
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [5])
    packed = descriptor.pack_for_flashinfer([0])
    attention = BatchAttention(manager, 2, max_sequences=1)
    for qo_indptr in ([0], [0, 1, 2], [1, 2], [0, -1], [0, 6], [0, 2**31], np.ones((2, 1), int)):
        with pytest.raises(InvalidArgumentError):
            attention.plan(packed, qo_indptr)
    with pytest.raises(InvalidArgumentError):
        attention.plan(descriptor.pack_for_flashinfer([0, 0]), [0, 1, 2])
    with pytest.raises(TypeError):
        attention.plan([0, 1], [0, 1])
    with pytest.raises(TypeError):
        BatchAttention(descriptor, 2)
    attention.plan(packed, [0, 5])
    q = np.ones((5, 2, 8), np.float32)
    for options in (
        {"layer": 1},
        {"layer": -1},
        {"layer": 2**40},
        {"sink_logits": np.ones(3, np.float32)},
        {"sink_logits": np.ones(2, np.float16)},
        {"out": np.ones((5, 2, 9), np.float32)},
        {"out": np.ones((5, 2, 8), np.float16)},
        {"out": q},
        {"lse": np.ones((2, 5), np.float32)},
    ):
        with pytest.raises(InvalidArgumentError):
            attention.run(q, **options)


def test_pages_of_another_pool_are_refused_and_foreign_tables_are_not():
    from seqattn import FlashInferPackedData

    manager = make_manager()
    other = CacheDescriptor(make_manager())
    other.allocate([0], [5])
    attention = BatchAttention(manager, 2)
    with pytest.raises(InvalidArgumentError):
        attention.plan(other.pack_for_flashinfer([0]), [0, 1])
    attention.plan(FlashInferPackedData([3, 9], [0, 2], [1]), [0, 1])
    assert (attention.run(np.ones((1, 2, 8), np.float32)) == 0).all()


def test_attention_says_what_it_is():
    manager = make_manager()
    attention = BatchAttention(manager, num_qo_heads=4)
    assert attention.cache_manager is manager
    assert attention.num_qo_heads == 4
    assert attention.sm_scale == pytest.approx(8**-0.5)
    assert attention.kernel_name.startswith("cpu")


def test_products_of_bfloat16_are_used_where_the_cpu_has_them(rng, monkeypatch):
    monkeypatch.delenv("SEQATTN_CPU_TARGET", raising=False)
    manager = make_manager(8, 4, 2, 64, "bfloat16")
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [20])
    q = rng.standard_normal((20, 4, 64), np.float32).astype(ml_dtypes.bfloat16)
    k, v = rng.standard_normal((2, 20, 2, 64), np.float32).astype(ml_dtypes.bfloat16)
    results = {}
    for bfloat16_products in (False, True):
        attention = BatchAttention(manager, 4, bfloat16_products=bfloat16_products)
        attention.plan(descriptor.pack_for_flashinfer([0]), [0, 20])
        attention.append_kv(k, v)
        results[attention.kernel_name] = attention.run(q, out=np.empty((20, 4, 64), np.float32))
    with_unit = [name for name in results if name.endswith("-avx512_bf16")]
    assert len(with_unit) == ("avx512_bf16" in Path("/proc/cpuinfo").read_text())
    expected, _ = attention_reference(*(x.astype(np.float64) for x in (q, k, v)))
    for name, out in results.items():
        size = np.sqrt((expected**2).mean(-1, keepdims=True))
        assert (abs(out - expected) <= (6 * 2.0**-8 if name in with_unit else 1e-5) * size + 1e-5).all()


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_states_of_two_halves_merge_into_the_whole(framework, rng):
    convert = torch.from_numpy if framework == "torch" else np.asarray
    q = rng.standard_normal((4, 2, 8), np.float32)
    k, v = rng.standard_normal((2, 10, 2, 8), np.float32)
    halves = [attention_reference(q, k[s], v[s], causal=False) for s in (slice(0, 6), slice(6, 10))]
    (out_a, lse_a), (out_b, lse_b) = (tuple(convert(x.astype(np.float32)) for x in half) for half in halves)
    out, lse = merge_states(out_a, lse_a, out_b, lse_b)
    assert isinstance(out, type(out_a)) and isinstance(lse, type(out_a))
    expected_out, expected_lse = attention_reference(q, k, v, causal=False)
    tol = tolerance("float32", 10, 8, np.abs(v).max())
    np.testing.assert_allclose(to_numpy(out), expected_out, rtol=0, atol=tol)
    np.testing.assert_allclose(to_numpy(lse), expected_lse, rtol=0, atol=tol)


def test_merging_with_a_side_that_saw_nothing_keeps_the_other():
    out_a, lse_a = np.full((1, 1, 4), 3, np.float32), np.zeros((1, 1), np.float32)
    out_b, lse_b = np.zeros((1, 1, 4), np.float32), np.full((1, 1), -np.inf, np.float32)
    out, lse = merge_states(out_a, lse_a, out_b, lse_b)
    assert (out == 3).all() and (lse == 0).all()
    out, lse = merge_states(out_b, lse_b, out_b, lse_b)
    assert (out == 0).all() and (lse == -np.inf).all()


def test_states_that_do_not_agree_are_refused():
    out, lse = np.ones((3, 2, 4), np.float32), np.ones((3, 2), np.float32)
    for args in (
        (out, lse, out[:2], lse),
        (out, lse, out, lse[:, :1]),
        (out, lse, out, lse.astype(np.float16)),
        (lse, lse, lse, lse),
        (out, out, out, out),
    ):
        with pytest.raises(InvalidArgumentError):
            merge_states(*args)


def test_options_capacity_and_plan_can_be_asked_for():
    manager = make_manager()
    options = {"causal": False, "window_left": 3, "sm_scale": 0.5, "logits_soft_cap": 2.0, "num_threads": 1}
    options |= {"bfloat16_products": True}
    capacity = {"max_sequences": 2, "max_q_tokens": 5, "max_q_len": 4, "max_pages": 6}
    attention = BatchAttention(manager, 4, **options, **capacity)
    assert {name: getattr(attention, name) for name in options | capacity} == options | capacity
    assert attention.num_qo_heads == 4 and attention.num_q_tokens == 0
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [4])
    attention.plan(descriptor.pack_for_flashinfer([0]), [0, 4])
    assert attention.num_q_tokens == 4


def test_states_merge_into_given_arrays(rng):
    a, b = rng.standard_normal((2, 3, 2, 8), np.float32)
    lse_a, lse_b = rng.standard_normal((2, 3, 2), np.float32)
    expected = merge_states(a, lse_a, b, lse_b)
    out, lse = np.full((3, 2, 8), np.nan, np.float32), np.full((3, 2), np.nan, np.float32)
    assert all(x is y for x, y in zip(merge_states(a, lse_a, b, lse_b, out=out, lse=lse), (out, lse)))
    merge_states(a, lse_a, b, lse_b, out=a, lse=lse_a)
    for given in ((out, lse), (a, lse_a)):
        for x, y in zip(given, expected):
            np.testing.assert_array_equal(x, y)
