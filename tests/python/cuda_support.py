"""What the tests on a GPU share. Importing it skips the module, saying why, where they cannot run."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="GPU cases: torch is not installed")

from support import attention_reference, to_numpy, tolerance  # noqa: E402

import seqattn  # noqa: E402


def what_is_missing() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        seqattn.PagedKVCacheManager(1, 16, 1, 64, torch.float16, 0)
    except seqattn.UnsupportedError as error:
        return str(error)
    return None


if reason := what_is_missing():
    pytest.skip(f"GPU cases: {reason}", allow_module_level=True)

DEVICE = torch.device("cuda", torch.cuda.current_device())
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
ROUNDOFF = {"float16": 2.0**-12, "bfloat16": 2.0**-9}


def keep_busy() -> None:
    """Work on the current stream that takes so long that whoever does not wait for it is caught."""
    torch.cuda._sleep(100_000_000)  # cycles: some 50 ms


def on_host(tensor) -> np.ndarray:
    return to_numpy(tensor.detach().cpu())


class Layer:
    """One attention layer over a paged cache, and what its sequences must hold, remembered on the host."""

    def __init__(self, rng, dtype="float16", layout="NHD", heads=2, group=4, head_dim=64, manager=None, **options):
        self.rng, self.dtype, self.heads, self.group, self.head_dim = rng, dtype, heads, group, head_dim
        self.manager = manager or seqattn.PagedKVCacheManager(
            128, 16, heads, head_dim, DTYPES[dtype], DEVICE, kv_layout=layout
        )
        self.descriptor = seqattn.CacheDescriptor(self.manager)
        self.attention = seqattn.BatchAttention(self.manager, heads * group, **options)
        self.causal = options.get("causal", True)
        self.held: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.num_plans = 0

    def random(self, num_tokens: int, heads: int):
        values = torch.from_numpy(self.rng.standard_normal((num_tokens, heads, self.head_dim), np.float32))
        return values.to(DEVICE, DTYPES[self.dtype])

    def fork(self, parent: int, child: int, num_tokens: int) -> None:
        self.descriptor.fork(parent, child, num_tokens)
        self.held[child] = tuple(part[:num_tokens] for part in self.held[parent])

    def plan(self, batch: dict[int, int]):
        """Grows and plans; returns the keys, values and q of the new tokens, for the caller to bring in."""
        self.descriptor.allocate(list(batch), list(batch.values()))
        indptr = np.cumsum([0, *batch.values()])
        # Straight from the sequences, whose tables may stay on the device, and packed, by turns.
        self.num_plans += 1
        if self.num_plans % 4:
            self.attention.plan_sequences(self.descriptor, list(batch), indptr)
        else:
            self.attention.plan(self.descriptor.pack_for_flashinfer(list(batch)), indptr)
        total = int(indptr[-1])
        keys, values = self.random(total, self.heads), self.random(total, self.heads)
        new_keys, new_values = on_host(keys), on_host(values)
        for (seq_id, num_new), begin in zip(batch.items(), indptr, strict=False):
            new = slice(begin, begin + num_new)
            empty = np.zeros((0, self.heads, self.head_dim))
            old_keys, old_values = self.held.get(seq_id, (empty, empty))
            self.held[seq_id] = (
                np.concatenate([old_keys, new_keys[new]]),
                np.concatenate([old_values, new_values[new]]),
            )
        return keys, values, self.random(total, self.heads * self.group)

    def check(self, batch: dict[int, int], q, out, lse=None) -> None:
        q, out = on_host(q), on_host(out)
        lse = None if lse is None else on_host(lse)
        begin = 0
        for seq_id, num_new in batch.items():
            rows = slice(begin, begin + num_new)
            begin += num_new
            keys, values = self.held[seq_id]
            expected, expected_lse = attention_reference(q[rows], keys, values, causal=self.causal)
            # The kernels round the weights to the cache's type as well as the result.
            tol = 2 * tolerance(self.dtype, len(keys), self.head_dim, np.abs(values).max(initial=1))
            np.testing.assert_allclose(out[rows], expected, rtol=0, atol=tol, err_msg=f"sequence {seq_id}")
            if lse is not None:
                # The kernels sum weights that they have rounded to the cache's type.
                tol = tolerance("float32", len(keys), self.head_dim, 16.0) + ROUNDOFF[self.dtype]
                np.testing.assert_allclose(lse[rows], expected_lse, rtol=0, atol=tol, err_msg=f"sequence {seq_id}")

    def step(self, batch: dict[int, int]) -> None:
        keys, values, q = self.plan(batch)
        self.attention.append_kv(keys, values)
        out, lse = self.attention.run(q, return_lse=True)
        assert out.dtype == q.dtype and out.device == q.device == lse.device
        self.check(batch, q, out, lse)

    def check_cache(self) -> None:
        for seq_id, (keys, values) in self.held.items():
            stored = self.manager.read_kv(self.descriptor.pages(seq_id), 0, len(keys))
            for tensor, expected in zip(stored, (keys, values), strict=True):
                np.testing.assert_array_equal(on_host(tensor), expected)
        self.descriptor.check_invariants()
