"""Sequence-level attention: sequence ids in, paged KV cache, page tables and attention out."""

from ._core import (
    BatchAttention,
    CacheDescriptor,
    FlashInferPackedData,
    HeadIDGenerator,
    PagedKVCacheManager,
    PagePool,
    PrefixCache,
    PrefixHandle,
    merge_states,
    version,
)
from ._errors import (
    BackendError,
    Error,
    InvalidArgumentError,
    NoPageError,
    PinnedError,
    UnknownSequenceError,
    UnsupportedError,
)
from ._types import Admission, CacheEvent, PageCopy, PrefixCacheStats, SequenceData, Stats

__version__ = version()

__all__ = [
    "Admission",
    "BackendError",
    "BatchAttention",
    "CacheDescriptor",
    "CacheEvent",
    "Error",
    "FlashInferPackedData",
    "HeadIDGenerator",
    "InvalidArgumentError",
    "NoPageError",
    "PageCopy",
    "PagePool",
    "PagedKVCacheManager",
    "PinnedError",
    "PrefixCache",
    "PrefixCacheStats",
    "PrefixHandle",
    "SequenceData",
    "Stats",
    "UnknownSequenceError",
    "UnsupportedError",
    "__version__",
    "merge_states",
    "version",
]
