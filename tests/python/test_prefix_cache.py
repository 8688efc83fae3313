"""A prefix cache in Python: what is found, shared and kept, and what is refused."""

import gc
import weakref

import numpy as np
import pytest
import torch
from prefix_caches import make, store
from support import attention_reference, make_manager, refused, run_python, snapshot, tolerance

import seqattn
from seqattn import CacheDescriptor, InvalidArgumentError, PagePool, PrefixCache, UnknownSequenceError


def test_a_sequence_starts_over_what_another_one_left():
    pool, descriptor, cache = make()
    pages = store(descriptor, cache, range(8))
    with cache.match([*range(6), 50, 51]) as handle:
        assert handle and handle.num_tokens == 6 and handle.pages == pages
        assert repr(handle) == "PrefixHandle(num_tokens=6, num_pages=2)"
        cache.attach(descriptor, 1, handle)
    assert not handle and handle.num_tokens == 0 and handle.pages == []
    assert descriptor.allocate([1], [2]) == [(pages[1], descriptor.pages(1)[1])]
    assert cache.insert(descriptor, 1, [*range(6), 50, 51]) == 1
    assert cache.match(range(8)).num_tokens == 7
    assert cache.stats().num_tokens_found == 13
    assert repr(cache) == "PrefixCache(num_pages=3, num_nodes=3, num_pinned_pages=0)"
    cache.check_invariants()
    descriptor.check_invariants()


@pytest.mark.parametrize(
    "as_tokens", [list, tuple, np.array, lambda t: np.array(t, np.int32), torch.tensor, lambda t: (x for x in t)]
)
def test_tokens_are_any_integers_in_order(as_tokens):
    _, descriptor, cache = make()
    descriptor.allocate([1], [8])
    assert cache.insert(descriptor, 1, as_tokens([*range(8)])) == 2
    assert cache.match(as_tokens([*range(9)])).num_tokens == 8


def test_salts_never_meet():
    _, descriptor, cache = make()
    store(descriptor, cache, range(8), "tenant")
    assert not cache.match(range(9)) and not cache.match(range(9), b"tenant\0")
    assert cache.match(range(9), "tenant").num_tokens == 8
    assert cache.match(range(9), b"tenant").num_tokens == 8
    store(descriptor, cache, range(8), b"\xff\0")
    assert cache.match(range(9), b"\xff\0").num_tokens == 8


def test_a_sequence_that_dropped_tokens_is_refused_with_the_way_out():
    _, descriptor, cache = make()
    descriptor.allocate([1], [12])
    descriptor.set_window(1, 4)
    assert cache.insert(descriptor, 1, range(8)) == 2  # behind its prefill
    descriptor.allocate([1], [1])
    descriptor.allocate([2], [8])
    descriptor.keep(2, [0, 5])
    before = snapshot(descriptor), cache.stats()
    for seq_id in (1, 2):
        with pytest.raises(InvalidArgumentError, match="insert it earlier, as a prompt behind its prefill"):
            cache.insert(descriptor, seq_id, [1])
        assert (snapshot(descriptor), cache.stats()) == before


