"""What the original package did wrong, by the behaviour that is right."""

import numpy as np
import pytest
from support import make_manager, snapshot

import seqattn
from seqattn import CacheDescriptor, HeadIDGenerator, InvalidArgumentError, NoPageError


def test_append_continues_at_the_end_of_the_sequence(rng):
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    written = rng.standard_normal((11, 2, 8), np.float32)
    for first, last in [(0, 6), (6, 7), (7, 11)]:
        descriptor.allocate([5], [last - first])
        manager.append_kv(
            written[first:last],
            -written[first:last],
            descriptor.pack_for_flashinfer([5]),
            [0, last - first],
        )
    keys, values = manager.read_kv(descriptor.pages(5), 0, 11)
    np.testing.assert_array_equal(keys, written)
    np.testing.assert_array_equal(values, -written)


def test_appending_more_than_the_sequence_holds_writes_nothing():
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [3])
    before = snapshot(descriptor)
    tokens = np.ones((4, 2, 8), np.float32)
    with pytest.raises(InvalidArgumentError):
        manager.append_kv(tokens, tokens, descriptor.pack_for_flashinfer([0]), [0, 4])
    assert snapshot(descriptor) == before


def test_decode_on_a_full_pool_changes_nothing():
    manager = make_manager(num_pages=2)
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([1, 2], [3, 4])
    before = snapshot(descriptor)
    with pytest.raises(NoPageError) as full:
        descriptor.allocate_decoding([1, 2])
    assert (full.value.needed, full.value.available) == (1, 0)
    assert snapshot(descriptor) == before


def test_decode_with_an_unknown_id_changes_nothing():
    descriptor = CacheDescriptor(make_manager())
    descriptor.allocate([1, 2], [3, 4])
    before = snapshot(descriptor)
    with pytest.raises(KeyError):
        descriptor.allocate_decoding([1, 77, 2])
    assert snapshot(descriptor) == before


def test_a_repeated_id_grows_twice():
    descriptor = CacheDescriptor(make_manager())
    descriptor.allocate([1, 1], [3, 3])
    assert descriptor.length(1) == 6
    descriptor.allocate([2], [4])
    descriptor.allocate_decoding([2, 2])
    assert descriptor.length(2) == 6
    assert len(descriptor.pages(2)) == 2


def test_releasing_an_id_twice_in_one_call_releases_it_once():
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([1], [8])
    descriptor.fork(1, 2)
    assert descriptor.release([1, 1]) == 1
    assert manager.ref_count[:2].tolist() == [1, 1]
    assert descriptor.length(2) == 8


@pytest.mark.parametrize("lengths", [[-5, 8], [8, -1], [2**62 + 1, 1], [1, 2**63]])
def test_lengths_out_of_range_change_nothing(lengths):
    descriptor = CacheDescriptor(make_manager())
    before = snapshot(descriptor)
    with pytest.raises(InvalidArgumentError):
        descriptor.allocate([1, 2], lengths)
    assert snapshot(descriptor) == before


def test_a_negative_number_of_pages_is_an_error():
    manager = make_manager()
    with pytest.raises(InvalidArgumentError):
        manager.allocate(-3)
    assert manager.available_pages_count == 16


def test_an_empty_sequence_packs_length_zero_and_attends_to_nothing():
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([4], [0])
    packed = descriptor.pack_for_flashinfer([4])
    assert packed.kv_last_page_len.tolist() == [0]
    assert packed.kv_page_indptr.tolist() == [0, 0]
    attention = seqattn.BatchAttention(manager, 2)
    attention.plan(packed, [0, 2])
    out, lse = attention.run(np.full((2, 2, 8), np.nan, np.float32), return_lse=True)
    assert (out == 0).all()
    assert (lse == -np.inf).all()


@pytest.mark.parametrize("call", ["ref", "unref", "release_pages"])
@pytest.mark.parametrize("pages", [[5], [-1], [16], [0, 5], [2**31], [-(2**40)]])
def test_free_and_unknown_pages_are_refused(call, pages):
    manager = make_manager()
    manager.allocate(2)
    before = (list(manager.free_pages), manager.ref_count.tolist())
    with pytest.raises(InvalidArgumentError):
        getattr(manager, call)(pages)
    assert (list(manager.free_pages), manager.ref_count.tolist()) == before


def test_a_count_never_falls_below_zero():
    manager = make_manager()
    manager.allocate(2)
    with pytest.raises(InvalidArgumentError):
        manager.unref([0, 1, 0])
    assert manager.ref_count[:2].tolist() == [1, 1]


def test_a_page_is_never_in_the_free_list_twice():
    manager = make_manager(num_pages=3)
    (page,) = manager.allocate(1)
    manager.unref([page])
    for call in (manager.ref, manager.ref, manager.unref):
        with pytest.raises(InvalidArgumentError):
            call([page])
    assert sorted(manager.free_pages) == [0, 1, 2]


def test_sharers_of_a_partly_filled_page_do_not_write_the_same_slot(rng):
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    prompt = rng.standard_normal((6, 2, 8), np.float32)
    descriptor.allocate([0], [6])
    manager.append_kv(prompt, prompt, descriptor.pack_for_flashinfer([0]), [0, 6])
    descriptor.fork(0, 1)
    copies = descriptor.allocate_decoding([0, 1])
    assert [(c.source, c.target) for c in copies] == [(1, 2)]
    new = rng.standard_normal((2, 2, 8), np.float32)
    manager.append_kv(new, new, descriptor.pack_for_flashinfer([0, 1]), [0, 1, 2])
    for seq_id in (0, 1):
        keys, _ = manager.read_kv(descriptor.pages(seq_id), 0, 7)
        np.testing.assert_array_equal(keys, np.concatenate([prompt, new[seq_id : seq_id + 1]]))


