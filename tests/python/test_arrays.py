"""Arrays of every framework go in and out without a copy."""

import gc
import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from support import NUMPY_DTYPES, TORCH_DTYPES, DLPackArray, make_manager, to_numpy

import seqattn
from seqattn import (
    BatchAttention,
    CacheDescriptor,
    FlashInferPackedData,
    InvalidArgumentError,
    PagedKVCacheManager,
)


def planned(dtype, num_tokens=5, **options):
    """A manager with one row on pages 0 and 1, and attention planned for all its tokens."""
    manager = make_manager(dtype=dtype, **options)
    assert manager.allocate(2) == [0, 1]
    attention = BatchAttention(manager, 2)
    attention.plan(FlashInferPackedData([0, 1], [0, 2], [num_tokens - 4]), [0, num_tokens])
    return manager, attention


@pytest.mark.parametrize(
    "given,expected",
    [
        ("float32", np.float32),
        ("float16", np.float16),
        ("half", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
        (np.float16, np.float16),
        (np.dtype("float32"), np.float32),
        (ml_dtypes.bfloat16, ml_dtypes.bfloat16),
        (jnp.bfloat16, ml_dtypes.bfloat16),
        (jnp.float32, np.float32),
        (torch.float32, torch.float32),
        (torch.half, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_dtype_fixes_the_framework(given, expected):
    manager, attention = planned(given)
    is_torch = isinstance(given, torch.dtype)
    kind = torch.Tensor if is_torch else np.ndarray
    assert manager.dtype is given
    assert manager.key_cache.dtype == expected
    q = torch.ones(5, 2, 8)
    out, lse = attention.run(q, return_lse=True)
    keys, values = manager.read_kv([0], 0, 3)
    for array in (manager.key_cache, manager.value_cache, out, lse, keys, values):
        assert isinstance(array, kind)
    assert keys.dtype == expected
    assert out.dtype == (torch.float32 if is_torch else np.float32)  # q's


@pytest.mark.parametrize("dtype", ["float64", np.float64, torch.float64, torch.int32, "int8", "x"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(InvalidArgumentError, match="float32, float16, bfloat16 or float8_e4m3fn"):
        make_manager(dtype=dtype)


@pytest.mark.parametrize("dtype", [3, object(), [], ("float16", "float32"), None])
def test_what_is_no_dtype_is_refused(dtype):
    with pytest.raises((TypeError, InvalidArgumentError)):
        make_manager(dtype=dtype)


@pytest.mark.parametrize(
    "device,error",
    [
        (0, seqattn.UnsupportedError),
        ("cuda", seqattn.UnsupportedError),
        ("cuda:3", seqattn.UnsupportedError),
        (torch.device("cuda:1"), seqattn.UnsupportedError),
        (-1, InvalidArgumentError),
        ("cuda:x", InvalidArgumentError),
        ("cuda:-1", InvalidArgumentError),
        ("tpu", InvalidArgumentError),
        (torch.device("meta"), InvalidArgumentError),
        (2**70, InvalidArgumentError),
        (1.0, TypeError),
        (None, TypeError),
    ],
)
def test_devices_that_are_not_there_are_refused(device, error):
    with pytest.raises(error, match=None if device is None else "cpu"):
        PagedKVCacheManager(4, 4, 1, 8, "float16", device)


def test_a_cache_without_memory_says_how_much_it_lacked():
    with pytest.raises(MemoryError, match=r"2251799813685248 bytes of the keys .* fewer pages \(num_pages\)"):
        PagedKVCacheManager(4, 16, 1 << 20, 1 << 24, "float16", "cpu")


@pytest.mark.parametrize("name", list(NUMPY_DTYPES))
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_the_cache_is_a_live_view(name, framework):
    dtype = (NUMPY_DTYPES if framework == "numpy" else TORCH_DTYPES)[name]
    manager, attention = planned(dtype)
    manager.key_cache[0, 1] = 3
    keys, _ = manager.read_kv([0], 1, 1)
    assert (to_numpy(keys) == 3).all()
    ones = np.ones((5, 2, 8), np.float32)
    attention.append_kv(ones, 2 * ones)
    assert (to_numpy(manager.value_cache)[0] == 2).all()


def test_views_keep_the_manager_alive():
    for dtype in ("float32", "bfloat16", torch.float32):
        cache = make_manager(dtype=dtype).key_cache
        gc.collect()
        cache[:] = 7
        assert (to_numpy(cache) == 7).all()


def test_several_layers_stand_in_front():
    manager = make_manager(num_layers=3, head_dim_v=4, kv_layout="HND")
    assert manager.key_cache.shape == (3, 16, 2, 4, 8)
    assert manager.value_cache.shape == (3, 16, 2, 4, 4)
    assert (manager.num_layers, manager.head_dim_v) == (3, 4)
    assert manager.bytes_per_page == 3 * 4 * 2 * (8 + 4) * 4
    manager.key_cache[2, 5] = 1
    keys, values = manager.read_kv([5], 0, 4, layer=2)
    assert (keys == 1).all()
    assert values.shape == (4, 2, 4)


def inputs_of_every_kind(values):
    """The same float32 values as arrays of every framework."""
    padded = np.zeros((*values.shape[:-1], 12), np.float32)
    padded[..., :8] = values
    read_only = values.copy()
    read_only.flags.writeable = False
    return {
        "numpy": values,
        "numpy strided": padded[..., :8],
        "numpy read-only": read_only,
        "torch": torch.from_numpy(values),
        "torch strided": torch.from_numpy(padded)[..., :8],
        "torch that requires a gradient": torch.from_numpy(values.copy()).requires_grad_(),
        "jax": jnp.asarray(values),
        "memoryview": memoryview(values),
        "DLPack": DLPackArray(values),
        "DLPack read-only": DLPackArray(values, read_only=True),
    }


KINDS = list(inputs_of_every_kind(np.zeros((1, 1, 8), np.float32)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", ["float32", torch.float16])
def test_inputs_of_every_framework_are_read(kind, cache, rng):
    values = rng.standard_normal((5, 2, 8), np.float32)
    expected_manager, expected = planned(cache)
    expected.append_kv(values, values)
    manager, attention = planned(cache)
    array = inputs_of_every_kind(values)[kind]
    attention.append_kv(array, array)
    assert (to_numpy(manager.key_cache) == to_numpy(expected_manager.key_cache)).all()
    assert (to_numpy(attention.run(array)) == to_numpy(expected.run(values))).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.astype(ml_dtypes.bfloat16),
        lambda x: x.astype(ml_dtypes.bfloat16).view(np.uint16),
        lambda x: torch.from_numpy(x).to(torch.bfloat16),
        lambda x: jnp.asarray(x, jnp.bfloat16),
    ],
)
@pytest.mark.parametrize("cache", ["bfloat16", torch.bfloat16])
def test_bfloat16_of_every_framework_is_read(make, cache, rng):
    values = rng.standard_normal((5, 2, 8), np.float32)
    manager, attention = planned(cache)
    attention.append_kv(make(values), make(values))
    keys, _ = manager.read_kv([0, 1], 0, 5)
    assert (to_numpy(keys) == values.astype(ml_dtypes.bfloat16).astype(np.float64)).all()
    assert attention.run(make(values)).dtype == manager.key_cache.dtype


def test_a_dlpack_array_is_given_back_after_the_call(rng):
    values = rng.standard_normal((5, 2, 8), np.float32)
    array = DLPackArray(values)
    _, attention = planned("float32")
    attention.append_kv(array, array)
    gc.collect()
    assert array.exports >= 2
    assert array.deleted == array.exports


@pytest.mark.parametrize("kind", ["numpy", "numpy strided", "torch", "torch strided", "DLPack"])
def test_outputs_are_written_where_the_caller_says(kind, rng):
    values = rng.standard_normal((5, 2, 8), np.float32)
    _, attention = planned("float32")
    attention.append_kv(values, values)
    out = inputs_of_every_kind(np.full((5, 2, 8), np.nan, np.float32))[kind]
    lse = np.full((5, 2), np.nan, np.float32)
    result = attention.run(values, out=out, lse=lse)
    assert result[0] is out
    assert result[1] is lse
    expected_out, expected_lse = attention.run(values, return_lse=True)
    written = out.array if isinstance(out, DLPackArray) else np.asarray(out)
    np.testing.assert_array_equal(written, expected_out)
    np.testing.assert_array_equal(lse, expected_lse)


@pytest.mark.parametrize("kind", ["numpy read-only", "jax", "DLPack read-only"])
def test_read_only_outputs_are_refused(kind):
    values = np.ones((5, 2, 8), np.float32)
    _, attention = planned("float32")
    out = inputs_of_every_kind(values)[kind]
    with pytest.raises(InvalidArgumentError, match="read-only"):
        attention.run(values, out=out)
    with pytest.raises(InvalidArgumentError, match="read-only"):
        PagedKVCacheManager.from_tensors(jnp.ones((2, 4, 2, 8)), np.ones((2, 4, 2, 8), np.float32))


@pytest.mark.parametrize(
    "bad,error",
    [
        (None, TypeError),
        (3.0, TypeError),
        ([[[1.0]]], TypeError),
        ("text", TypeError),
        (np.ones((5, 2, 8)), InvalidArgumentError),
        (np.ones((5, 2, 8), int), InvalidArgumentError),
        (np.ones((5, 2, 8), bool), InvalidArgumentError),
        (np.ones((5, 2, 8), complex), InvalidArgumentError),
        (np.ones((5, 2, 8), ">f4"), TypeError),
        (np.ones((5, 2, 8), object), TypeError),
        (np.ones((5, 2, 9), np.float32), InvalidArgumentError),
        (np.ones((4, 2, 8), np.float32), InvalidArgumentError),
        (np.ones((5, 16), np.float32), InvalidArgumentError),
        (np.float32(1), InvalidArgumentError),
        (np.ones((1, 1, 1, 5, 2, 8), np.float32), InvalidArgumentError),
        (np.ones((5, 2, 16), np.float32)[..., ::2], InvalidArgumentError),
        (np.ones((5, 2, 8), np.float32)[..., ::-1], InvalidArgumentError),
        (np.ones((5, 2, 8), np.float16), InvalidArgumentError),
        (torch.ones(5, 2, 8, dtype=torch.float64), InvalidArgumentError),
        (torch.ones(5, 2, 8, device="meta"), (TypeError, InvalidArgumentError)),
        (DLPackArray(np.ones((5, 2, 8), np.float32), device=(2, 0)), InvalidArgumentError),
        (DLPackArray(np.ones((5, 2, 8), np.float32), device=(7, 0)), seqattn.UnsupportedError),
        (jnp.ones((5, 2, 8), jnp.int32), InvalidArgumentError),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, type) else value.__name__,
)
def test_tensors_that_do_not_fit_are_refused_everywhere(bad, error):
    good = np.ones((5, 2, 8), np.float32)
    manager, attention = planned("float32")
    for call in (
        lambda: attention.append_kv(bad, good),
        lambda: attention.append_kv(good, bad),
        lambda: attention.run(bad),
    ):
        with pytest.raises(error):
            call()
    assert not manager.key_cache.any()


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("framework", ["numpy", "torch", "DLPack"])
def test_a_manager_over_the_callers_tensors(layout, framework, rng):
    shape = (6, 4, 2, 8) if layout == "NHD" else (6, 2, 4, 8)
    keys, values = rng.standard_normal((2, *shape), np.float32)
    wrap = {"numpy": lambda x: x, "torch": torch.from_numpy, "DLPack": DLPackArray}[framework]
    given_keys, given_values = wrap(keys), wrap(values)
    manager = PagedKVCacheManager.from_tensors(given_keys, given_values, kv_layout=layout)
    assert manager.key_cache is given_keys
    assert manager.get_memory_tensors() == (given_keys, given_values)
    sizes = (manager.num_pages, manager.page_size, manager.num_heads, manager.head_dim)
    assert sizes == (6, 4, 2, 8)
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [8])
    stored, _ = manager.read_kv([0, 1], 0, 8)
    assert isinstance(stored, torch.Tensor if framework == "torch" else np.ndarray)
    pages = keys[:2] if layout == "NHD" else keys[:2].transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(stored, pages.reshape(8, 2, 8))
    attention = BatchAttention(manager, 2)
    attention.plan(descriptor.pack_for_flashinfer([0]), [0, 8])
    attention.append_kv(np.ones((8, 2, 8), np.float32), np.ones((8, 2, 8), np.float32))
    assert (keys[:2] == 1).all()


def test_the_callers_tensors_may_be_one_a_layer():
    keys = [np.ones((3, 4, 2, 8), np.float16) for _ in range(2)]
    values = [np.ones((3, 4, 2, 6), np.float16) for _ in range(2)]
    manager = PagedKVCacheManager.from_tensors(keys, tuple(values))
    assert (manager.num_layers, manager.head_dim_v) == (2, 6)
    assert manager.key_cache is keys
    manager.allocate(1)
    keys[1][0] = 5
    stored, _ = manager.read_kv([0], 0, 4, layer=1)
    assert (stored == 5).all()


def test_the_callers_tensors_are_held():
    keys = torch.ones(3, 4, 2, 8)
    alive = weakref.ref(keys)
    manager = PagedKVCacheManager.from_tensors(keys, torch.ones(3, 4, 2, 8))
    assert manager.dtype is torch.float32
    assert manager.device == torch.device("cpu")
    del keys
    gc.collect()
    assert alive() is not None
    manager.allocate(1)
    stored, _ = manager.read_kv([0], 0, 4)
    assert stored.eq(1).all()
    del manager
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    "keys,values",
    [
        ([], []),
        (np.ones((3, 4, 2, 8), np.float32), np.ones((4, 4, 2, 8), np.float32)),
        (np.ones((3, 4, 2, 8), np.float32), np.ones((3, 4, 2, 8), np.float16)),
        (np.ones((3, 4, 2), np.float32), np.ones((3, 4, 2), np.float32)),
        ([np.ones((3, 4, 2, 8), np.float32)] * 2, [np.ones((3, 4, 2, 8), np.float32)]),
        (np.ones((3, 4, 2, 0), np.float32), np.ones((3, 4, 2, 0), np.float32)),
        (np.broadcast_to(np.float32(1), (3, 4, 2, 8)),) * 2,
    ],
)
def test_callers_tensors_that_do_not_agree_are_refused(keys, values):
    with pytest.raises(InvalidArgumentError):
        PagedKVCacheManager.from_tensors(keys, values)


def test_pages_are_read_and_copied():
    manager = make_manager(num_layers=2)
    pages = manager.allocate(3)
    manager.key_cache[:, 0] = 4
    manager.copy_pages([(0, 1), seqattn.PageCopy(source=1, target=2)])
    for layer in range(2):
        keys, values = manager.read_kv(pages, 3, 9, layer=layer)
        assert (keys == 4).all() and (values == 0).all()
    for copies in ([(0, 9)], [(9, 0)], [(0, 99)], [(0,)], [(0, 1, 2)], [(0, 2**40)]):
        with pytest.raises(InvalidArgumentError):
            manager.copy_pages(copies)
    for first, count, layer in [
        (0, 13, 0),
        (-1, 2, 0),
        (0, -1, 0),
        (5, 8, 0),
        (0, 1, 2),
        (2**62,) * 3,
    ]:
        with pytest.raises(InvalidArgumentError):
            manager.read_kv(pages, first, count, layer)


def test_jax_stays_on_the_cpu():
    assert jax.default_backend() == "cpu"
