"""Where 0.0.2 kept these names; `import seqattn` has them all."""

from ._core import FlashInferPackedData, PagedKVCacheManager
from ._errors import NoPageError

__all__ = ["FlashInferPackedData", "NoPageError", "PagedKVCacheManager"]
