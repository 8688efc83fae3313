"""Whatever is passed, a call returns or raises a plain error, and failed calls change nothing."""

import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import DLPackArray, make_manager, snapshot

import seqattn

EXPECTED = (
    seqattn.Error,
    TypeError,
    ValueError,
    MemoryError,
    OverflowError,
    IndexError,
    BufferError,
)


def weird_arrays():
    for dtype in (np.float32, np.float16, np.float64, np.int32, np.int64, bool, np.uint16, object):
        for shape in ((), (0,), (3,), (3, 2, 8), (2, 8, 3), (3, 2, 8, 1), (0, 2, 8), (1,) * 9):
            yield np.ones(shape, dtype)
    base = np.ones((6, 4, 16), np.float32)
    yield from (
        base[::2, ::2, ::2],
        base[::-1],
        base[3:3],
        np.broadcast_to(np.float32(1), (3, 2, 8)),
    )
    yield np.ones((3, 2, 8), ml_dtypes.bfloat16)
    yield DLPackArray(np.ones((3, 2, 8), np.float32), read_only=True)
    yield DLPackArray(np.ones((3, 2, 8), np.float32), device=(2, 1))
    yield torch.ones(3, 2, 8).to_sparse()
    yield torch.ones(3, 2, 8, device="meta")
    yield torch.ones(3, 2, 8, dtype=torch.float64)


ARRAYS = list(weird_arrays())
numbers = st.one_of(
    st.integers(-3, 20),
    st.sampled_from([2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, 2**63, -(2**63), 2**200]),
)
others = st.sampled_from([None, 1.5, float("nan"), "cpu", b"\x00", object(), [], (), {}, [[1]], [None], int, "float16"])
anything = st.one_of(numbers, others, st.lists(numbers, max_size=4), st.sampled_from(ARRAYS))


def build():
    manager = make_manager(num_pages=8)
    descriptor = seqattn.CacheDescriptor(manager)
    descriptor.allocate([0, 1], [3, 9])
    packed = descriptor.pack_for_flashinfer([0])
    attention = seqattn.BatchAttention(manager, 2)
    attention.plan(packed, [0, 3])
    return manager, descriptor, packed, attention


# (name, number of arguments) of every method that takes some.
MANAGER = {"allocate": 1, "ref": 1, "unref": 1, "release_pages": 1, "read_kv": 4, "copy_pages": 1}
DESCRIPTOR = {
    "allocate": 2,
    "try_allocate": 2,
    "allocate_decoding": 1,
    "release": 1,
    "fork": 3,
    "attach": 3,
    "adopt": 3,
    "truncate": 2,
    "pack_for_flashinfer": 1,
    "length": 1,
    "pages": 1,
    "contains": 1,
}
fuzz = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def call_and_check(thing, descriptor, name, arguments):
    before = snapshot(descriptor)
    try:
        getattr(thing, name)(*arguments)
    except EXPECTED:
        assert snapshot(descriptor) == before
    descriptor.check_invariants()


@fuzz
@given(st.sampled_from(sorted(MANAGER)), st.lists(anything, min_size=4, max_size=4))
def test_manager_methods(name, arguments):
    manager, descriptor, *_ = build()
    before = snapshot(descriptor)
    try:
        getattr(manager, name)(*arguments[: MANAGER[name]])
    except EXPECTED:
        assert snapshot(descriptor) == before


@fuzz
@given(st.sampled_from(sorted(DESCRIPTOR)), st.lists(anything, min_size=3, max_size=3))
def test_descriptor_methods(name, arguments):
    _, descriptor, *_ = build()
    call_and_check(descriptor, descriptor, name, arguments[: DESCRIPTOR[name]])


@fuzz
@given(anything, anything, anything, anything, st.booleans())
def test_append(keys, values, indptr, layer, through_the_plan):
    manager, descriptor, packed, attention = build()
    before = snapshot(descriptor)
    try:
        if through_the_plan:
            attention.append_kv(keys, values, layer)
        else:
            manager.append_kv(keys, values, packed, indptr, layer)
    except EXPECTED:
        assert snapshot(descriptor) == before