def test_what_is_wrong_is_said_and_changes_nothing():
    pool, descriptor, cache = make()
    _, foreign, other = make()
    descriptor.allocate([1], [8])
    store(descriptor, cache, range(20, 24))
    handle = cache.match(range(20, 25))
    before = snapshot(descriptor), cache.stats()
    for error, text, call in [
        (UnknownSequenceError, "77", lambda: cache.insert(descriptor, 77, [])),
        (InvalidArgumentError, "got 9 for sequence 1 of length 8", lambda: cache.insert(descriptor, 1, range(9))),
        (InvalidArgumentError, "another pool", lambda: cache.insert(foreign, 1, [])),
        (InvalidArgumentError, "ttl: got 0 seconds; expected", lambda: cache.insert(descriptor, 1, range(4), ttl=0)),
        (InvalidArgumentError, "ttl: got -1.5 seconds", lambda: cache.insert(descriptor, 1, range(4), ttl=-1.5)),
        (InvalidArgumentError, "a nanosecond, or None", lambda: cache.insert(descriptor, 1, range(4), ttl=9e-10)),
        (InvalidArgumentError, "ttl: got NaN", lambda: cache.insert(descriptor, 1, range(4), ttl=float("nan"))),
        (InvalidArgumentError, "tokens: got 2147483648", lambda: cache.match([2**31])),
        (InvalidArgumentError, "another pool", lambda: cache.attach(foreign, 2, handle)),
        (InvalidArgumentError, "another cache", lambda: other.attach(foreign, 2, handle)),
        (InvalidArgumentError, "exists", lambda: cache.attach(descriptor, 1, handle)),
        (InvalidArgumentError, "num_pages: got -1", lambda: cache.evict(-1)),
        (InvalidArgumentError, "has a reclaimer", lambda: PrefixCache(pool)),
        (InvalidArgumentError, "event_capacity: got -1", lambda: PrefixCache(PagePool(4), event_capacity=-1)),
        (InvalidArgumentError, "has a PrefixCache", lambda: pool.set_reclaimer(print)),
        (TypeError, "tokens: got str", lambda: cache.match("words")),
        (TypeError, "salt: got int", lambda: cache.match([1], 5)),
        (TypeError, "ttl: got str", lambda: cache.insert(descriptor, 1, range(4), ttl="soon")),
        (TypeError, "handle: got list", lambda: cache.attach(descriptor, 2, [])),
        (TypeError, "descriptor: got seqattn.PagePool;", lambda: cache.attach(pool, 2, handle)),
        (TypeError, "expected a PagedKVCacheManager or a PagePool", lambda: PrefixCache(descriptor)),
        (TypeError, "clock: got float", lambda: PrefixCache(PagePool(4), clock=1.0)),
    ]:
        with pytest.raises(error, match=text):
            call()
        assert (snapshot(descriptor), cache.stats()) == before
    pool.set_reclaimer(None)  # which was none of Python's
    handle.release()
    with pytest.raises(InvalidArgumentError, match="released"):
        cache.attach(descriptor, 2, handle)
    assert descriptor.try_allocate([2], [24])
    assert cache.stats().num_pages == 0


def test_a_released_handle_does_not_keep_the_cache():
    pool, descriptor, cache = make()
    store(descriptor, cache, range(8))
    with cache.match(range(9)) as handle:
        assert handle.num_tokens == 8
    del cache
    assert pool.available_pages_count == pool.num_pages
    assert PrefixCache(pool).stats().num_pages == 0
    assert not handle and handle.num_tokens == 0


def test_pages_of_one_salt_are_never_found_under_another():
    _, descriptor, cache = make()
    for salt in ("a", "b"):
        store(descriptor, cache, range(4), salt)
    cache.attach(descriptor, 1, cache.match(range(5), "a"))
    descriptor.allocate([1], [4])
    before = snapshot(descriptor), cache.stats()
    for count in (4, 8):
        with pytest.raises(InvalidArgumentError, match="page . at entry 0 of the sequence is cached already"):
            cache.insert(descriptor, 1, range(count), "b")
    assert (snapshot(descriptor), cache.stats()) == before
    assert cache.insert(descriptor, 1, range(8), "a") == 1


def test_the_cache_keeps_its_pool_and_goes_before_it():
    pool, descriptor, cache = make()
    store(descriptor, cache, range(8))
    handle = cache.match(range(9))
    assert cache.cache_manager is pool
    gone = weakref.ref(cache) if hasattr(cache, "__weakref__") else None
    del cache
    gc.collect()
    assert pool.available_pages_count == 6 and handle.num_tokens == 8  # the handle keeps the cache
    del handle
    gc.collect()
    assert pool.available_pages_count == 8 and (gone is None or gone() is None)
    PrefixCache(pool)  # the pool has no reclaimer any more


def test_a_cycle_through_the_clock_is_collected():
    class Engine:
        def __init__(self):
            self.pool, self.descriptor, self.cache = make(clock=self.now)
            store(self.descriptor, self.cache, range(8))
            self.handle = self.cache.match(range(9))

        def now(self):
            return 0.0

    engine = Engine()
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


def test_the_interpreter_ends_with_everything_alive():
    code = (
        "import seqattn; pool = seqattn.PagePool(8, 4); d = seqattn.CacheDescriptor(pool);"
        "cache = seqattn.PrefixCache(pool, clock=lambda: 0.0); d.allocate([1], [8]);"
        "cache.insert(d, 1, range(8)); handle = cache.match(range(9)); print(handle.num_tokens)"
    )
    assert run_python(code).strip() == "8"