def test_writing_a_shared_page_is_refused():
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [6])
    descriptor.fork(0, 1)
    before = snapshot(descriptor)
    tokens = np.ones((6, 2, 8), np.float32)
    with pytest.raises(InvalidArgumentError):
        manager.append_kv(tokens, tokens, descriptor.pack_for_flashinfer([0]), [0, 6])
    assert snapshot(descriptor) == before


def test_pages_can_be_forked_and_attached():
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [10])
    descriptor.fork(0, 1, 5)
    descriptor.attach(2, descriptor.pages(0)[:2], 8)
    assert descriptor.pages(1) == descriptor.pages(2) == [0, 1]
    assert manager.ref_count[:3].tolist() == [3, 3, 1]


@pytest.mark.parametrize("num_kv_heads", [1, 2, 3, 5, 6, 7, 8, 10, 12, 24, 32])
def test_head_ids_never_collide(num_kv_heads):
    generator = HeadIDGenerator(num_kv_heads)
    assert generator.num_kv_heads == num_kv_heads
    ids = {generator.get_head_id(s, h) for s in range(9) for h in range(num_kv_heads)}
    assert len(ids) == 9 * num_kv_heads
    if num_kv_heads.bit_count() == 1:
        shift = num_kv_heads.bit_length() - 1
        assert generator.get_head_id(5, num_kv_heads - 1) == (5 << shift) | (num_kv_heads - 1)


def test_head_ids_check_their_range():
    generator = HeadIDGenerator(6)
    for seq_id, head in [(0, 6), (0, -1), (2**62, 0), (2**64, 0), (0, 2**64)]:
        with pytest.raises(InvalidArgumentError):
            generator.get_head_id(seq_id, head)
    for count in (0, -1, 2**64):
        with pytest.raises(InvalidArgumentError):
            HeadIDGenerator(count)


def test_an_unknown_sequence_is_a_key_error_and_a_value_error_with_a_plain_message():
    descriptor = CacheDescriptor(make_manager())
    for call in (
        lambda: descriptor.allocate_decoding([7]),
        lambda: descriptor.pack_for_flashinfer([7]),
        lambda: descriptor.length(7),
        lambda: descriptor.truncate(7, 0),
        lambda: descriptor.fork(7, 8),
        lambda: descriptor.seq_id_to_data[7],
    ):
        with pytest.raises(seqattn.UnknownSequenceError) as error:
            call()
        assert isinstance(error.value, KeyError)
        assert isinstance(error.value, ValueError)
        assert str(error.value) == "Sequence ID 7 not found in cache descriptor"
    assert descriptor.release([7]) == 0


def test_layers_share_one_page_table(rng):
    manager = make_manager(num_layers=3)
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [5])
    packed = descriptor.pack_for_flashinfer([0])
    tokens = rng.standard_normal((3, 5, 2, 8), np.float32)
    for layer in range(3):
        manager.append_kv(tokens[layer], tokens[layer], packed, [0, 5], layer=layer)
    for layer in range(3):
        keys, _ = manager.read_kv(descriptor.pages(0), 0, 5, layer=layer)
        np.testing.assert_array_equal(keys, tokens[layer])


def test_the_cache_starts_as_zeros_and_unwritten_slots_never_reach_an_output(rng):
    manager = make_manager()
    assert not manager.key_cache.any()
    assert not manager.value_cache.any()
    manager.key_cache[:] = np.nan
    manager.value_cache[:] = np.nan
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [5])
    tokens = rng.standard_normal((5, 2, 8), np.float32)
    attention = seqattn.BatchAttention(manager, 2)
    attention.plan(descriptor.pack_for_flashinfer([0]), [0, 5])
    attention.append_kv(tokens, tokens)
    assert np.isfinite(attention.run(tokens)).all()


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_pages": -1},
        {"num_pages": 2**31},
        {"num_pages": 2**64},
        {"page_size": 0},
        {"page_size": 2**31},
        {"num_heads": 0},
        {"head_dim": -8},
        {"head_dim_v": -1},
        {"num_layers": 0},
        {"num_pages": 2**20, "page_size": 2**30, "num_heads": 2**10, "head_dim": 2**10},
    ],
)
def test_sizes_out_of_range_are_refused(sizes):
    with pytest.raises(InvalidArgumentError):
        make_manager(**sizes)


def test_packed_data_compares_by_content():
    descriptor = CacheDescriptor(make_manager())
    descriptor.allocate([0, 1], [5, 6])
    packed = descriptor.pack_for_flashinfer([0, 1])
    same = descriptor.pack_for_flashinfer([0, 1])
    assert packed == same
    assert hash(packed) == hash(same)
    assert packed != descriptor.pack_for_flashinfer([1, 0])
    assert packed != 3


def test_length_truncate_clear_and_stats():
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0, 1], [10, 3])
    descriptor.fork(0, 2, 4)
    assert (descriptor.length(0), descriptor.num_kv_tokens(0)) == (10, 10)
    descriptor.truncate(0, 5)
    assert descriptor.pages(0) == [0, 1]
    assert descriptor.stats() == seqattn.Stats(
        num_sequences=3,
        num_tokens=12,
        num_page_references=4,
        num_pages=3,
        num_shared_pages=1,
        num_free_pages=13,
    )
    descriptor.check_invariants()
    descriptor.clear()
    assert len(descriptor) == 0
    assert manager.available_pages_count == 16
