"""Caches of 8-bit elements: scales of heads and of tokens, from Python."""

import ml_dtypes
import numpy as np
import pytest
import torch
from support import attention_reference

import seqattn
from seqattn import InvalidArgumentError, PagedKVCacheManager

needs_torchs = pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no float8_e4m3fn")
every_dtype = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("float8_e4m3fn", id="name"),
        pytest.param(ml_dtypes.float8_e4m3fn, id="numpy"),
        pytest.param(getattr(torch, "float8_e4m3fn", None), id="torch", marks=needs_torchs),
    ],
)
HEADS, DIM = 2, 16


def make(dtype, scaling, kv_layout="HND"):
    manager = PagedKVCacheManager(8, 4, HEADS, DIM, dtype, "cpu", kv_layout, kv_scaling=scaling)
    if scaling == "fixed":
        manager.set_kv_scales([0.01, 0.02], 0.03)
    return manager, seqattn.CacheDescriptor(manager)


def stored(elements, scales):
    """What a cache holds of float32 elements [..., dim] under scales [...]."""
    quotients = elements * (np.float32(1) / scales)[..., None]
    return quotients.clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scales[..., None]


def scales_of(elements, scaling, fixed):
    if scaling == "fixed":
        return np.broadcast_to(np.float32(fixed), elements.shape[:-1])
    return (np.abs(elements).max(-1) / np.float32(448)).astype(np.float32)


@pytest.mark.parametrize("scaling", ["fixed", "per_token"])
@every_dtype
def test_attention_over_what_was_quantised(rng, dtype, scaling):
    manager, descriptor = make(dtype, scaling)
    assert manager.kv_scaling == scaling and manager.dtype is dtype
    keys, values = rng.standard_normal((2, 11, HEADS, DIM), np.float32)
    q = rng.standard_normal((11, 4, DIM), np.float32)
    descriptor.allocate([1], [11])
    attention = seqattn.BatchAttention(manager, 4)
    attention.plan(descriptor.pack_for_flashinfer([1]), [0, 11])
    give = torch.from_numpy if isinstance(dtype, torch.dtype) else np.asarray
    attention.append_kv(give(keys), give(values))
    expected_keys = stored(keys, scales_of(keys, scaling, [0.01, 0.02]))
    expected_values = stored(values, scales_of(values, scaling, [0.03, 0.03]))
    for got, expected in zip(manager.read_kv(descriptor.pages(1), 0, 11), (expected_keys, expected_values)):
        np.testing.assert_array_equal(np.asarray(got), expected)
    out, lse = attention.run(give(q), return_lse=True)
    expected, expected_lse = attention_reference(q, expected_keys, expected_values)
    np.testing.assert_allclose(np.asarray(out), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.asarray(lse), expected_lse, rtol=0, atol=1e-5)


@every_dtype
def test_the_cache_and_its_scales_are_live_views(rng, dtype):
    manager, descriptor = make(dtype, "per_token")
    descriptor.allocate([1], [2])
    keys = rng.standard_normal((2, HEADS, DIM), np.float32)
    manager.write_kv(descriptor.pages(1), 0, torch.from_numpy(keys), torch.from_numpy(keys))
    cache, scales = manager.key_cache, manager.key_scales()
    if isinstance(dtype, torch.dtype):
        assert cache.dtype == torch.float8_e4m3fn and scales.dtype == torch.float32
        cache, scales = cache.float().numpy(), scales.numpy()
    assert cache.shape == (8, HEADS, 4, DIM) and scales.shape == (8, HEADS, 4)
    product = cache.astype(np.float32)[0, :, :2] * scales[0, :, :2, None]
    np.testing.assert_array_equal(product, manager.read_kv([0], 0, 2)[0].swapaxes(0, 1))