def test_attention_over_a_shared_prefix_is_what_it_is_without(rng):
    manager = make_manager(num_pages=12)
    descriptor, cache = CacheDescriptor(manager), PrefixCache(manager)
    attention = seqattn.BatchAttention(manager, 4)
    memory = {}
    for seq_id in range(30):
        tokens = tuple(int(t) for t in rng.random(rng.integers(1, 24)) < 0.1)
        for n in range(len(tokens)):
            memory.setdefault(tokens[: n + 1], rng.standard_normal((2, 2, 8), np.float32))
        keys, values = np.stack([memory[tokens[: n + 1]] for n in range(len(tokens))], 1)
        with cache.match(tokens) as handle:
            cache.attach(descriptor, seq_id, handle)
            num_new = len(tokens) - handle.num_tokens
        descriptor.allocate([seq_id], [num_new])
        attention.plan(descriptor.pack_for_flashinfer([seq_id]), [0, num_new])
        attention.append_kv(keys[-num_new:].copy(), values[-num_new:].copy())
        q = rng.standard_normal((num_new, 4, 8), np.float32)
        out = np.full_like(q, np.nan)
        attention.run(q, out)
        expected, _ = attention_reference(q, keys, values)
        limit = tolerance("float32", len(tokens), 8, float(np.abs(values).max()))
        np.testing.assert_allclose(out, expected, rtol=0, atol=limit)
        cache.insert(descriptor, seq_id, tokens)
        descriptor.release([seq_id])
        cache.check_invariants()
    assert cache.stats().num_tokens_found > 50 and cache.stats().num_pages_evicted > 5


def test_what_is_cached_is_never_written():
    manager = make_manager(num_pages=8, page_size=4)
    descriptor, cache = CacheDescriptor(manager), PrefixCache(manager.pool)
    descriptor.allocate([1], [8])
    stale = descriptor.pack_for_flashinfer([1])
    shape = (8, manager.num_heads, manager.head_dim)
    keys = np.ones(shape, np.float32)
    manager.append_kv(keys, keys, stale, [0, 8])
    cache.insert(descriptor, 1, range(8))
    descriptor.release([1])
    with pytest.raises(InvalidArgumentError, match="page 0 is in a prefix cache"):
        manager.append_kv(2 * keys, keys, stale, [0, 8])
    with cache.pin(range(8)) as handle:
        with pytest.raises(InvalidArgumentError, match="page 0 is in a prefix cache"):
            manager.write_kv(handle.pages, 0, 2 * keys, keys)
        with pytest.raises(InvalidArgumentError, match="a prefix cache among them"):
            descriptor.adopt(2, handle.pages, 8)
        found, _ = manager.read_kv(handle.pages, 0, 8)
    assert (np.asarray(found, np.float32) == 1).all()
    assert manager.pool.is_cached(0) and not manager.pool.is_cached(2)
    cache.check_invariants()


def test_equal_pages_behind_different_prefixes_are_different_pages():
    manager = make_manager(num_pages=8, page_size=4)
    descriptor, cache = CacheDescriptor(manager), PrefixCache(manager)
    first, second, block = [0, 1, 2, 3], [20, 21, 22, 23], [50, 51, 52, 53]
    pages = {}
    for seq_id, front in enumerate((first, second)):
        descriptor.allocate([seq_id], [8])
        pages[seq_id] = descriptor.pages(seq_id)
        assert cache.insert(descriptor, seq_id, front + block) == 2
    descriptor.release([0, 1])
    with cache.match([*first, *block, 9]) as found, cache.match([*second, *block, 9]) as other:
        assert (found.pages, other.pages) == (pages[0], pages[1])
    assert not cache.match([*block, 9])
    assert cache.stats().num_pages == 4


def test_a_page_that_is_listed_twice_is_said_to_be():
    manager = make_manager(num_pages=8, page_size=4)
    descriptor, cache = CacheDescriptor(manager), PrefixCache(manager, event_capacity=8)
    descriptor.allocate([1], [4])
    descriptor.attach(2, [0, 0], 8)
    with refused(InvalidArgumentError, "page 0 is listed twice by the sequence, at entry 0 and", descriptor, cache):
        cache.insert(descriptor, 2, range(8))


def test_salts_that_have_no_bytes_are_named():
    cache = PrefixCache(make_manager())
    for salt in ("\ud800", "a\udfff"):
        with pytest.raises(InvalidArgumentError, match=r"salt: got '.*\\ud.*', which holds a surrogate") as error:
            cache.match([1], salt)
        assert not isinstance(error.value, UnicodeError)
    assert not cache.match([1], "\udcff")  # a byte that Python could not read
