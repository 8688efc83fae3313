"""A pool that falls short asks a Python callable for pages."""

import gc
import weakref

import pytest
from support import make_manager, snapshot

import seqattn
from seqattn import CacheDescriptor, Error, NoPageError, PagePool


class PrefixCache:
    """Holds pages that it can give up."""

    def __init__(self, pool, num_pages):
        self.pool, self.pages, self.asked = pool, pool.allocate(num_pages), []

    def __call__(self, num_pages):
        self.asked.append(num_pages)
        if num_pages > len(self.pages):
            return False
        self.pool.unref([self.pages.pop() for _ in range(num_pages)])
        return True


@pytest.mark.parametrize("make", [lambda: PagePool(8, 4), lambda: make_manager(num_pages=8)])
def test_it_is_asked_for_what_is_missing(make):
    pool = make()
    cache = PrefixCache(pool, 6)
    pool.set_reclaimer(cache)
    descriptor = CacheDescriptor(pool)
    descriptor.allocate([0], [16])  # 4 pages, and 2 are free
    assert cache.asked == [2]
    assert len(pool.allocate(2)) == 2 and cache.asked == [2, 2]
    before = snapshot(descriptor)
    with pytest.raises(NoPageError):
        descriptor.allocate([0, 1], [5, 8])
    assert not descriptor.try_allocate([0, 1], [5, 8])
    assert snapshot(descriptor) == before and len(cache.pages) == 2
    pool.set_reclaimer(None)
    with pytest.raises(NoPageError):
        descriptor.allocate([1], [1])
    pool.check_invariants()
    descriptor.check_invariants()


def test_what_it_raises_passes_through_and_changes_nothing():
    pool = PagePool(2, 4)
    descriptor = CacheDescriptor(pool)
    descriptor.allocate([0], [6])
    descriptor.fork(0, 1)

    def fail(num_pages):
        raise ZeroDivisionError("of mine")

    pool.set_reclaimer(fail)
    before = snapshot(descriptor)
    for call in (
        lambda: descriptor.allocate([0, 2], [1, 4]),
        lambda: descriptor.try_allocate([2], [4]),
        lambda: descriptor.allocate_decoding([0, 1]),
        lambda: pool.allocate(1),
    ):
        with pytest.raises(ZeroDivisionError, match="of mine"):
            call()
        assert snapshot(descriptor) == before
        descriptor.check_invariants()


@pytest.mark.parametrize("num_pages", [4, 8, 64])
def test_what_it_raises_in_compaction_changes_nothing(num_pages):
    pool = PagePool(num_pages, 2)
    descriptor = CacheDescriptor(pool)
    descriptor.allocate([1], [num_pages])
    descriptor.allocate_tree(1, [-1] * num_pages)
    pool.ref(descriptor.pages(1))

    def fail(num_pages):
        raise ZeroDivisionError("of mine")

    pool.set_reclaimer(fail)
    for call in (
        lambda: descriptor.commit_tree(1, [num_pages - 1]),
        lambda: descriptor.keep(1, range(1, num_pages)),
    ):
        before = snapshot(descriptor)
        with pytest.raises(ZeroDivisionError, match="of mine"):
            call()
        assert snapshot(descriptor) == before
        pool.check_invariants()
        pool.unref(descriptor.pages(1)[num_pages // 2 :])
        descriptor.truncate(1, num_pages)
        pool.allocate(pool.available_pages_count)


def test_it_may_call_neither_a_descriptor_of_the_pool_nor_allocate():
    pool = PagePool(2, 4)
    descriptor = CacheDescriptor(pool)
    descriptor.allocate([0], [6])
    forbidden = [
        lambda: descriptor.release([0]),
        lambda: descriptor.pages(0),
        lambda: len(descriptor),
        lambda: descriptor.allocate([1], [1]),
        lambda: pool.allocate(1),
    ]
    for call in forbidden:
        pool.set_reclaimer(lambda num_pages, call=call: call())
        before = tuple(pool.free_pages), pool.ref_count.tolist()
        with pytest.raises(Error, match="A reclaimer may unref pages"):
            descriptor.allocate([0, 1], [4, 4])
        assert before == (tuple(pool.free_pages), pool.ref_count.tolist())
        assert descriptor.length(0) == 6 and len(descriptor) == 1


def test_it_may_remove_itself_and_has_to_be_callable():
    pool = PagePool(1)
    pages = pool.allocate(1)

    def once(num_pages):
        pool.set_reclaimer(None)
        pool.unref(pages)
        return True

    pool.set_reclaimer(once)
    assert pool.allocate(1) == pages
    with pytest.raises(TypeError, match="reclaimer: got int; expected a callable"):
        pool.set_reclaimer(3)


def test_the_pool_of_a_manager_is_its_pool():
    manager = make_manager(num_pages=4)
    pool = manager.pool
    assert pool.allocate(1) == [0] and manager.available_pages_count == 3
    cache = PrefixCache(pool, 3)
    pool.set_reclaimer(cache)
    del pool
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [4])
    assert cache.asked == [1]
    assert descriptor.pack_for_flashinfer([0]).pool_id == manager.pool.id > 0
    assert CacheDescriptor(manager.pool).cache_manager.num_pages == 4
    manager.check_invariants()


@pytest.mark.parametrize("make", [lambda: PagePool(4, 4), lambda: make_manager(num_pages=4)])
def test_a_cycle_through_the_reclaimer_is_collected(make):
    class Engine:
        def __init__(self, pool):
            self.pool, self.descriptor = pool, CacheDescriptor(pool)
            if isinstance(pool, seqattn.PagedKVCacheManager):
                self.inner, self.attention = pool.pool, seqattn.BatchAttention(pool, 2)
            pool.set_reclaimer(self.reclaim)

        def reclaim(self, num_pages):
            return False

    engine = Engine(make())
    engine.descriptor.allocate([0], [3])
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