@pytest.mark.parametrize("kind", ["numpy", pytest.param("torch", marks=needs_torchs)])
def test_over_the_callers_tensors(rng, kind):
    if kind == "torch":
        keys, values = (torch.zeros(8, 4, HEADS, DIM, dtype=torch.float8_e4m3fn) for _ in range(2))
        scales = [torch.zeros(8, 4, HEADS) for _ in range(2)]
    else:
        keys, values = np.zeros((2, 8, 4, HEADS, DIM), ml_dtypes.float8_e4m3fn)
        scales = np.zeros((2, 8, 4, HEADS), np.float32)
    manager = PagedKVCacheManager.from_tensors(keys, values, key_scales=scales[0], value_scales=scales[1])
    assert manager.kv_scaling == "per_token"
    assert manager.key_cache is keys
    pages = manager.allocate(1)
    x = rng.standard_normal((3, HEADS, DIM), np.float32)
    manager.write_kv(pages, 0, torch.from_numpy(x), torch.from_numpy(x))
    np.testing.assert_array_equal(np.asarray(scales[0])[pages[0], :3], scales_of(x, "per_token", None))
    fixed = PagedKVCacheManager.from_tensors(keys, values)
    assert fixed.kv_scaling == "fixed"
    with pytest.raises(InvalidArgumentError, match="key_scales, value_scales: got one of them alone"):
        PagedKVCacheManager.from_tensors(keys, values, key_scales=scales[0])


def test_what_is_wrong_is_said():
    manager, descriptor = make("float8_e4m3fn", "fixed")
    x = np.zeros((4, HEADS, DIM), ml_dtypes.float8_e4m3fn)
    descriptor.allocate([1], [4])
    plain = PagedKVCacheManager(8, 4, HEADS, DIM, "float16", "cpu")
    assert plain.kv_scaling is None
    for error, text, call in [
        (InvalidArgumentError, "keys: got float8_e4m3fn, which is for", lambda: manager.write_kv([0], 0, x, x)),
        (InvalidArgumentError, "1 pages are in use", lambda: manager.set_kv_scales(1, 1)),
        (InvalidArgumentError, "has no scales", lambda: plain.key_scales()),
        (InvalidArgumentError, "kv_scaling: got 'per_page'; expected 'fixed'", lambda: make("float16", "per_page")),
        (InvalidArgumentError, "kv_scaling: got 'per_token' for float16", lambda: make("float16", "per_token")),
        (InvalidArgumentError, "dtype: got float8_e5m2; expected", lambda: make("float8_e5m2", "fixed")),
        (TypeError, "kv_scaling: got int", lambda: make("float16", 3)),
        (TypeError, "key_scales: got str", lambda: plain.set_kv_scales("one", 1)),
        (TypeError, "key_scales: got bytes", lambda: plain.set_kv_scales(b"ab", 1)),
        (TypeError, "value_scales: got set", lambda: plain.set_kv_scales(1, {1, 2})),
        (TypeError, "value_scales: got str; expected a number", lambda: plain.set_kv_scales(1, ["one"])),
        (InvalidArgumentError, "key_scales: got 1e.39; expected 0 or a number", lambda: plain.set_kv_scales(1e39, 1)),
    ]:
        with pytest.raises(error, match=text):
            call()


@pytest.mark.parametrize("number", [0.5, np.array(0.5), np.float32(0.5), torch.tensor(0.5), [0.5] * 2, np.full(2, 0.5)])
def test_what_scales_of_heads_are_set_to(number):
    manager, descriptor = make("float8_e4m3fn", "fixed")
    manager.set_kv_scales(number, number)
    np.testing.assert_array_equal(manager.key_scales(), [0.5, 0.5])
    with pytest.raises(ValueError, match="read-only"):
        manager.key_scales()[:] = 0


@pytest.mark.parametrize("scaling", ["fixed", "per_token"])
def test_states_go_between_caches(rng, scaling):
    manager, descriptor = make("float8_e4m3fn", scaling)
    x = rng.standard_normal((9, HEADS, DIM), np.float32)
    descriptor.allocate([1], [9])
    manager.write_kv(descriptor.pages(1), 0, x, x)
    state = seqattn.save_sequence(descriptor, 1)
    assert seqattn.sequence_state_info(state).dtype == "float8_e4m3fn"
    _, other = make("float8_e4m3fn", scaling, "NHD")
    seqattn.restore_sequence(other, 5, state)
    assert seqattn.save_sequence(other, 5) == state
    plain = PagedKVCacheManager(8, 2, HEADS, DIM, "float32", "cpu")
    floats = seqattn.CacheDescriptor(plain)
    seqattn.restore_sequence(floats, 1, state)
    for got, expected in zip(plain.read_kv(floats.pages(1), 0, 9), manager.read_kv(descriptor.pages(1), 0, 9)):
        np.testing.assert_array_equal(got, expected)
