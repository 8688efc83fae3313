"""A small prefix cache, and what fills it."""

from seqattn import CacheDescriptor, PagePool, PrefixCache


def make(num_pages=8, page_size=4, **options):
    pool = PagePool(num_pages, page_size)
    return pool, CacheDescriptor(pool), PrefixCache(pool, **options)


def store(descriptor, cache, tokens, salt="", **options):
    """Has the cache alone hold these tokens' pages."""
    descriptor.allocate([1000], [len(tokens)])
    pages = descriptor.pages(1000)
    cache.insert(descriptor, 1000, tokens, salt, **options)
    descriptor.release([1000])
    return pages
