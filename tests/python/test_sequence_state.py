import os
import pathlib

import numpy as np
import pytest
import torch
from support import make_manager, refused, snapshot, to_numpy

import seqattn
from seqattn import (
    CacheDescriptor,
    FileError,
    InvalidArgumentError,
    NoPageError,
    SequenceStateError,
    SequenceStateInfo,
    restore_sequence,
    save_sequence,
    sequence_state_info,
)


def make_cache(rng, num_tokens=11, dtype="float32", **options):
    """A cache whose sequence 1 holds random tokens."""
    manager = make_manager(dtype=dtype, num_layers=2, head_dim_v=4, **options)
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([1], [num_tokens])
    for layer in range(2):
        keys = rng.standard_normal((num_tokens, 2, 8), np.float32)
        values = rng.standard_normal((num_tokens, 2, 4), np.float32)
        manager.write_kv(descriptor.pages(1), 0, keys, values, layer)
    return manager, descriptor


def held(descriptor, seq_id):
    manager = descriptor.cache_manager
    pages, count = descriptor.pages(seq_id), descriptor.num_kv_tokens(seq_id)
    return [part for layer in range(2) for part in manager.read_kv(pages, 0, count, layer)]


def assert_same(parts, others):
    for part, other in zip(parts, others, strict=True):
        np.testing.assert_array_equal(to_numpy(part), to_numpy(other))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("num_tokens", [0, 1, 3, 4, 5, 11])
def test_bytes_restore_into_another_page_size_and_layout(rng, dtype, num_tokens):
    _, source = make_cache(rng, num_tokens, dtype)
    state = save_sequence(source, 1)
    assert isinstance(state, bytes)
    target = CacheDescriptor(make_manager(page_size=3, dtype=dtype, num_layers=2, head_dim_v=4, kv_layout="HND"))
    expected = SequenceStateInfo(
        length=num_tokens,
        num_kv_tokens=num_tokens,
        window=seqattn.SlidingWindow(0, 0),
        dropped_to=0,
        num_dropped=0,
        num_in_front=0,
        compacted_to=0,
        num_layers=2,
        num_heads=2,
        head_dim=8,
        head_dim_v=4,
        dtype=dtype,
        num_bytes=len(state),
    )
    assert sequence_state_info(source, 1) == sequence_state_info(state) == expected
    for seq_id, buffer in enumerate((state, bytearray(state), memoryview(state), np.frombuffer(state, np.uint8))):
        assert restore_sequence(target, seq_id, buffer) == expected
        assert_same(held(target, seq_id), held(source, 1))
        assert target.length(seq_id) == num_tokens
    target.check_invariants()


@pytest.mark.parametrize("other", ["float32", "float16", "bfloat16"])
def test_another_dtype_is_reached_by_way_of_float32(rng, other):
    torch_dtype = getattr(torch, other)
    _, source = make_cache(rng, dtype="bfloat16")
    target = CacheDescriptor(seqattn.PagedKVCacheManager(9, 2, 2, 8, torch_dtype, "cpu", head_dim_v=4, num_layers=2))
    restore_sequence(target, 5, save_sequence(source, 1))
    for part, expected in zip(held(target, 5), held(source, 1), strict=True):
        assert part.dtype == torch_dtype
        assert torch.equal(part, torch.from_numpy(expected.astype(np.float32)).to(torch_dtype))


@pytest.mark.parametrize("as_path", [str, pathlib.Path])
def test_files(rng, tmp_path, as_path):
    _, descriptor = make_cache(rng)
    path = as_path(tmp_path / "one.state")
    (tmp_path / "one.state").write_text("what was there")
    save_sequence(descriptor, 1, path)
    save_sequence(descriptor, 1, path=path)
    assert os.listdir(tmp_path) == ["one.state"]
    assert (tmp_path / "one.state").read_bytes() == save_sequence(descriptor, 1)
    assert sequence_state_info(path) == restore_sequence(descriptor, 2, path)
    assert_same(held(descriptor, 2), held(descriptor, 1))


def test_a_window_and_what_it_dropped_are_saved(rng):
    manager, source = make_cache(rng, num_tokens=6)
    source.set_window(1, 5, 2)
    for _ in range(12):
        source.allocate_decoding([1])
    info = sequence_state_info(source, 1)
    assert (info.length, info.window) == (18, seqattn.SlidingWindow(5, 2))
    assert info.num_kv_tokens == source.num_kv_tokens(1) < 18
    target = CacheDescriptor(make_manager(page_size=3, num_layers=2, head_dim_v=4), window=99)
    assert restore_sequence(target, 2, save_sequence(source, 1)) == info
    assert target.window(2) == info.window and target.kept_from(2) == source.kept_from(1)
    assert_same(held(target, 2), held(source, 1))
    source.allocate_tree(1, [-1, 0])
    with pytest.raises(InvalidArgumentError, match="pending tree of 2 draft tokens"):
        save_sequence(source, 1)


