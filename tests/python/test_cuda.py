"""The package on a CUDA device with torch: cache, attention, packed data, what is refused."""

import gc

import numpy as np
import pytest
from cuda_support import DEVICE, DTYPES, Layer, on_host, torch
from support import attention_reference, main_thread_runs_during, tolerance

import seqattn
from seqattn import (
    BatchAttention,
    CacheDescriptor,
    FlashInferPackedData,
    InvalidArgumentError,
    PagedKVCacheManager,
    UnsupportedError,
)


def test_original_quick_start(rng):
    from seqattn import CacheDescriptor, PagedKVCacheManager

    # Initialize cache manager
    cache_manager = PagedKVCacheManager(
        num_pages=1024,
        page_size=16,
        num_heads=32,
        head_dim=128,
        dtype=torch.float16,
        device=torch.cuda.current_device(),
    )

    # Create sequence descriptor
    descriptor = CacheDescriptor(cache_manager)

    # Allocate for sequences
    seq_ids = [1, 2, 3]
    seq_lengths = [100, 150, 80]
    descriptor.allocate(seq_ids, seq_lengths)

    # Pack for flashinfer
    flashinfer_data = descriptor.pack_for_flashinfer(seq_ids)

    # And on from there: keys and values in, attention out.
    indptr = torch.tensor([0, 100, 250, 330], dtype=torch.int32)
    keys, values, q = (torch.from_numpy(x).to(DEVICE) for x in rng.standard_normal((3, 330, 32, 128), np.float32))
    cache_manager.append_kv(keys, values, flashinfer_data, indptr)
    attention = BatchAttention(cache_manager, 32)
    attention.plan(flashinfer_data, indptr)
    out = attention.run(q.half())
    for begin, end in zip(indptr[:-1], indptr[1:], strict=True):
        rows = slice(int(begin), int(end))
        expected, _ = attention_reference(*(on_host(x[rows].half()) for x in (q, keys, values)))
        np.testing.assert_allclose(on_host(out[rows]), expected, rtol=0, atol=2 * tolerance("float16", 150, 128, 5))


