import errno
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from support import run_python

import seqattn

ORIGINAL = {
    "NoPageError",
    "FlashInferPackedData",
    "PagedKVCacheManager",
    "SequenceData",
    "CacheDescriptor",
    "HeadIDGenerator",
}


def test_every_name_of_the_original_is_there():
    assert ORIGINAL <= set(seqattn.__all__)
    for name in seqattn.__all__:
        assert getattr(seqattn, name) is not None


def test_versions_agree():
    build = (Path(__file__).parents[2] / "CMakeLists.txt").read_text()
    assert f"project(seqattn VERSION {seqattn.__version__} " in build


def test_the_package_is_typed_and_its_stub_is_current(tmp_path):
    package = Path(seqattn.__file__).parent
    assert (package / "py.typed").is_file()
    current = tmp_path / "_core.pyi"
    subprocess.run(
        [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "seqattn._core", "-o", current],
        check=True,
    )
    checked_in = Path(__file__).parents[2] / "python" / "seqattn" / "_core.pyi"
    assert current.read_text() == checked_in.read_text()
    assert (package / "_core.pyi").read_text() == checked_in.read_text()


def test_torch_is_never_imported_first():
    run_python(
        "import sys, numpy, seqattn\n"
        "m = seqattn.PagedKVCacheManager(4, 4, 1, 8, 'bfloat16', 'cpu')\n"
        "d = seqattn.CacheDescriptor(m)\n"
        "d.allocate([0], [3])\n"
        "a = seqattn.BatchAttention(m, 1)\n"
        "a.plan(d.pack_for_flashinfer([0]), [0, 3])\n"
        "x = numpy.ones((3, 1, 8), numpy.float32)\n"
        "a.append_kv(x, x)\n"
        "a.run(x, return_lse=True)\n"
        "assert not {'torch', 'cupy', 'jax'} & set(sys.modules)\n"
    )


def test_without_ml_dtypes_bfloat16_arrays_are_their_bits():
    run_python(
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import numpy as np, seqattn\n"
        "m = seqattn.PagedKVCacheManager(4, 4, 1, 2, 'bfloat16', 'cpu')\n"
        "assert m.key_cache.dtype == np.uint16\n"
        "d = seqattn.CacheDescriptor(m)\n"
        "d.allocate([0], [1])\n"
        "ones = np.full((1, 1, 2), 0x3F80, np.uint16)\n"
        "m.append_kv(ones, ones, d.pack_for_flashinfer([0]), [0, 1])\n"
        "assert (m.key_cache[0, 0] == 0x3F80).all()\n"
        "a = seqattn.BatchAttention(m, 1)\n"
        "a.plan(d.pack_for_flashinfer([0]), [0, 1])\n"
        "out = a.run(ones)\n"
        "assert out.dtype == np.uint16 and (out == 0x3F80).all()\n"
    )


def test_the_hierarchy_of_errors():
    assert issubclass(seqattn.InvalidArgumentError, (seqattn.Error, ValueError))
    assert issubclass(seqattn.InvalidArgumentError, ValueError)
    assert issubclass(seqattn.UnknownSequenceError, KeyError)
    assert issubclass(seqattn.UnknownSequenceError, ValueError)
    for name in ("InvalidArgument", "UnknownSequence", "NoPage", "Unsupported", "Backend"):
        assert issubclass(getattr(seqattn, f"{name}Error"), seqattn.Error)
    assert not issubclass(seqattn.Error, (ValueError, KeyError))


def test_errors_and_messages_name_what_users_import():
    for name in (name for name in seqattn.__all__ if name.endswith("Error")):
        error = getattr(seqattn, name)
        assert error.__module__ == "seqattn"
        assert pickle.loads(pickle.dumps(error)) is error
    try:
        seqattn.PagePool(2).allocate(3)
    except seqattn.NoPageError as error:
        assert traceback.format_exception_only(error)[-1].startswith("seqattn.NoPageError: ")
    for wrong, name in ((seqattn.PagePool(1), "seqattn.PagePool"), (seqattn.SlidingWindow(1, 0), "SlidingWindow")):
        with pytest.raises(TypeError, match=f"got (seqattn.)?{name};"):
            seqattn.PagePool(wrong)


def test_errors_survive_pickling():
    with pytest.raises(seqattn.NoPageError) as full:
        seqattn.PagePool(2).allocate(3)
    again = pickle.loads(pickle.dumps(full.value))
    assert str(again) == str(full.value)
    assert (again.needed, again.available) == (3, 2)
    with pytest.raises(seqattn.UnknownSequenceError) as unknown:
        seqattn.CacheDescriptor(seqattn.PagePool(2)).length(7)
    again = pickle.loads(pickle.dumps(unknown.value))
    assert str(again) == str(unknown.value) and again.seq_id == unknown.value.seq_id == 7
    with pytest.raises(seqattn.FileError) as missing:
        seqattn.sequence_state_info("no such file")
    again = pickle.loads(pickle.dumps(missing.value))
    assert str(again) == str(missing.value) == "open no such file: No such file or directory"
    assert (again.errno, again.filename) == (errno.ENOENT, "no such file")


def test_the_modules_of_the_original_are_there():
    from seqattn import cache, descriptor

    assert cache.PagedKVCacheManager is descriptor.PagedKVCacheManager is seqattn.PagedKVCacheManager
    assert {name for module in (cache, descriptor) for name in module.__all__} == ORIGINAL