@fuzz
@given(anything, anything, anything, anything, anything)
def test_run(q, out, sinks, layer, lse):
    _, descriptor, _, attention = build()
    before = snapshot(descriptor)
    try:
        attention.run(q, out=out, sink_logits=sinks, layer=layer, lse=lse)
    except EXPECTED:
        pass
    assert snapshot(descriptor) == before


@fuzz
@given(anything, anything, anything)
def test_plan(packed, indptr, mask):
    _, descriptor, good, attention = build()
    for data in (packed, good):
        try:
            attention.plan(data, indptr, mask)
        except EXPECTED:
            pass
    attention.plan(good, [0, 3])


@fuzz
@given(anything, anything, anything)
def test_packed_data(indices, indptr, last_page_len):
    try:
        packed = seqattn.FlashInferPackedData(indices, indptr, last_page_len)
    except EXPECTED:
        return
    assert packed.kv_page_indptr[-1] == len(packed.kv_page_indices)


# Not the largest sizes that are good: a pool of 2**31 - 1 pages takes 16 GB.
sizes = anything.filter(lambda x: not (isinstance(x, int) and x == 2**31 - 1))


@fuzz
@given(st.lists(sizes, min_size=7, max_size=7), st.lists(sizes, min_size=2, max_size=2))
def test_constructors(arguments, more):
    for make in (
        lambda: seqattn.PagedKVCacheManager(*arguments, head_dim_v=more[0], num_layers=more[1]),
        lambda: seqattn.PagedKVCacheManager.from_tensors(*arguments[:2]),
        lambda: seqattn.PagePool(*more),
        lambda: seqattn.CacheDescriptor(*more),
        lambda: seqattn.HeadIDGenerator(arguments[0]).get_head_id(*more),
        lambda: seqattn.BatchAttention(make_manager(), arguments[0], window_left=more[0]),
        lambda: seqattn.merge_states(*arguments[:4]),
    ):
        try:
            make()
        except EXPECTED:
            pass


def test_objects_made_without_their_constructor_do_not_crash():
    manager = seqattn.PagedKVCacheManager.__new__(seqattn.PagedKVCacheManager)
    pool = seqattn.PagePool.__new__(seqattn.PagePool)
    descriptor = seqattn.CacheDescriptor.__new__(seqattn.CacheDescriptor)
    packed = seqattn.FlashInferPackedData.__new__(seqattn.FlashInferPackedData)
    for call in (
        lambda: manager.num_pages,
        lambda: manager.key_cache,
        lambda: manager.ref_count,
        lambda: pool.free_pages,
        lambda: pool.allocate(1),
        lambda: descriptor.seq_id_to_data,
        lambda: descriptor.length(1),
        lambda: packed.kv_page_indices,
        lambda: seqattn.CacheDescriptor(manager),
        lambda: seqattn.CacheDescriptor(pool),
        lambda: seqattn.BatchAttention(manager, 1),
    ):
        # nanobind says so in a warning too.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(TypeError):
                call()