@pytest.mark.parametrize("scaling", ["fixed", "per_token"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_cache_of_8_bits_is_that_of_a_cpu(dtype, scaling, rng):
    keys, values, q = rng.standard_normal((3, 70, 8, 64), np.float32)
    outs, caches = [], []
    for device in ("cpu", DEVICE):
        manager = PagedKVCacheManager(16, 16, 2, 64, torch.float8_e4m3fn, device, kv_scaling=scaling)
        if scaling == "fixed":
            manager.set_kv_scales([0.01, 0.02], 0.015)
        descriptor = CacheDescriptor(manager)
        descriptor.allocate([1, 2], [40, 30])
        attention = BatchAttention(manager, 8)
        results = []
        # A prompt, then a token of each: FlashInfer's kernels, and our own where there is one.
        for begin, lengths in ((0, [30, 38]), (68, [1, 1])):
            tokens = slice(begin, begin + sum(lengths))
            if begin == 0:
                descriptor.truncate(1, 30)
                descriptor.allocate([2], [8])
            else:
                descriptor.allocate_decoding([1, 2])
            attention.plan_sequences(descriptor, [1, 2], [0, lengths[0], sum(lengths)])
            k, v, x = (torch.from_numpy(a[tokens]).to(device, DTYPES[dtype]) for a in (keys, values, q))
            attention.append_kv(k[:, :2].contiguous(), v[:, :2].contiguous())
            results.append(on_host(attention.run(x)).astype(np.float32))
        outs.append(np.concatenate(results))
        caches.append([on_host(a.view(torch.uint8)) for a in (manager.key_cache, manager.value_cache)])
    for on_cpu, on_gpu in zip(*caches, strict=True):
        np.testing.assert_array_equal(on_gpu, on_cpu)
    np.testing.assert_allclose(outs[1], outs[0], rtol=0, atol=0.05 if dtype == "bfloat16" else 0.01)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("heads,group,head_dim", [(2, 4, 64), (1, 9, 128), (3, 1, 256)])
def test_prefill_decode_and_forks(dtype, layout, heads, group, head_dim, rng):
    layer = Layer(rng, dtype, layout, heads, group, head_dim)
    layer.step({0: 1, 1: 37, 2: 300})
    layer.step({0: 1, 1: 1, 2: 1, 3: 20})
    layer.fork(1, 10, 35)  # a page of both that is partly filled: copied when one of them grows
    layer.fork(2, 11, 301)
    layer.step({1: 1, 10: 4, 11: 150, 2: 2})
    layer.descriptor.release([1])
    del layer.held[1]
    layer.step({10: 1, 11: 1, 2: 0, 0: 1})
    layer.step({0: 1})
    layer.check_cache()


def test_a_cache_of_one_page_and_one_head(rng):
    manager = PagedKVCacheManager(1, 16, 1, 64, torch.float16, DEVICE)
    layer = Layer(rng, heads=1, group=1, manager=manager)
    for _ in range(3):
        layer.step({0: 1})


@pytest.mark.parametrize("device", [0, "cuda:0", "cuda", torch.device("cuda"), torch.device("cuda:0"), np.int64(0)])
def test_names_of_a_device(device):
    manager = PagedKVCacheManager(4, 16, 2, 64, torch.float16, device)
    assert manager.device is device
    assert manager.key_cache.device == DEVICE


def test_storage_is_counted_by_torch():
    gc.collect()
    before = torch.cuda.memory_allocated()
    manager = PagedKVCacheManager(256, 16, 4, 128, torch.bfloat16, DEVICE, num_layers=3)
    size = 256 * manager.bytes_per_page
    assert torch.cuda.memory_allocated() - before == size
    keys, values = manager.get_memory_tensors()
    assert keys.shape == values.shape == (3, 256, 16, 4, 128)
    assert keys.dtype == torch.bfloat16 and keys.device == DEVICE
    assert not keys.any() and not values.any()
    assert keys is manager.key_cache
    del keys, values, manager
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_the_cache_is_live():
    manager = PagedKVCacheManager(4, 16, 2, 64, torch.float16, DEVICE, num_layers=2)
    pages = manager.allocate(2)
    manager.key_cache[1, 1, 3] = 5
    keys, values = manager.read_kv(pages, 19, 1, layer=1)
    assert keys.eq(5).all() and values.eq(0).all()
    manager.copy_pages([(1, 0)])
    assert manager.key_cache[1, 0, 3].eq(5).all()


def test_a_manager_over_strided_views(rng):
    storage = torch.full((20, 2, 16, 2, 64), 9.0, dtype=torch.float16, device=DEVICE)
    manager = PagedKVCacheManager.from_tensors(storage[:, 0], storage[:, 1])
    assert manager.key_cache.data_ptr() == storage.data_ptr()
    layer = Layer(rng, manager=manager)
    layer.step({0: 40, 1: 3})
    layer.step({0: 1, 1: 1})
    layer.check_cache()
    assert storage[5:].eq(9).all()


def test_outputs_and_gradients(rng):
    layer = Layer(rng)
    batch = {0: 20, 1: 5}
    keys, values, q = layer.plan(batch)
    layer.attention.append_kv(keys.float().requires_grad_(), values.float())
    out = torch.full((25, 8, 64), float("nan"), device=DEVICE)
    lse = torch.full((25, 8), float("nan"), device=DEVICE)
    result = layer.attention.run(q.clone().requires_grad_(), out=out, lse=lse)
    assert result[0] is out and result[1] is lse and not out.requires_grad
    layer.check(batch, q, out, lse)


def test_merged_states_are_those_of_the_whole(rng):
    layer = Layer(rng, causal=False)
    keys, values, _ = layer.plan({0: 90})
    layer.attention.append_kv(keys, values)
    q = layer.random(3, 8)
    pages, parts = layer.descriptor.pages(0), []
    for first, last, last_page_len in ((0, 2, 16), (2, 6, 10)):
        layer.attention.plan(FlashInferPackedData(pages[first:last], [0, last - first], [last_page_len]), [0, 3])
        parts += layer.attention.run(q, return_lse=True)
    out, lse = seqattn.merge_states(*parts)
    assert out.device == lse.device == DEVICE and out.dtype == torch.float16
    layer.check({0: 3}, q, out, lse)


def test_packed_data_on_the_device(rng):
    layer = Layer(rng)
    keys, values, q = layer.plan({0: 40, 1: 3})
    packed = layer.descriptor.pack_for_flashinfer([0, 1])
    moved = packed.to_device(DEVICE, non_blocking=True)
    assert isinstance(moved, FlashInferPackedData) and moved == packed
    for name in ("kv_page_indices", "kv_page_indptr", "kv_last_page_len"):
        tensor = getattr(moved, name)
        assert tensor.device == DEVICE and tensor.dtype == torch.int32
        assert tensor.tolist() == getattr(packed, name).tolist()
    layer.manager.append_kv(keys, values, moved, [0, 40, 43])
    layer.attention.plan(moved, [0, 40, 43])
    layer.check({0: 40, 1: 3}, q, layer.attention.run(q))
    back = moved.to_device("cpu")
    assert back == packed and back.kv_page_indices.device == torch.device("cpu")


def test_integers_and_masks_on_a_device_are_refused_with_the_way_out(rng):
    layer = Layer(rng)
    keys, values, _ = layer.plan({0: 4})
    packed = layer.descriptor.pack_for_flashinfer([0])
    indptr = torch.tensor([0, 4], device=DEVICE)
    mask = torch.ones(4, 4, dtype=torch.bool, device=DEVICE)
    for call in (
        lambda: layer.attention.plan(packed, indptr),
        lambda: layer.attention.plan(packed, [0, 4], [mask]),
        lambda: layer.manager.append_kv(keys, values, packed, indptr),
        lambda: layer.descriptor.release(indptr),
        lambda: FlashInferPackedData(*(torch.tensor(x, device=DEVICE) for x in ([0], [0, 1], [4]))),
    ):
        with pytest.raises(InvalidArgumentError, match=r"on a device.*tensor\.cpu\(\)"):
            call()


def test_a_mask(rng):
    layer = Layer(rng)
    keys, values, q = layer.plan({0: 12})
    layer.attention.append_kv(keys, values)
    mask = torch.from_numpy(rng.random((12, 12)) < 0.6)
    layer.attention.plan(layer.descriptor.pack_for_flashinfer([0]), [0, 12], [mask.pin_memory()])
    expected, _ = attention_reference(*(on_host(x) for x in (q, keys, values)), mask=mask.numpy())
    np.testing.assert_allclose(
        on_host(layer.attention.run(q)), expected, rtol=0, atol=2 * tolerance("float16", 12, 64, 4)
    )


def test_what_does_not_fit_is_refused(rng):
    layer = Layer(rng)
    keys, values, q = layer.plan({0: 4})
    attention = layer.attention
    for call in (
        lambda: attention.run(q.cpu()),
        lambda: attention.run(q, out=torch.empty(4, 8, 64, dtype=torch.float16)),
        lambda: attention.run(q, lse=torch.empty(4, 8)),
        lambda: attention.run(q[:3]),
        lambda: attention.append_kv(keys.cpu(), values),
        lambda: attention.append_kv(keys.to(torch.bfloat16), values),
        lambda: PagedKVCacheManager(-1, 16, 2, 64, torch.float16, DEVICE),
        lambda: PagedKVCacheManager(4, 0, 2, 64, torch.float16, DEVICE),
        lambda: PagedKVCacheManager(4, 16, 2, 64, torch.float16, -1),
        lambda: BatchAttention(layer.manager, 3),
    ):
        with pytest.raises(InvalidArgumentError):
            call()
    assert not layer.manager.key_cache.any()
    beyond = torch.cuda.device_count()
    for call in (
        lambda: PagedKVCacheManager(4, 16, 2, 64, torch.float32, DEVICE),
        lambda: PagedKVCacheManager(4, 16, 2, 60, torch.float16, DEVICE),
        lambda: PagedKVCacheManager(4, 16, 2, 64, torch.float16, beyond),
        lambda: BatchAttention(PagedKVCacheManager(4, 16, 2, 72, torch.float16, DEVICE), 2),
        lambda: layer.descriptor.pack_for_flashinfer([0]).to_device(beyond),
        lambda: attention.run(q.float()),
    ):
        with pytest.raises(UnsupportedError):
            call()


def test_a_saved_sequence_moves_between_devices(rng):
    layer = Layer(rng, layout="HND")
    layer.step({1: 300})
    state = seqattn.save_sequence(layer.descriptor, 1)
    on_cpu = CacheDescriptor(PagedKVCacheManager(40, 8, 2, 64, torch.float16, "cpu"))
    seqattn.restore_sequence(on_cpu, 7, state)
    assert seqattn.save_sequence(on_cpu, 7) == state
    seqattn.restore_sequence(layer.descriptor, 2, state)
    assert seqattn.save_sequence(layer.descriptor, 2) == state
    layer.held[2] = layer.held[1]
    layer.step({1: 1, 2: 1})  # both go on
    layer.check_cache()


def test_plan_and_append_leave_the_gil(rng):
    manager = PagedKVCacheManager(20_000, 1, 1, 64, torch.float16, DEVICE)
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [20_000])
    packed = descriptor.pack_for_flashinfer([0])
    attention = BatchAttention(manager, 1)
    tokens = torch.ones(20_000, 1, 64, dtype=torch.float16, device=DEVICE)
    assert main_thread_runs_during(lambda: attention.plan(packed, [0, 20_000]))
    assert main_thread_runs_during(lambda: manager.append_kv(tokens, tokens, packed, [0, 20_000]))
