"""Sequence-level attention: sequence ids in, paged KV cache, page tables and attention out."""

from ._core import (
    BatchAttention,
    CacheDescriptor,
    FlashInferPackedData,
    HeadIDGenerator,
    PagedKVCacheManager,
    PagePool,
    merge_states,
    version,
)
from ._errors import (
    BackendError,
    Error,
    InvalidArgumentError,
    NoPageError,
    UnknownSequenceError,
    UnsupportedError,
)
from ._types import Admission, PageCopy, SequenceData, Stats

__version__ = version()

__all__ = [
    "Admission",
    "BackendError",
    "BatchAttention",
    "CacheDescriptor",
    "Error",
    "FlashInferPackedData",
    "HeadIDGenerator",
    "InvalidArgumentError",
    "NoPageError",
    "PageCopy",
    "PagePool",
    "PagedKVCacheManager",
    "SequenceData",
    "Stats",
    "UnknownSequenceError",
    "UnsupportedError",
    "__version__",
    "merge_states",
    "version",
]
