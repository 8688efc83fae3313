"""Saved sequences and the system: pipes, links, full disks, file objects, memory."""

import gzip
import io
import os

import numpy as np
import pytest
from support import make_manager, refused, run_python

import seqattn
from seqattn import CacheDescriptor, FileError, InvalidArgumentError, restore_sequence, save_sequence


def make_cache(rng, num_tokens=11):
    manager = make_manager(num_layers=2)
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([1], [num_tokens])
    for layer in range(2):
        keys, values = rng.standard_normal((2, num_tokens, 2, 8)).astype(np.float32)
        manager.write_kv(descriptor.pages(1), 0, keys, values, layer)
    return manager, descriptor


def test_a_pipe_is_refused_at_once(rng, tmp_path):
    _, descriptor = make_cache(rng)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # nobody writes to it
    for call in (lambda: restore_sequence(descriptor, 9, pipe), lambda: seqattn.sequence_state_info(pipe)):
        with refused(FileError, "pipe: no regular file; expected one that save_sequence wrote", descriptor):
            call()


def test_a_path_that_names_no_file_is_refused_at_once(rng, tmp_path, monkeypatch):
    _, descriptor = make_cache(rng)
    monkeypatch.chdir(tmp_path)
    for path in ("", "new/"):
        with refused(FileError, "names no file; expected the path of one", descriptor):
            save_sequence(descriptor, 1, path)
    assert os.listdir(tmp_path) == []


def test_a_link_to_a_file_that_is_not_there_is_followed(rng, tmp_path):
    _, descriptor = make_cache(rng)
    (tmp_path / "link").symlink_to("one.state")
    save_sequence(descriptor, 1, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "one.state").read_bytes() == save_sequence(descriptor, 1)


FULL_DISK = """
import resource, signal, sys
import seqattn
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
descriptor = seqattn.CacheDescriptor(seqattn.PagedKVCacheManager(64, 4, 2, 8, "float32", "cpu"))
descriptor.allocate([1], [100])
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    seqattn.save_sequence(descriptor, 1, {path!r})
except seqattn.FileError as error:
    print(error, error.errno, error.filename)
"""


def test_on_a_full_disk_the_old_file_stays(tmp_path):
    path = tmp_path / "one.state"
    path.write_text("what was there")
    assert run_python(FULL_DISK.format(path=str(path))) == f"write {path}: File too large 27 {path}\n"
    assert os.listdir(tmp_path) == ["one.state"]
    assert path.read_text() == "what was there"


MEMORY = """
import resource
import seqattn
manager = seqattn.PagedKVCacheManager(4200, 16, 4, 64, "float16", "cpu")
descriptor = seqattn.CacheDescriptor(manager)
descriptor.allocate([1], [32768])
for cache in manager.get_memory_tensors():
    cache[...] = 1  # every page is there from here on
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
seqattn.save_sequence(descriptor, 1, {path!r})
seqattn.restore_sequence(descriptor, 2, {path!r})
descriptor.release([2])
with open({path!r}, "wb") as file:
    seqattn.save_sequence(descriptor, 1, file)
with open({path!r}, "rb") as file:
    seqattn.restore_sequence(descriptor, 3, file)
print(peak() - before, seqattn.sequence_state_info({path!r}).num_bytes)
"""


def test_files_take_little_memory_however_long_the_sequence(tmp_path):
    growth, num_bytes = map(int, run_python(MEMORY.format(path=str(tmp_path / "long.state"))).split())
    assert num_bytes > 32 << 20
    assert growth < num_bytes / 2  # records of 4 MiB, as bytes objects too


def test_file_objects(rng, tmp_path):
    _, descriptor = make_cache(rng)
    state = save_sequence(descriptor, 1)
    memory = io.BytesIO()
    assert save_sequence(descriptor, 1, memory) is None
    memory.write(b"what follows")
    assert memory.getvalue() == state + b"what follows"
    memory.seek(0)
    info = restore_sequence(descriptor, 2, memory)
    assert memory.read() == b"what follows"
    with gzip.open(tmp_path / "one.gz", "wb") as file:
        save_sequence(descriptor, 1, file)
    with gzip.open(tmp_path / "one.gz", "rb") as file:
        assert restore_sequence(descriptor, 3, file) == info
    assert save_sequence(descriptor, 2) == save_sequence(descriptor, 3) == state


class Trickle(io.RawIOBase):
    """Takes and gives a few bytes at a time."""

    def __init__(self, content=b""):
        self.content = bytearray(content)

    def write(self, data):
        self.content += bytes(data)[:7]
        return min(len(data), 7)

    def read(self, size=-1):
        part, self.content = self.content[: min(size, 5)], self.content[min(size, 5) :]
        return bytes(part)


def test_file_objects_may_be_slow(rng):
    _, descriptor = make_cache(rng)
    state, file = save_sequence(descriptor, 1), Trickle()
    save_sequence(descriptor, 1, file)
    assert file.content == state
    restore_sequence(descriptor, 2, Trickle(state))
    assert save_sequence(descriptor, 2) == state


class Broken:
    def __init__(self, answer):
        self.answer = answer

    def write(self, data):
        return self.answer(data)

    read = write


def fail(_):
    raise ConnectionError("the line is dead")


def test_file_objects_cannot_touch_the_pages_of_a_restore(rng):
    manager, descriptor = make_cache(rng)
    state = io.BytesIO(save_sequence(descriptor, 1))
    calls = manager.unref, manager.release_pages, manager.ref
    own = set(descriptor.pages(1))

    def meddle(size):
        for page in range(manager.num_pages):
            if manager.ref_count[page] == 1 and page not in own:
                for call in calls:
                    with pytest.raises(seqattn.Error, match="while Python code works for a call"):
                        call([page])
        return state.read(size)

    restore_sequence(descriptor, 9, Broken(meddle))
    manager.check_invariants()
    assert save_sequence(descriptor, 9) == save_sequence(descriptor, 1)


def test_file_objects_that_fail_change_nothing(rng):
    _, descriptor = make_cache(rng)
    state = save_sequence(descriptor, 1)
    for answer, error, message in (
        (fail, ConnectionError, "the line is dead"),
        (lambda data: 0, InvalidArgumentError, "path.write: took 0 of 104 bytes"),
        (lambda data: 999, InvalidArgumentError, "path.write: took 999 of 104 bytes"),
        (lambda data: "all", TypeError, "the answer of path.write: got str"),
        (lambda data: descriptor.release([1]), seqattn.Error, "while Python code works for a call"),
    ):
        with refused(error, message, descriptor):
            save_sequence(descriptor, 1, Broken(answer))
    for answer, error, message in (
        (fail, ConnectionError, "the line is dead"),
        (lambda size: "text", TypeError, "state.read: got str; expected bytes"),
        (lambda size: None, TypeError, "state.read: got None; expected bytes"),
        (lambda size: b"x" * (size + 1), InvalidArgumentError, "state.read: got 105 bytes; expected at most 104"),
        (lambda size: descriptor.allocate([5], [1]), seqattn.Error, "while Python code works for a call"),
    ):
        with refused(error, message, descriptor):
            restore_sequence(descriptor, 9, Broken(answer))
    with pytest.raises(TypeError, match="state: got BytesIO; expected bytes or a path"):
        seqattn.sequence_state_info(io.BytesIO(state))
    with pytest.raises(TypeError):
        save_sequence(descriptor, 1, io.StringIO())
