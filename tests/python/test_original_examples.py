"""The three snippets of the original package's README, as they stood but for device and dtype."""

import numpy as np
import pytest
import torch


@pytest.mark.parametrize(
    "dtype,device",
    [(torch.float16, "cpu"), (torch.float16, torch.device("cpu")), ("float16", "cpu")],
)
def test_original_readme(dtype, device):
    from seqattn import CacheDescriptor, PagedKVCacheManager

    # Initialize cache manager
    cache_manager = PagedKVCacheManager(
        num_pages=1024,
        page_size=16,
        num_heads=32,
        head_dim=128,
        dtype=dtype,
        device=device,
    )

    # Create sequence descriptor
    descriptor = CacheDescriptor(cache_manager)

    # Allocate for sequences
    seq_ids = [1, 2, 3]
    seq_lengths = [100, 150, 80]
    descriptor.allocate(seq_ids, seq_lengths)

    # Pack for flashinfer
    flashinfer_data = descriptor.pack_for_flashinfer(seq_ids)

    tensor = torch.Tensor if isinstance(dtype, torch.dtype) else np.ndarray
    int32 = torch.int32 if isinstance(dtype, torch.dtype) else np.int32
    for field, expected in [
        (flashinfer_data.kv_page_indices, list(range(7 + 10 + 5))),
        (flashinfer_data.kv_page_indptr, [0, 7, 17, 22]),
        (flashinfer_data.kv_last_page_len, [4, 6, 16]),
    ]:
        assert isinstance(field, tensor)
        assert field.dtype == int32
        assert field.tolist() == expected

    # Share pages between sequences with common prefixes
    shared_pages = [0, 1, 2]  # Pages containing shared prefix
    cache_manager.ref(shared_pages)  # Increment reference count
    assert cache_manager.ref_count[:4].tolist() == [2, 2, 2, 1]

    from seqattn import HeadIDGenerator

    # Generate unique head IDs for head-wise attention
    head_gen = HeadIDGenerator(num_kv_heads=32)
    head_id = head_gen.get_head_id(seq_id=1, head_idx=5)
    assert head_id == 37
    ## use head-ids as if they are seq-ids.
    descriptor.allocate([head_id], [16])
    assert descriptor.seq_id_to_data[head_id].last_page_len == 16


def test_original_attributes_and_keywords():
    import seqattn
    from seqattn import CacheDescriptor, FlashInferPackedData, PagedKVCacheManager, SequenceData

    manager = PagedKVCacheManager(8, 4, 2, 16, torch.float32, torch.device("cpu"), "HND")
    assert (manager.num_pages, manager.page_size) == (8, 4)
    assert (manager.num_heads, manager.head_dim) == (2, 16)
    assert manager.dtype is torch.float32
    assert manager.device == torch.device("cpu")
    assert manager.kv_layout == "HND"
    assert manager.key_cache.shape == manager.value_cache.shape == (8, 2, 4, 16)
    assert manager.available_pages_count == len(manager.free_pages) == 8
    assert isinstance(manager.ref_count, np.ndarray)

    keys, values = manager.get_memory_tensors()
    assert keys.data_ptr() == manager.key_cache.data_ptr()
    assert values.data_ptr() == manager.value_cache.data_ptr()

    pages = manager.allocate(num_pages=3)
    assert pages == [0, 1, 2]
    manager.ref(page_indices=pages)
    manager.unref(page_indices=pages)
    manager.release_pages(page_indices=[1, 0, 2])
    assert list(manager.free_pages) == [3, 4, 5, 6, 7, 1, 0, 2]

    descriptor = CacheDescriptor(cache_manager=manager)
    assert descriptor.cache_manager is manager
    descriptor.allocate(seq_ids=[9], seq_new_lens=[4])
    descriptor.allocate_decoding(seq_ids=[9])
    assert descriptor.seq_id_to_data == {9: SequenceData(kv_page_indices=[3, 4], last_page_len=1)}
    packed = descriptor.pack_for_flashinfer(seq_ids=[9])
    assert packed.to_device(device=torch.device("cpu"), non_blocking=True) == packed
    assert isinstance(packed, FlashInferPackedData)
    manager.append_kv(
        keys=torch.ones(5, 2, 16),
        values=torch.ones(5, 2, 16),
        flashinfer_data=packed,
        append_indptr_cpu=torch.tensor([0, 5], dtype=torch.int32),
    )
    assert manager.key_cache[3].eq(1).all()
    descriptor.release(seq_ids=[9])
    with pytest.raises(seqattn.NoPageError, match="Need 9 pages but only 8 available"):
        manager.allocate(9)
    with pytest.raises(ValueError, match="Unsupported kv_layout: DHN"):
        PagedKVCacheManager(8, 4, 2, 16, torch.float32, "cpu", kv_layout="DHN")


def test_a_descriptor_starts_with_given_sequences_or_leaves_them_alone():
    from seqattn import CacheDescriptor, InvalidArgumentError, PagedKVCacheManager, SequenceData

    manager = PagedKVCacheManager(8, 4, 2, 16, "float32", "cpu")
    pages = manager.allocate(3)
    with pytest.raises(InvalidArgumentError):
        CacheDescriptor(manager, {1: SequenceData(pages[:2], 4), 2: SequenceData([7], 1)})
    assert manager.ref_count[:3].tolist() == [1, 1, 1]
    descriptor = CacheDescriptor(manager, seq_id_to_data={1: SequenceData(pages[:2], 4)})
    assert descriptor.length(1) == 8
