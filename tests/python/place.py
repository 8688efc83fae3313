"""Where a test keeps its cache: device, framework and type."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from support import NUMPY_DTYPES, TORCH_DTYPES

import seqattn


@dataclass(frozen=True)
class Place:
    dtype: str = "float32"
    device: Any = "cpu"
    with_torch: bool = False  # a device's arrays are torch's
    kv_layout: str = "NHD"
    head_dim: int = 16  # what attention is computed with

    def manager(self, num_pages, page_size, num_heads, head_dim, **options):
        dtype = TORCH_DTYPES[self.dtype] if self.with_torch else self.dtype
        options = {"kv_layout": self.kv_layout, **options}
        return seqattn.PagedKVCacheManager(num_pages, page_size, num_heads, head_dim, dtype, self.device, **options)

    def array(self, host: np.ndarray):
        """These numbers there, rounded to the cache's type."""
        if self.with_torch:
            return torch.from_numpy(np.ascontiguousarray(host)).to(device=self.device, dtype=TORCH_DTYPES[self.dtype])
        return host.astype(NUMPY_DTYPES[self.dtype])
