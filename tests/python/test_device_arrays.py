"""How arrays on a device are asked for, without a device: stand-ins for CuPy and for what exports arrays."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import DLPackArray, make_manager

from seqattn import (
    BatchAttention,
    FlashInferPackedData,
    InvalidArgumentError,
    PagedKVCacheManager,
    UnsupportedError,
    _device,
)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="stand-ins for devices, and here is one: test_cuda*.py use it"
)


def planned(dtype):
    manager = make_manager(dtype=dtype)
    manager.allocate(2)
    attention = BatchAttention(manager, 2)
    attention.plan(FlashInferPackedData([0, 1], [0, 2], [1]), [0, 5])
    return attention


def cupy_with_stream(handle: int) -> SimpleNamespace:
    streams = SimpleNamespace(get_current_stream=lambda index: SimpleNamespace(ptr=handle + index))
    return SimpleNamespace(cuda=streams)


@pytest.fixture
def on_device():
    return DLPackArray(np.ones((5, 2, 8), np.float32), device=(2, 3))


@pytest.mark.parametrize("dtype", ["float32", torch.float32])
def test_arrays_are_ready_on_the_default_stream(dtype, on_device):
    attention = planned(dtype)
    for call in (lambda: attention.run(on_device), lambda: attention.append_kv(on_device, on_device)):
        with pytest.raises(InvalidArgumentError, match="on cuda:3; expected .* on cpu"):
            call()
    assert set(on_device.streams) == {1}  # DLPack's number of it


def test_arrays_are_ready_on_cupys_stream(monkeypatch, on_device):
    monkeypatch.setitem(sys.modules, "cupy", cupy_with_stream(70_000))
    with pytest.raises(InvalidArgumentError, match="on cuda:3"):
        planned("float32").run(on_device)
    assert on_device.streams == [70_003]


def test_arrays_in_host_memory_are_asked_for_no_stream():
    array = DLPackArray(np.ones((5, 2, 8), np.float32))
    planned("float32").append_kv(array, array)
    assert set(array.streams) == {None}


def test_bfloat16_that_the_producer_cannot_export_comes_as_its_bits():
    class Bfloat16(DLPackArray):
        dtype = SimpleNamespace(name="bfloat16")

        def __dlpack__(self, **options):
            raise BufferError("dtype is not supported")

        def view(self, dtype):
            return DLPackArray(self.array.view(dtype), device=self.device)

    array = Bfloat16(np.ones((5, 2, 8), np.float16), device=(2, 0))
    with pytest.raises(InvalidArgumentError, match=r"got bfloat16\[5, 2, 8\] on cuda:0"):
        planned("bfloat16").run(array)


def test_torch_exports_by_its_function(monkeypatch):
    def must_not_be_called(self, **options):
        raise AssertionError("__dlpack__ makes streams wait")

    monkeypatch.setattr(torch.Tensor, "__dlpack__", must_not_be_called)
    tensor = torch.ones(5, 2, 8, requires_grad=True)
    attention = planned(torch.float32)
    attention.append_kv(tensor, tensor)
    out = torch.empty(5, 2, 8)
    assert attention.run(tensor, out=out) is out
    attention.plan(FlashInferPackedData(torch.tensor([0]), torch.tensor([0, 1]), [4]), torch.tensor([0, 4]))


def test_a_device_without_an_index_is_the_current_one(monkeypatch):
    assert _device.current_device() == 0
    runtime = SimpleNamespace(getDevice=lambda: 2)
    monkeypatch.setitem(
        sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True, runtime=runtime))
    )
    assert _device.current_device() == 2
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    assert _device.current_device() == 5
    with pytest.raises(UnsupportedError, match="cuda:5"):
        PagedKVCacheManager(4, 4, 2, 8, "float16", "cuda")


def test_new_arrays_without_cupy_are_refused_with_the_way_out():
    with pytest.raises(UnsupportedError, match="import cupy, or make the manager with a torch dtype, or pass out="):
        _device.empty(False, (2, 3), "float16", 1)
