"""The installed wheel, in an environment with numpy and nothing else."""

import sys
from pathlib import Path

import numpy as np

import seqattn

assert Path(seqattn.__file__).is_relative_to(sys.prefix), f"not the installed package: {seqattn.__file__}"
manager = seqattn.PagedKVCacheManager(8, 4, 2, 8, "float32", "cpu")
sequences = seqattn.CacheDescriptor(manager)
attention = seqattn.BatchAttention(manager, num_qo_heads=4)
sequences.allocate([7], [6])
attention.plan(sequences.pack_for_flashinfer([7]), [0, 6])
kv = np.full((6, 2, 8), 0.5, np.float32)
attention.append_kv(kv, kv)
out = attention.run(np.ones((6, 4, 8), np.float32))
assert np.allclose(out, 0.5), out
print(f"seqattn {seqattn.__version__}, numpy {np.__version__}: {attention.kernel_name}")