CALLS = {
    "seq_ids": lambda d, m, a, p, x: d.allocate(x, [1]),
    "seq_new_lens": lambda d, m, a, p, x: d.allocate([1], x),
    "seq_id": lambda d, m, a, p, x: d.length(x),
    "num_pages": lambda d, m, a, p, x: m.allocate(x),
    "page_indices": lambda d, m, a, p, x: m.ref(x),
    "copies": lambda d, m, a, p, x: m.copy_pages(x),
    "moves": lambda d, m, a, p, x: m.move_tokens(x),
    "window": lambda d, m, a, p, x: d.set_window(1, x),
    "num_sink_tokens": lambda d, m, a, p, x: d.set_window(1, 4, x),
    "parents": lambda d, m, a, p, x: d.allocate_tree(1, x),
    "num_tokens": lambda d, m, a, p, x: d.allocate_tree(1, [-1], x),
    "path": lambda d, m, a, p, x: d.commit_tree(1, x),
    "token_indices": lambda d, m, a, p, x: d.keep(1, x),
    "keys": lambda d, m, a, p, x: m.append_kv(x, x, p, [0, 3]),
    "append_indptr_cpu": lambda d, m, a, p, x: m.append_kv(ARRAYS[3], ARRAYS[3], p, x),
    "values": lambda d, m, a, p, x: a.append_kv(ARRAYS[3], x),
    "flashinfer_data": lambda d, m, a, p, x: a.plan(x, [0, 3]),
    "qo_indptr": lambda d, m, a, p, x: a.plan(p, x),
    "q": lambda d, m, a, p, x: a.run(x),
    "layer": lambda d, m, a, p, x: a.run(ARRAYS[3], layer=x),
    "dtype": lambda d, m, a, p, x: make_manager(dtype=x),
    "device": lambda d, m, a, p, x: seqattn.PagedKVCacheManager(1, 1, 1, 8, "float32", x),
    "kv_layout": lambda d, m, a, p, x: make_manager(kv_layout=x),
    "page_size": lambda d, m, a, p, x: make_manager(page_size=x),
    "cache_manager": lambda d, m, a, p, x: seqattn.CacheDescriptor(x),
    "num_qo_heads": lambda d, m, a, p, x: seqattn.BatchAttention(m, x),
    "kv_page_indptr": lambda d, m, a, p, x: seqattn.FlashInferPackedData([], x, []),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrong, word", [(None, "None"), (1.5, "float"), (object(), "object")])
def test_a_wrong_type_is_named(name, wrong, word):
    manager, descriptor, packed, attention = build()
    with pytest.raises(TypeError, match=f"^{name}: got {word}; expected "):
        CALLS[name](descriptor, manager, attention, packed, wrong)


@pytest.mark.parametrize(
    "array, words",
    [
        (np.ones((3, 2, 8), ">f4"), "keys: got an array of dtype >f4; expected the byte order of this machine"),
        (torch.ones(3, 2, 8, device="meta"), "keys: got a tensor on device meta, which holds no data"),
        (torch.ones(3, 2, 8).to_sparse(), "keys: got a tensor of layout torch.sparse_coo; expected a dense one"),
    ],
)
def test_what_an_array_lacks_is_named(array, words):
    _, _, _, attention = build()
    with pytest.raises(TypeError, match=words):
        attention.append_kv(array, ARRAYS[3])


@pytest.mark.parametrize(
    "cache, given, words",
    [
        ("float16", np.uint16, "got uint16; expected float32 or float16$"),
        ("float32", np.float16, "got float16; expected float32$"),
        ("bfloat16", np.float64, r"got float64; expected float32 or bfloat16 \(its bits as uint16 will do\)$"),
    ],
)
def test_the_dtypes_that_are_expected_are_those_that_are_accepted(cache, given, words):
    manager = make_manager(dtype=cache)
    descriptor = seqattn.CacheDescriptor(manager)
    descriptor.allocate([0], [3])
    tokens = np.ones((3, 2, 8), given)
    with pytest.raises(seqattn.InvalidArgumentError, match="keys: " + words):
        manager.append_kv(tokens, tokens, descriptor.pack_for_flashinfer([0]), [0, 3])


def test_a_view_with_the_negative_bit_is_refused():
    _, _, _, attention = build()
    tokens = torch.ones(3, 2, 8)
    with pytest.raises(seqattn.InvalidArgumentError, match=r"keys: .*negative bit; expected tensor.resolve_neg\(\)"):
        attention.append_kv(torch._neg_view(tokens), tokens)


@pytest.mark.parametrize("indptr", [[0, 3, 2], [1, 3], [0, -1]])
def test_bad_row_bounds_are_not_blamed_on_the_mask(indptr):
    _, _, packed, attention = build()
    with pytest.raises(seqattn.InvalidArgumentError, match="^qo_indptr: "):
        attention.plan(packed, indptr, [np.ones((3, 3), bool)])


def test_a_width_of_zero_is_not_the_default():
    with pytest.raises(seqattn.InvalidArgumentError, match="head_dim_v: got 0; expected at least 1, or None"):
        make_manager(head_dim_v=0)
