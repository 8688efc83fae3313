import copy
import gc
import pickle

import numpy as np
import pytest
import torch
from support import DLPackArray, make_manager

from seqattn import CacheDescriptor, FlashInferPackedData, InvalidArgumentError, UnsupportedError

INDICES, INDPTR, LAST = [4, 2, 7], [0, 2, 2, 3], [1, 0, 4]


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        np.array,
        lambda x: np.array(x, np.int32),
        torch.tensor,
        lambda x: torch.tensor(x, dtype=torch.int32),
        lambda x: DLPackArray(np.array(x, np.int32)),
    ],
)
def test_the_caller_may_build_it(make):
    packed = FlashInferPackedData(make(INDICES), make(INDPTR), kv_last_page_len=make(LAST))
    is_torch = isinstance(make(LAST), torch.Tensor)
    for field, values in [
        (packed.kv_page_indices, INDICES),
        (packed.kv_page_indptr, INDPTR),
        (packed.kv_last_page_len, LAST),
    ]:
        assert isinstance(field, torch.Tensor if is_torch else np.ndarray)
        assert field.dtype == (torch.int32 if is_torch else np.int32)
        assert field.tolist() == values
    assert packed.batch_size == 3


@pytest.mark.parametrize(
    "indices,indptr,last",
    [
        ([1], [1], []),
        ([1], [0, 2], [1]),
        ([1, 2], [0, 2, 1], [1, 1]),
        ([1], [0, 1], [1, 1]),
        ([1], [0, 1], [0]),
        ([], [0, 0], [1]),
        ([-1], [0, 1], [1]),
        ([2**31], [0, 1], [1]),
        ([], [], []),
        (np.zeros((1, 1), int), [0, 1], [1]),
        (np.int64(3) * np.ones((), int), [0], []),
    ],
)
def test_tables_that_are_no_batch_are_refused(indices, indptr, last):
    with pytest.raises(InvalidArgumentError):
        FlashInferPackedData(indices, indptr, last)


@pytest.mark.parametrize("bad", [1.5, [1.5], ["a"], None, np.ones(1), [None], "12", object(), b"12", {1, 2}])
def test_what_is_no_list_of_integers_is_a_type_error(bad):
    with pytest.raises(TypeError):
        FlashInferPackedData(bad, [0, 1], [1])


def test_data_that_exists_only_on_a_device_is_refused_with_the_way_out():
    on_device = DLPackArray(np.array(INDICES, np.int32), device=(2, 0))
    with pytest.raises(InvalidArgumentError, match="cpu"):
        FlashInferPackedData(on_device, INDPTR, LAST)


def test_numpy_fields_are_read_only_views_that_keep_the_data():
    packed = FlashInferPackedData(INDICES, INDPTR, LAST)
    field = packed.kv_page_indices
    with pytest.raises(ValueError):
        field[0] = 1
    assert field.ctypes.data == packed.kv_page_indices.ctypes.data
    del packed
    gc.collect()
    assert field.tolist() == INDICES


def test_writing_a_torch_field_does_not_reach_the_data():
    packed = FlashInferPackedData(torch.tensor(INDICES), INDPTR, LAST)
    packed.kv_page_indptr[1] = 1000
    assert packed.kv_page_indptr.tolist() == INDPTR


def test_to_device_gives_an_equal_copy_or_names_what_there_is():
    packed = FlashInferPackedData(INDICES, INDPTR, LAST)
    assert packed.to_device("cpu") == packed
    assert packed.to_device(torch.device("cpu"), non_blocking=False) == packed
    for device in ("cuda", "cuda:1", 0, torch.device("cuda", 0)):
        with pytest.raises(UnsupportedError, match="cpu"):
            packed.to_device(device)


def test_it_is_a_snapshot():
    descriptor = CacheDescriptor(make_manager())
    descriptor.allocate([0], [5])
    packed = descriptor.pack_for_flashinfer([0, 0])
    descriptor.release([0])
    assert packed.kv_page_indices.tolist() == [0, 1, 0, 1]
    assert packed.kv_last_page_len.tolist() == [1, 1]
    assert packed.batch_size == 2


def test_an_empty_batch_packs():
    descriptor = CacheDescriptor(make_manager(dtype=torch.float32))
    packed = descriptor.pack_for_flashinfer([])
    assert packed.kv_page_indices.tolist() == []
    assert packed.kv_page_indptr.tolist() == [0]
    assert packed.kv_last_page_len.tolist() == []


@pytest.mark.parametrize("empty", [[], np.array([]), torch.tensor([]), np.zeros(0, np.int64)])
def test_no_ids_in_any_form_are_an_empty_batch(empty):
    assert CacheDescriptor(make_manager()).pack_for_flashinfer(empty).batch_size == 0


@pytest.mark.parametrize("dtype, array", [("float32", np.ndarray), (torch.float32, torch.Tensor)])
def test_it_can_be_copied_and_pickled(dtype, array):
    descriptor = CacheDescriptor(make_manager(dtype=dtype))
    descriptor.allocate([0, 1], [5, 3])
    packed = descriptor.pack_for_flashinfer([0, 1])
    pickled = pickle.loads(pickle.dumps(packed))
    for same in (copy.copy(packed), copy.deepcopy([packed])[0], pickled):
        assert same == packed and isinstance(same.kv_page_indices, array)
    assert packed.pool_id == copy.copy(packed).pool_id == copy.deepcopy(packed).pool_id > 0
    assert pickled.pool_id == 0  # another process has other pools


def test_kv_len_is_that_of_a_row():
    packed = FlashInferPackedData(INDICES, INDPTR, LAST)
    assert [packed.kv_len(row, 4) for row in range(3)] == [5, 0, 4]
    with pytest.raises(InvalidArgumentError):
        packed.kv_len(3, 4)
