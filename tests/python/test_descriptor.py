import copy
import gc
import pickle
import warnings
import weakref

import pytest
from support import make_manager, snapshot

import seqattn
from seqattn import CacheDescriptor, InvalidArgumentError, PagePool, SequenceData


def test_the_mapping_is_live_and_behaves_like_a_dict():
    descriptor = CacheDescriptor(make_manager())
    mapping = descriptor.seq_id_to_data
    assert len(mapping) == 0
    descriptor.allocate([3, -4], [5, 8])
    assert len(mapping) == 2
    assert 3 in mapping and -4 in mapping
    assert 5 not in mapping and "three" not in mapping
    assert set(mapping) == {3, -4}
    assert mapping[3] == SequenceData(kv_page_indices=[0, 1], last_page_len=1)
    assert mapping[3].kv_page_indices == [0, 1]
    assert mapping[3].last_page_len == 1
    assert mapping.get(99) is None
    assert dict(mapping.items()) == mapping
    assert mapping.get(2**70) is None and mapping.get("a") is None and 2**70 not in mapping
    assert 2**70 not in descriptor and "a" not in descriptor and None not in descriptor
    assert sorted(descriptor) == sorted(descriptor.seq_ids()) == [-4, 3]
    assert mapping.pop(3) == SequenceData([0, 1], 1)
    assert 3 not in descriptor
    assert mapping.pop(3, None) is None
    with pytest.raises(KeyError):
        del mapping[3]
    with pytest.raises(KeyError):
        mapping[3]


def test_assigning_takes_over_references_as_users_of_ref_did():
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [8])
    prefix = descriptor.seq_id_to_data[0].kv_page_indices
    manager.ref(prefix)
    descriptor.seq_id_to_data[1] = SequenceData(kv_page_indices=prefix, last_page_len=4)
    assert manager.ref_count[:2].tolist() == [2, 2]
    assert descriptor.length(1) == 8
    descriptor.release([0, 1])
    assert manager.available_pages_count == 16


@pytest.mark.parametrize(
    "data",
    [
        SequenceData([0, 1], 4),  # references that nobody holds for it
        SequenceData([9], 1),  # free
        SequenceData([-1], 1),
        SequenceData([99], 1),
        SequenceData([2], 0),
        SequenceData([2], 5),
        SequenceData([], 4),
        SequenceData([2, 2], 1),
    ],
)
def test_assigning_validates(data):
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [8])
    assert manager.allocate(1) == [2]
    before = snapshot(descriptor)
    with pytest.raises(InvalidArgumentError):
        descriptor.seq_id_to_data[1] = data
    assert snapshot(descriptor) == before


def test_deleting_leaves_the_references_to_the_caller_as_in_0_0_2():
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    mapping = descriptor.seq_id_to_data
    descriptor.allocate([0, 1, 2], [8, 3, 5])
    data = mapping.pop(0)
    assert 0 not in descriptor and manager.ref_count[:2].tolist() == [1, 1]
    manager.unref(data.kv_page_indices)
    manager.release_pages(mapping[1].kv_page_indices)
    del mapping[1]
    assert manager.available_pages_count == 14
    mapping[7] = mapping.pop(2)  # the same references under another id
    descriptor.check_invariants()
    descriptor.release([7])
    assert manager.available_pages_count == 16
    manager.check_invariants()


def test_a_table_that_was_read_refuses_changes():
    descriptor = CacheDescriptor(make_manager())
    descriptor.allocate([1], [6])
    for name, value in (("last_page_len", 3), ("kv_page_indices", [0])):
        with pytest.raises(AttributeError, match=f"SequenceData.{name}: got .*; expected no change to a copy"):
            setattr(descriptor.seq_id_to_data[1], name, value)
    data = SequenceData(kv_page_indices=[0], last_page_len=2)
    assert copy.deepcopy(data) == copy.copy(data) == pickle.loads(pickle.dumps(data)) == data


