"""Device work is ordered on torch's current stream: after what was put there before, and on no other."""

import threading

import numpy as np
import pytest
from cuda_support import DEVICE, Layer, keep_busy, on_host, torch
from support import attention_reference, tolerance

import seqattn
from seqattn import BatchAttention, CacheDescriptor, PagedKVCacheManager

NAN = float("nan")


def late(tensor):
    """NaN at first, and the tensor's values once the current stream has come so far."""
    result = torch.full_like(tensor, NAN)
    torch.cuda.synchronize()
    keep_busy()
    result.copy_(tensor)
    return result


@pytest.fixture
def side():
    torch.cuda.synchronize()
    stream = torch.cuda.Stream(DEVICE)
    yield stream
    torch.cuda.synchronize()


def test_append_and_run_follow_the_current_stream(side, rng):
    layer = Layer(rng)
    batch = {0: 40, 1: 3}
    keys, values, q = layer.plan(batch)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        layer.attention.append_kv(late(keys), values)
        out, lse = layer.attention.run(late(q), return_lse=True)
        assert not side.query()  # nobody waited
    side.synchronize()
    layer.check(batch, q, out, lse)
    layer.check_cache()


def test_the_default_stream_does_not_wait(side, rng):
    layer = Layer(rng)
    layer.step({0: 20})
    keys, values, q = layer.plan({0: 1})
    with torch.cuda.stream(side):
        keep_busy()
    layer.attention.append_kv(keys, values)
    out = layer.attention.run(q)
    torch.cuda.default_stream().synchronize()
    assert not side.query()
    layer.check({0: 1}, q, out)


def test_plan_and_page_copies_follow_the_current_stream(side, rng):
    layer = Layer(rng)
    layer.step({0: 20})
    layer.fork(0, 1, 18)
    layer.fork(0, 2, 20)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        page = layer.descriptor.pages(0)[1]
        stored = layer.manager.key_cache[page].clone()
        layer.manager.key_cache[page] = NAN
        keep_busy()
        layer.manager.key_cache[page] = stored  # the copies have to come after this
        batch = {1: 3, 2: 1}
        keys, values, q = layer.plan(batch)
        layer.attention.append_kv(keys, values)
        out = layer.attention.run(q)
    side.synchronize()
    layer.check(batch, q, out)
    layer.check_cache()


def test_reads_and_merges_follow_the_current_stream(side, rng):
    layer = Layer(rng)
    layer.step({0: 20})
    values = layer.random(20, 2)
    lse = torch.zeros(20, 2, device=DEVICE)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        layer.manager.key_cache.copy_(late(torch.full_like(layer.manager.key_cache, 3)))
        stored, _ = layer.manager.read_kv(layer.descriptor.pages(0), 0, 20)
        merged, _ = seqattn.merge_states(late(values), lse, values, lse)
    side.synchronize()
    assert stored.eq(3).all()
    torch.testing.assert_close(merged, values)


def test_storage_is_zero_for_the_stream_that_was_current(side):
    with torch.cuda.stream(side):
        keep_busy()
        manager = PagedKVCacheManager(64, 16, 2, 64, torch.float16, DEVICE)
        manager.allocate(64)
        keys, values = manager.read_kv(range(64), 0, 1024)
    side.synchronize()
    assert not keys.any() and not values.any()


def test_two_threads_with_two_streams(rng):
    """One cache, a descriptor, an attention and a stream for each thread; what uses the pool holds a lock."""
    manager = PagedKVCacheManager(512, 16, 2, 64, torch.float16, DEVICE)
    lock, failures = threading.Lock(), []
    seeds = rng.integers(2**31, size=2)

    def work(seed):
        try:
            random = np.random.default_rng(seed)
            descriptor, attention = CacheDescriptor(manager), BatchAttention(manager, 4)
            with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
                for step in range(50):
                    count = 1 if step % 3 else 30
                    keys, values, q = (
                        torch.from_numpy(random.standard_normal((count, heads, 64), np.float32)).to(DEVICE).half()
                        for heads in (2, 2, 4)
                    )
                    with lock:
                        descriptor.allocate([step], [count])
                        attention.plan(descriptor.pack_for_flashinfer([step]), [0, count])
                        attention.append_kv(keys, values)
                    out = attention.run(q)
                    torch.cuda.current_stream().synchronize()
                    expected, _ = attention_reference(*(on_host(x) for x in (q, keys, values)))
                    tol = 2 * tolerance("float16", count, 64, 5)
                    np.testing.assert_allclose(on_host(out), expected, rtol=0, atol=tol)
                with lock:
                    descriptor.clear()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert manager.available_pages_count == 512
