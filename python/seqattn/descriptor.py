"""Where 0.0.2 kept these names; `import seqattn` has them all."""

from ._core import CacheDescriptor, FlashInferPackedData, HeadIDGenerator, PagedKVCacheManager
from ._types import SequenceData

__all__ = ["CacheDescriptor", "FlashInferPackedData", "HeadIDGenerator", "PagedKVCacheManager", "SequenceData"]