def spoilt(state):
    """What is no state, and what the message says of it."""
    changed = bytearray(state)
    changed[len(state) // 2] ^= 1
    yield b"", "is empty; expected what save_sequence wrote"
    yield b"a file of text", "does not begin"
    yield state[:100], "truncated: ends after 100 bytes; expected"
    yield state[:-1], "truncated"
    yield bytes(changed), "corrupted"


@pytest.mark.parametrize("kind", ["bytes", "path", "file"])
def test_what_is_no_state_changes_nothing(rng, tmp_path, kind):
    _, descriptor = make_cache(rng)
    state, path = save_sequence(descriptor, 1), tmp_path / "one.state"
    cases = [*spoilt(state)]
    if kind != "file":  # which is read to the state's end and no further
        cases.append((state + b"x", "goes on behind its"))
    for wrong, message in cases:
        path.write_bytes(wrong)
        name = f"{path}: " if kind == "path" else ""
        with refused(SequenceStateError, name + message, descriptor, num_parts=3), open(path, "rb") as file:
            restore_sequence(descriptor, 9, {"bytes": wrong, "path": path, "file": file}[kind])
        assert save_sequence(descriptor, 1) == state
    with pytest.raises(SequenceStateError):
        sequence_state_info(b"nothing of ours")
    descriptor.check_invariants()


def test_refusals(rng, tmp_path):
    manager, descriptor = make_cache(rng)
    state = save_sequence(descriptor, 1)
    with pytest.raises(InvalidArgumentError, match="sequence 1 exists"):
        restore_sequence(descriptor, 1, state)
    with pytest.raises(seqattn.UnknownSequenceError):
        save_sequence(descriptor, 7)
    with pytest.raises(seqattn.UnknownSequenceError):
        save_sequence(descriptor, 7, tmp_path / "seven")
    assert os.listdir(tmp_path) == []
    with pytest.raises(InvalidArgumentError, match="got a sequence of num_layers 2; expected 1"):
        restore_sequence(CacheDescriptor(make_manager(head_dim_v=4)), 1, state)
    with pytest.raises(InvalidArgumentError, match="over a bare pool"):
        restore_sequence(CacheDescriptor(seqattn.PagePool(9, 4)), 1, state)
    manager.allocate(manager.available_pages_count - 2)
    before = snapshot(descriptor)
    with pytest.raises(NoPageError) as error:
        restore_sequence(descriptor, 9, state)
    assert (error.value.needed, error.value.available) == (3, 2)
    assert snapshot(descriptor) == before


def test_files_that_cannot_be_opened_are_os_errors(rng, tmp_path):
    _, descriptor = make_cache(rng)
    for call in (
        lambda: restore_sequence(descriptor, 9, tmp_path / "missing"),
        lambda: sequence_state_info(str(tmp_path / "missing")),
        lambda: save_sequence(descriptor, 1, tmp_path / "missing" / "one"),
    ):
        with pytest.raises(FileError, match="open .*missing.*: No such file or directory") as error:
            call()
        assert isinstance(error.value, OSError) and error.value.errno == 2
        # What the caller named, not the temporary file beside it.
        assert error.value.filename in (str(tmp_path / "missing"), str(tmp_path / "missing" / "one"))
    with pytest.raises(OSError, match="no regular file") as error:
        save_sequence(descriptor, 1, tmp_path)
    assert (error.value.filename, error.value.errno) == (str(tmp_path), 0)
    assert os.listdir(tmp_path) == []
    assert FileError("of nobody's").filename is None


def test_names_of_files_need_no_encoding(tmp_path):
    name = os.fsdecode(bytes(tmp_path / "odd") + b"\xff")
    with pytest.raises(FileError, match=r"open .*odd\\xff: No such file") as error:
        sequence_state_info(name)
    assert error.value.filename == name
    with open(name, "wb") as file:
        file.write(b"of another kind")
    with pytest.raises(SequenceStateError, match=r"odd\\xff: does not begin"):
        sequence_state_info(name)


def test_arguments_of_other_types_are_named(rng):
    _, descriptor = make_cache(rng)
    with pytest.raises(TypeError, match="descriptor: got int; expected a CacheDescriptor"):
        save_sequence(3, 1)
    with pytest.raises(TypeError, match="descriptor: got None; expected a CacheDescriptor"):
        restore_sequence(None, 1, b"")
    with pytest.raises(TypeError, match="path: got int; expected a str, an os.PathLike or a binary file"):
        save_sequence(descriptor, 1, 3)
    with pytest.raises(TypeError, match="path: got bytes; expected"):
        save_sequence(descriptor, 1, b"name")
    for wrong in (3, None):
        with pytest.raises(TypeError, match="state: got .*; expected bytes, a path or a binary file"):
            restore_sequence(descriptor, 9, wrong)
    with pytest.raises(TypeError, match="seq_id: got str"):
        save_sequence(descriptor, "one")
    with pytest.raises(ValueError, match="null"):
        save_sequence(descriptor, 1, "a\0b")
    with pytest.raises(InvalidArgumentError, match="state: got ndarray whose memory has gaps"):
        restore_sequence(descriptor, 9, np.zeros(100, np.uint8)[::2])


def test_write_kv_is_the_way_back_of_read_kv(rng):
    manager, descriptor = make_cache(rng, dtype="float16")
    keys, values = manager.read_kv(descriptor.pages(1), 3, 7, 1)
    descriptor.allocate([2], [9])
    manager.write_kv(descriptor.pages(2), 2, keys, values)
    assert_same(manager.read_kv(descriptor.pages(2), 2, 7), (keys, values))
    before = snapshot(descriptor)
    with pytest.raises(InvalidArgumentError, match="got first 6 and count 7"):
        manager.write_kv(descriptor.pages(2), 6, keys, values)
    with pytest.raises(InvalidArgumentError, match="values: got"):
        manager.write_kv(descriptor.pages(2), 0, keys, keys)
    descriptor.fork(2, 3)
    with pytest.raises(InvalidArgumentError, match="references; expected 1"):
        manager.write_kv(descriptor.pages(3), 0, keys, values)
    descriptor.release([3])
    assert snapshot(descriptor) == before
