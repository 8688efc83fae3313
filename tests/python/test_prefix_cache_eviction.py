"""A prefix cache in Python: what is evicted, by which clock, and what its events tell."""

import pytest
from prefix_caches import make, store
from support import snapshot

import seqattn
from seqattn import Error, NoPageError, PinnedError, PrefixCache


def cached(cache, tokens, salt=""):
    with cache.pin(tokens, salt) as handle:
        return handle.num_tokens


def test_the_pool_takes_what_it_needs_but_not_what_is_pinned():
    pool, descriptor, cache = make()
    store(descriptor, cache, range(8))
    store(descriptor, cache, range(20, 28))
    first, second = cache.match(range(9)), cache.match([*range(7), 99, 98])
    before = snapshot(descriptor)
    with pytest.raises(NoPageError):
        descriptor.allocate([3], [28])
    assert snapshot(descriptor) == before
    assert descriptor.try_allocate([3], [24])
    assert cached(cache, range(20, 28)) == 0
    cache.attach(descriptor, 1, first)
    cache.attach(descriptor, 2, second)
    with pytest.raises(PinnedError, match="2 handles") as error:
        cache.clear()
    assert error.value.num_handles == 2
    first.release()
    second.release()
    cache.clear()
    assert cache.stats().num_pages == 0 and descriptor.length(2) == 7
    cache.check_invariants()
    descriptor.check_invariants()


def test_eviction_goes_by_ttl_then_priority_then_use():
    now = 100.0
    _, descriptor, cache = make(clock=lambda: now)
    a, b, c = range(4), range(20, 24), range(40, 44)
    store(descriptor, cache, a)
    store(descriptor, cache, b, priority=1)
    store(descriptor, cache, c, priority=2, ttl=10)
    assert cache.evict_expired() == 0
    now = 110.0
    assert cache.evict(1) == 1 and cached(cache, c) == 0
    assert cache.evict(1) == 1 and cached(cache, a) == 0
    store(descriptor, cache, a, priority=1)
    cache.match([*b, 99])
    assert cache.evict(1) == 1 and cached(cache, a) == 0
    assert cache.evict(5) == 1


def test_ttl_goes_by_a_clock_of_its_own():
    _, descriptor, cache = make()
    store(descriptor, cache, range(4), ttl=1e-9)
    store(descriptor, cache, range(20, 24), ttl=1e300)
    assert cache.evict_expired() == 1 and cached(cache, range(20, 24)) == 4


def test_a_clock_that_raises_or_calls_back_changes_nothing():
    clock = [lambda: 0.0]
    _, descriptor, cache = make(clock=lambda: clock[0]())
    store(descriptor, cache, range(16))
    descriptor.allocate([1], [16])
    before = snapshot(descriptor), cache.stats()

    def fail():
        raise ZeroDivisionError("of mine")

    for code, error in [
        (fail, ZeroDivisionError),
        (lambda: descriptor.release([1]), Error),
        (lambda: cache.evict(1), Error),
        (lambda: "late", TypeError),
    ]:
        clock[0] = code
        for call in (lambda: descriptor.allocate([1], [4]), lambda: cache.match(range(9)), lambda: cache.evict(1)):
            with pytest.raises(error):
                call()
            assert (snapshot(descriptor), cache.stats()) == before
    clock[0] = lambda: 1.0
    descriptor.allocate([1], [4])
    cache.check_invariants()


def test_events_tell_what_is_there():
    _, descriptor, cache = make(event_capacity=16)
    store(descriptor, cache, range(8), "tenant")
    cache.match(range(6), "tenant")
    cache.evict(1)
    cache.clear()
    events = cache.drain_events()
    assert [(e.kind, e.number, e.salt, e.block, e.parent) for e in events] == [
        ("stored", 0, "tenant", 1, 0),
        ("stored", 1, "tenant", 2, 1),
        ("hit", 2, "tenant", 2, 0),
        ("evicted", 3, "tenant", 2, 0),
        ("cleared", 4, "", 0, 0),
    ]
    assert [e.tokens for e in events[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]] and events[2].num_tokens == 5
    assert cache.drain_events() == [] and cache.stats().num_events_lost == 0


def test_events_wait_where_they_cannot_be_handed_over(monkeypatch):
    _, descriptor, cache = make(event_capacity=16)
    store(descriptor, cache, range(8))
    made = []

    def fail(*fields):
        made.append(fields)
        if len(made) % 2 == 0:
            raise MemoryError("of mine")
        return fields

    with monkeypatch.context() as patch:
        patch.setattr(seqattn._types, "CacheEvent", fail)
        with pytest.raises(MemoryError, match="of mine"):
            cache.drain_events()
        cache.evict(1)
        with pytest.raises(MemoryError, match="of mine"):
            cache.drain_events()
    cache.evict(1)
    events = cache.drain_events()
    assert [(event.kind, event.number) for event in events] == [
        ("stored", 0),
        ("stored", 1),
        ("evicted", 2),
        ("evicted", 3),
    ]
    assert cache.drain_events() == [] and cache.stats().num_events_lost == 0


def test_more_events_than_memory_are_refused_with_what_they_need():
    pool = seqattn.PagePool(1, 2**20)
    with pytest.raises(
        MemoryError, match="no memory for 9007302333956096 bytes of 2147483648 events; expected an event"
    ):
        PrefixCache(pool, event_capacity=2**31)
    PrefixCache(pool, event_capacity=2)
