"""What the tests share: small managers, snapshots, the reference attention, a DLPack producer."""

import ctypes
import subprocess
import sys
import threading
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest
import torch

import seqattn

NUMPY_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def make_manager(num_pages=16, page_size=4, num_heads=2, head_dim=8, dtype="float32", **options):
    return seqattn.PagedKVCacheManager(num_pages, page_size, num_heads, head_dim, dtype, "cpu", **options)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def main_thread_runs_during(call) -> bool:
    """Whether this thread gets to run while another one is inside `call`.

    With a switch interval of hours a thread keeps the GIL until it blocks or gives it up. So this
    thread wakes up, after the worker has started, only when `call` gives the GIL up; or when the
    worker ends. It may oversleep a short call, hence the attempts.
    """
    started = threading.Lock()

    def attempt() -> bool:
        finished = threading.Event()
        started.acquire()

        def work():
            started.release()
            call()
            finished.set()

        worker = threading.Thread(target=work)
        worker.start()
        with started:
            ran = not finished.is_set()
        worker.join()
        return ran

    interval = sys.getswitchinterval()
    sys.setswitchinterval(10_000)
    try:
        return any(attempt() for _ in range(100))
    finally:
        sys.setswitchinterval(interval)


def to_numpy(array) -> np.ndarray:
    """A float64 copy on the host of an array of any framework and device."""
    if isinstance(array, torch.Tensor):
        return array.detach().cpu().to(torch.float64).numpy().copy()
    return np.asarray(array).astype(np.float64)


def snapshot(descriptor, manager=None):
    """Everything that a failed call must leave as it was."""
    pool = descriptor.cache_manager if manager is None else manager
    sequences = {seq_id: descriptor.details(seq_id) for seq_id in descriptor.seq_ids()}
    storage = ()
    if hasattr(pool, "key_cache"):
        storage = tuple(to_numpy(cache).tobytes() for cache in pool.get_memory_tensors())
    return tuple(pool.free_pages), tuple(pool.ref_count.tolist()), sequences, storage


@contextmanager
def refused(error, match, descriptor, cache=None, num_parts=4):
    """A call that raises this and has changed nothing; of a prefix cache neither what it counts nor its events.

    A restore may have written into free pages: 3 parts of the snapshot are without storage.
    """
    if cache is not None:
        cache.drain_events()
    before = snapshot(descriptor)[:num_parts], cache and cache.stats()
    with pytest.raises(error, match=match) as raised:
        yield raised
    assert (snapshot(descriptor)[:num_parts], cache and cache.stats()) == before
    assert cache is None or cache.drain_events() == []


def attention_reference(
    q,
    k,
    v,
    *,
    causal=True,
    window_left=-1,
    sm_scale=None,
    logits_soft_cap=0.0,
    mask=None,
    sinks=None,
):
    """Plain attention of one row in float64.

    q [q_len, num_qo_heads, d], k [kv_len, num_heads, d], v [kv_len, num_heads, dv] ->
    out [q_len, num_qo_heads, dv], lse [q_len, num_qo_heads].
    """
    q, k, v = to_numpy(q), to_numpy(k), to_numpy(v)
    q_len, num_qo_heads, head_dim = q.shape
    kv_len, num_heads, head_dim_v = v.shape
    out = np.zeros((q_len, num_qo_heads, head_dim_v))
    lse = np.full((q_len, num_qo_heads), -np.inf)
    position = np.arange(q_len)[:, None] + kv_len - q_len
    key = np.arange(kv_len)[None, :]
    seen = np.ones((q_len, kv_len), bool) if mask is None else np.asarray(mask).astype(bool)
    if causal:
        seen = seen & (key <= position)
    if window_left >= 0:
        seen = seen & (key >= position - window_left)
    for head in range(num_qo_heads):
        kv_head = head // (num_qo_heads // num_heads)
        logits = q[:, head] @ k[:, kv_head].T * (sm_scale or head_dim**-0.5)
        if logits_soft_cap > 0:
            logits = logits_soft_cap * np.tanh(logits / logits_soft_cap)
        logits = np.where(seen, logits, -np.inf)
        if sinks is not None:
            logits = np.concatenate([logits, np.full((q_len, 1), sinks[head])], axis=1)
        largest = logits.max(axis=1, initial=-np.inf)
        rows = np.isfinite(largest)
        weights = np.exp(logits[rows] - largest[rows, None])
        total = weights.sum(axis=1)
        lse[rows, head] = largest[rows] + np.log(total)
        out[rows, head] = (weights / total[:, None])[:, :kv_len] @ v[:, kv_head]
    return out, lse


def tolerance(dtype: str, kv_len: int, head_dim: int, largest: float) -> float:
    """Sums of kv_len and of head_dim products in float32, and one rounding to the output dtype."""
    epsilon = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    return (4 * 2.0**-24 * (kv_len + head_dim) + epsilon) * max(largest, 1.0)


class _DLDevice(ctypes.Structure):
    _fields_ = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class _DLDataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [("dl_tensor", _DLTensor), ("ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("dl_tensor", _DLTensor),
    ]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class DLPackArray:
    """An array known by __dlpack__ alone, as CuPy's are; keeps the streams that exports were for, counts their ends."""

    def __init__(self, array: np.ndarray, *, read_only=False, device=(1, 0)):
        self.array, self.read_only, self.device = array, read_only, device
        self.exports = self.deleted = 0
        self.streams = []
        self._deleter = _Deleter(self._delete)
        self._alive = []

    def _delete(self, _):
        self.deleted += 1

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        versioned = max_version is not None
        if self.read_only and not versioned:
            raise BufferError("a read-only array needs a versioned capsule")
        self.exports += 1
        self.streams.append(stream)
        array = self.array
        code = {"f": 2, "i": 0, "u": 1, "b": 6}[array.dtype.kind]
        sizes = (ctypes.c_int64 * array.ndim)(*array.shape)
        strides = (ctypes.c_int64 * array.ndim)(*(s // array.itemsize for s in array.strides))
        tensor = _DLTensor(
            array.ctypes.data,
            _DLDevice(*self.device),
            array.ndim,
            _DLDataType(code, 8 * array.itemsize, 1),
            sizes,
            strides,
            0,
        )
        deleter = ctypes.cast(self._deleter, ctypes.c_void_p)
        if versioned:
            managed = _ManagedVersioned(1, 1, None, deleter, int(self.read_only), tensor)
            name = b"dltensor_versioned"
        else:
            managed = _Managed(tensor, None, deleter)
            name = b"dltensor"
        self._alive.append((managed, sizes, strides))
        return _new_capsule(ctypes.addressof(managed), name, None)