@pytest.mark.parametrize("wrong", [([0], 1), [0], None, 3, SequenceData(None, 1), SequenceData([0], 1.5)])
def test_what_is_no_sequence_data_is_a_type_error(wrong):
    pool = PagePool(4, 4)
    pool.allocate(1)
    descriptor = CacheDescriptor(pool)
    with pytest.raises(TypeError, match=r"seq_id_to_data\[5\]: got .*; expected a SequenceData"):
        descriptor.seq_id_to_data[5] = wrong
    with pytest.raises(TypeError, match="got .*; expected"):
        CacheDescriptor(pool, {5: wrong})
    assert len(descriptor) == 0 and pool.ref_count.tolist() == [1, 0, 0, 0]


def test_a_descriptor_is_initialised_once():
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([1], [6])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nanobind says so in a warning too
        with pytest.raises(TypeError):
            descriptor.__init__(manager)
    assert descriptor.length(1) == 6 and manager.available_pages_count == 14


def test_sequences_to_start_with_need_a_reference_each():
    pool = PagePool(8, 4)
    pages = pool.allocate(2)
    shared = {1: SequenceData(pages, 3), 2: SequenceData(pages[:1], 4)}
    with pytest.raises(InvalidArgumentError, match="page 0 has 1 references for 2 holders"):
        CacheDescriptor(pool, shared)
    assert pool.ref_count[:2].tolist() == [1, 1]
    pool.ref(pages[:1])
    descriptor = CacheDescriptor(pool, shared)
    assert (descriptor.length(1), descriptor.length(2)) == (7, 4)
    assert pool.ref_count[:2].tolist() == [2, 1]
    descriptor.check_invariants()
    descriptor.clear()
    assert pool.available_pages_count == 8


def test_try_allocate_reports_a_full_pool_as_a_value():
    descriptor = CacheDescriptor(make_manager(num_pages=2))
    admission = descriptor.try_allocate([0], [8])
    assert admission
    assert (admission.needed, admission.available, admission.copies) == (2, 2, [])
    before = snapshot(descriptor)
    refused = descriptor.try_allocate([1], [5])
    assert not refused
    assert refused == seqattn.Admission(ok=False, needed=2, available=0, copies=[])
    assert snapshot(descriptor) == before


def test_over_a_bare_pool_copies_are_returned_to_be_made():
    pool = PagePool(num_pages=8, page_size=4)
    descriptor = CacheDescriptor(pool)
    assert descriptor.cache_manager is pool
    descriptor.allocate([0], [6])
    descriptor.fork(0, 1)
    assert descriptor.allocate([1], [1]) == [seqattn.PageCopy(source=1, target=2)]
    assert descriptor.pages(1) == [0, 2]
    assert pool.ref_count.tolist() == [2, 1, 1, 0, 0, 0, 0, 0]
    assert descriptor.pack_for_flashinfer([1]).kv_page_indices.tolist() == [0, 2]
    pool.check_invariants()


def test_fork_attach_adopt_and_truncate_refuse_what_is_not_there():
    descriptor = CacheDescriptor(make_manager())
    descriptor.allocate([0, 1], [6, 2])
    before = snapshot(descriptor)
    for call in (
        lambda: descriptor.fork(0, 1),
        lambda: descriptor.fork(0, 2, 7),
        lambda: descriptor.fork(0, 2, -1),  # which is "all" in C++
        lambda: descriptor.fork(0, 2, -2),
        lambda: descriptor.attach(0, [0], 4),
        lambda: descriptor.attach(2, [0], 5),
        lambda: descriptor.attach(2, [9], 4),
        lambda: descriptor.attach(2, [0], -1),
        lambda: descriptor.adopt(2, [0], 4),
        lambda: descriptor.truncate(0, 7),
        lambda: descriptor.truncate(0, -1),
    ):
        with pytest.raises(InvalidArgumentError):
            call()
        assert snapshot(descriptor) == before


