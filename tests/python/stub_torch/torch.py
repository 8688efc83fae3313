"""As much of torch as bench/cpu/torch_peer.py asks for, by numpy: for tests where torch is too old or not there."""

import contextlib
import types

import ml_dtypes
import numpy as np

__version__ = "stub"
float32, float16, bfloat16 = (np.dtype(x) for x in (np.float32, np.float16, ml_dtypes.bfloat16))
threads = []


class Tensor:
    def __init__(self, array):
        self.array = array

    def view(self, *shape):
        return Tensor(self.array.reshape(shape))

    def transpose(self, a, b):
        return Tensor(self.array.swapaxes(a, b))

    def contiguous(self):
        return Tensor(np.ascontiguousarray(self.array))

    def clone(self):
        return Tensor(self.array.copy())

    def to(self, dtype):
        return Tensor(self.array.astype(dtype))

    def float(self):
        return self.to(float32)

    def repeat(self, *counts):
        return Tensor(np.tile(self.array, counts))

    def triu(self, diagonal):
        return Tensor(np.where(np.triu(np.ones_like(self.array), diagonal), self.array, 0))

    def numel(self):
        return self.array.size

    def data_ptr(self):
        return self.array.ctypes.data


def frombuffer(data, dtype):
    return Tensor(np.frombuffer(data, dtype))


def full(shape, value):
    return Tensor(np.full(shape, value, np.float32))


def set_num_threads(n):
    threads.append(n)


def inference_mode():
    return contextlib.nullcontext()


def scaled_dot_product_attention(q, k, v, attn_mask=None):
    q, k, v = (x.array.astype(np.float32) for x in (q, k, v))
    logits = q @ k.swapaxes(2, 3) / np.sqrt(np.float32(q.shape[3]))
    if attn_mask is not None:
        logits = logits + attn_mask.array.astype(np.float32)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return Tensor(weights / weights.sum(-1, keepdims=True) @ v)


nn = types.SimpleNamespace(functional=types.SimpleNamespace(scaled_dot_product_attention=scaled_dot_product_attention))
