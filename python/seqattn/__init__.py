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
    restore_sequence,
    save_sequence,
    sequence_state_info,
    version,
)
from ._errors import (
    BackendError,
    Error,
    FileError,
    InvalidArgumentError,
    NoPageError,
    PinnedError,
    SequenceStateError,
    UnknownSequenceError,
    UnsupportedError,
)
from ._types import Admission, CacheEvent, PageCopy, PrefixCacheStats, SequenceData, SequenceStateInfo, Stats

__version__ = version()

__all__ = [
    "Admission",
    "BackendError",
    "BatchAttention",
    "CacheDescriptor",
    "CacheEvent",
    "Error",
    "FileError",
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
    "SequenceStateError",
    "SequenceStateInfo",
    "Stats",
    "UnknownSequenceError",
    "UnsupportedError",
    "__version__",
    "merge_states",
    "restore_sequence",
    "save_sequence",
    "sequence_state_info",
    "version",
]