def test_ids_and_lengths_come_as_any_integers():
    import numpy as np
    import torch

    for ids, lengths in [
        ((1, 2), (3, 4)),
        (range(1, 3), iter([3, 4])),
        (np.array([1, 2]), np.array([3, 4], np.int16)),
        (np.array([[1, 0], [2, 0]], np.uint8)[:, 0], [np.int32(3), np.int64(4)]),
        (torch.tensor([1, 2]), torch.tensor([3, 4], dtype=torch.int32)),
        ({1: None, 2: None}, np.array([3, 4], object)),
        (np.array([1, 2], ">i8"), torch.tensor([3, 4])),
    ]:
        descriptor = CacheDescriptor(make_manager())
        descriptor.allocate(ids, lengths)
        assert (descriptor.length(1), descriptor.length(2)) == (3, 4)


def test_any_64_bit_id_is_good():
    descriptor = CacheDescriptor(make_manager())
    ids = [-(2**63), -1, 0, 2**63 - 1]
    descriptor.allocate(ids, [1, 1, 1, 1])
    assert sorted(descriptor.seq_ids()) == ids
    assert all(seq_id in descriptor for seq_id in ids)
    with pytest.raises(InvalidArgumentError):
        descriptor.allocate([2**63], [1])


def test_a_list_that_changes_while_it_is_read_does_no_harm():
    ids = []

    class Shrinks:
        def __index__(self):
            ids.clear()
            return 1

    ids += [Shrinks(), 2, 3]
    descriptor = CacheDescriptor(make_manager())
    descriptor.allocate(ids, [1])
    assert descriptor.seq_ids() == [1]


def test_a_descriptor_keeps_its_manager_and_releases_its_sequences():
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [9])
    del descriptor
    gc.collect()
    assert manager.available_pages_count == 16

    descriptor = CacheDescriptor(make_manager())
    gc.collect()
    descriptor.allocate([0], [9])
    assert descriptor.cache_manager.available_pages_count == 13


def test_values_have_readable_reprs():
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [9])
    packed = descriptor.pack_for_flashinfer([0])
    for thing in (manager, descriptor, packed, seqattn.BatchAttention(manager, 2)):
        assert repr(thing).startswith(type(thing).__name__ + "(")
    assert repr(descriptor.seq_id_to_data[0]).startswith("SequenceData(kv_page_indices=[0, 1, 2]")
    assert repr(PagePool(3, 4)) == "PagePool(num_pages=3, page_size=4, available=3)"
    assert repr(PagePool(3).free_pages) == "FreePages([0, 1, 2])"
    assert repr(seqattn.HeadIDGenerator(6)) == "HeadIDGenerator(num_kv_heads=6)"


def test_free_pages_is_a_live_sequence_in_fifo_order():
    manager = make_manager(num_pages=5)
    free = manager.free_pages
    manager.allocate(2)
    assert list(free) == [2, 3, 4]
    manager.unref([1])
    assert (len(free), free[0], free[-1], free.index(4)) == (4, 2, 1, 2)
    assert 1 in free and 0 not in free and 99 not in free and -1 not in free
    with pytest.raises(IndexError):
        free[4]
    with pytest.raises(ValueError):
        free.index(0)
    assert free[1:3] == [3, 4] and free[::-1] == [1, 4, 3, 2]
    assert free == [2, 3, 4, 1] == free and free != [2, 3, 4] and free != (2, 3, 4, 1)
    assert free == manager.free_pages and free != PagePool(5).free_pages
    assert "a" not in free and 2**70 not in free
    kept = weakref.ref(type(free))
    del manager
    gc.collect()
    assert kept() is not None and len(free) == 4


def test_ref_count_is_a_live_read_only_view():
    manager = make_manager(num_pages=3)
    counts = manager.ref_count
    manager.allocate(2)
    assert counts.tolist() == [1, 1, 0]
    assert counts.dtype == "int32"
    with pytest.raises(ValueError):
        counts[0] = 5
    del manager
    gc.collect()
    assert counts.tolist() == [1, 1, 0]


def test_an_empty_pool_is_a_pool():
    manager = make_manager(num_pages=0)
    assert manager.ref_count.shape == (0,)
    assert manager.key_cache.shape == (0, 4, 2, 8)
    assert list(manager.free_pages) == []
    with pytest.raises(seqattn.NoPageError):
        manager.allocate(1)
