"""What the module asks of torch and CuPy where a cache is on a device. Neither is ever imported by us first."""

from __future__ import annotations

import sys
from typing import Any

from ._errors import UnsupportedError


def current_device() -> int:
    """The device that "cuda" without an index means: the current one of torch or CuPy, else the first."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.current_device())
    if cupy is not None and cupy.cuda.is_available():
        return int(cupy.cuda.runtime.getDevice())
    return 0


def current_stream(is_torch: bool, index: int) -> int:
    """The handle of the framework's current stream of that device; 0 is the default stream."""
    if is_torch:
        torch = sys.modules["torch"]
        return int(torch.cuda.current_stream(index).cuda_stream) if torch.cuda.is_initialized() else 0
    cupy = sys.modules.get("cupy")
    return 0 if cupy is None else int(cupy.cuda.get_current_stream(index).ptr)


def cupy_for(index: int) -> Any:
    """CuPy, whose arrays stand for numpy's on a device."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        raise UnsupportedError(
            f"a new array on cuda:{index}: numpy's lie in host memory and CuPy is not loaded; import cupy, or make the "
            "manager with a torch dtype, or pass out= (and lse=) yourself"
        )
    return cupy


def empty(is_torch: bool, shape: tuple[int, ...], dtype: str, index: int) -> Any:
    """A new array on that device, not initialised, from the framework's own allocator."""
    if is_torch:
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype), device=torch.device("cuda", index))
    cupy = cupy_for(index)
    with cupy.cuda.Device(index):
        return with_dtype(cupy.empty(shape, "uint16" if dtype == "bfloat16" else dtype), dtype)


def torch_zeros(shape: tuple[int, ...], dtype: str, index: int) -> Any:
    """Storage of a cache that torch's allocator counts."""
    torch = sys.modules["torch"]
    return torch.zeros(shape, dtype=getattr(torch, dtype), device=torch.device("cuda", index))


def with_dtype(array: Any, dtype: str) -> Any:
    """A CuPy array as bfloat16 where it holds the bits of that and CuPy knows the type; else as it is."""
    if dtype != "bfloat16":
        return array
    try:
        import ml_dtypes

        return array.view(ml_dtypes.bfloat16)
    except (ImportError, TypeError, ValueError):
        return array


def to_device(is_torch: bool, array: Any, index: int, non_blocking: bool) -> Any:
    """A copy of a host array for that device."""
    if is_torch:
        return array.to(sys.modules["torch"].device("cuda", index), non_blocking=non_blocking)
    cupy = cupy_for(index)
    with cupy.cuda.Device(index):
        return cupy.asarray(array)
