"""Caches on a device without torch: CuPy stands in for numpy."""

import ml_dtypes
import numpy as np
import pytest
from cuda_support import DEVICE, torch
from support import attention_reference, run_python, tolerance

from seqattn import BatchAttention, CacheDescriptor, PagedKVCacheManager, merge_states

cupy = pytest.importorskip("cupy", reason="GPU cases: CuPy is not installed")


class Batch:
    """Two sequences in a fresh cache, planned; keys, values and queries as CuPy arrays."""

    def __init__(self, rng, dtype="float16", manager=None):
        self.manager = manager or PagedKVCacheManager(32, 16, 2, 64, dtype, 0)
        self.descriptor = CacheDescriptor(self.manager)
        self.descriptor.allocate([0, 1], [40, 3])
        self.packed = self.descriptor.pack_for_flashinfer([0, 1])
        self.attention = BatchAttention(self.manager, 8)
        self.attention.plan(self.packed, [0, 40, 43])
        self.host = [rng.standard_normal((43, heads, 64), np.float32).astype(dtype) for heads in (2, 2, 8)]
        self.keys, self.values, self.q = (cupy.asarray(x.view(np.uint16)).view(x.dtype) for x in self.host)

    def check(self, out, lse=None):
        keys, values, q = self.host
        for rows in (slice(0, 40), slice(40, 43)):
            expected, expected_lse = attention_reference(q[rows], keys[rows], values[rows])
            tol = 2 * tolerance(str(self.host[0].dtype), 40, 64, 5)
            np.testing.assert_allclose(cupy.asnumpy(out)[rows].astype(float), expected, rtol=0, atol=tol)
            if lse is not None:
                np.testing.assert_allclose(cupy.asnumpy(lse)[rows], expected_lse, rtol=0, atol=1e-3)


def test_arrays_in_and_out(rng):
    batch = Batch(rng)
    assert isinstance(batch.packed.kv_page_indices, np.ndarray)
    batch.attention.append_kv(batch.keys, batch.values)
    out, lse = batch.attention.run(batch.q, return_lse=True)
    assert isinstance(out, cupy.ndarray) and isinstance(lse, cupy.ndarray)
    assert out.dtype == np.float16 and lse.dtype == np.float32
    batch.check(out, lse)
    stored, _ = batch.manager.read_kv(batch.descriptor.pages(0), 0, 40)
    assert isinstance(stored, cupy.ndarray)
    np.testing.assert_array_equal(cupy.asnumpy(stored), batch.host[0][:40])
    given = cupy.full((43, 8, 64), np.nan, np.float32)
    assert batch.attention.run(batch.q, out=given) is given
    batch.check(given)
    merged, merged_lse = merge_states(out, lse, out, lse)
    assert isinstance(merged, cupy.ndarray) and isinstance(merged_lse, cupy.ndarray)
    cupy.testing.assert_allclose(merged, out, atol=1e-3)


def test_bfloat16(rng):
    try:
        batch = Batch(rng, ml_dtypes.bfloat16)
    except (TypeError, ValueError) as error:
        pytest.skip(f"this CuPy has no bfloat16: {error}")
    batch.attention.append_kv(batch.keys, batch.values)
    out = batch.attention.run(batch.q)
    assert out.dtype == batch.manager.key_cache.dtype == ml_dtypes.bfloat16
    batch.check(out.view(np.uint16).get().view(ml_dtypes.bfloat16))


def test_bits_of_bfloat16(rng):
    manager = PagedKVCacheManager(32, 16, 2, 64, "bfloat16", "cuda:0")
    batch = Batch(rng, manager=manager)
    host = [x.astype(ml_dtypes.bfloat16) for x in batch.host]
    keys, values = (cupy.asarray(x.view(np.uint16)) for x in host[:2])
    manager.append_kv(keys, values, batch.packed.to_device("cuda"), [0, 40, 43])
    stored, _ = manager.read_kv(batch.descriptor.pages(1), 0, 3)
    np.testing.assert_array_equal(cupy.asnumpy(stored.view(np.uint16)), host[0][40:].view(np.uint16))


def test_the_cache_is_a_live_view(rng):
    batch = Batch(rng)
    cache = batch.manager.key_cache
    assert isinstance(cache, cupy.ndarray) and cache.shape == (32, 16, 2, 64) and not cache.any()
    cache[batch.descriptor.pages(1)[0], 2] = 3
    stored, _ = batch.manager.read_kv(batch.descriptor.pages(1), 2, 1)
    assert (stored == 3).all()
    del batch
    cache[:] = 5  # holds the manager
    assert (cache == 5).all()


def test_packed_data_on_the_device(rng):
    batch = Batch(rng)
    moved = batch.packed.to_device(0)
    assert moved == batch.packed
    assert isinstance(moved.kv_page_indptr, cupy.ndarray) and moved.kv_page_indptr.dtype == np.int32
    assert moved.kv_page_indptr.tolist() == batch.packed.kv_page_indptr.tolist()


def test_a_manager_over_cupy_arrays(rng):
    storage = cupy.zeros((2, 32, 16, 2, 64), np.float16)
    manager = PagedKVCacheManager.from_tensors(storage[0], storage[1])
    batch = Batch(rng, manager=manager)
    manager.append_kv(batch.keys, batch.values, batch.packed, [0, 40, 43])
    np.testing.assert_array_equal(cupy.asnumpy(storage[0, 0]), batch.host[0][:16])


def test_work_follows_the_current_stream(rng):
    batch = Batch(rng)
    q, keys = cupy.full_like(batch.q, np.nan), cupy.full_like(batch.keys, np.nan)
    cupy.cuda.Device().synchronize()
    side = cupy.cuda.Stream(non_blocking=True)
    with torch.cuda.stream(torch.cuda.ExternalStream(side.ptr)):
        torch.cuda._sleep(100_000_000)
    with side:
        keys[:] = batch.keys
        q[:] = batch.q
        batch.attention.append_kv(keys, batch.values)
        out = batch.attention.run(q)
    assert not side.done
    side.synchronize()
    batch.check(out)


def test_torchs_tensors_are_taken_too(rng):
    batch = Batch(rng)
    keys, values, q = (torch.from_numpy(x).to(DEVICE) for x in batch.host)
    batch.attention.append_kv(keys, values)
    out = torch.empty_like(q)
    assert batch.attention.run(q, out=out) is out
    batch.check(out.cpu().numpy())
    assert isinstance(batch.attention.run(q), cupy.ndarray)


def test_without_cupy_new_arrays_are_refused_with_the_way_out():
    run_python("""
import sys, torch, seqattn
manager = seqattn.PagedKVCacheManager(4, 16, 2, 64, "float16", 0)
manager.allocate(1)
packed = seqattn.FlashInferPackedData([0], [0, 1], [3])
attention = seqattn.BatchAttention(manager, 2)
attention.plan(packed, [0, 3])
x = torch.ones(3, 2, 64, dtype=torch.float16, device="cuda:0")
attention.append_kv(x, x)
for call in (
    lambda: attention.run(x),
    lambda: manager.key_cache,
    lambda: manager.read_kv([0], 0, 3),
    lambda: packed.to_device(0),
):
    try:
        call()
    except seqattn.UnsupportedError as error:
        assert "import cupy" in str(error) and "torch dtype" in str(error)
    else:
        raise AssertionError(call)
out = torch.full_like(x, float("nan"))
attention.run(x, out=out)
torch.testing.assert_close(out, x)
assert "cupy" not in sys.modules
""")
