"""The process that stands for torch in bench_cpu: what it answers, with torch in its place a stub."""

import os
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from support import attention_reference

ROOT = Path(__file__).parents[2]
STUB = Path(__file__).parent / "stub_torch"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
HEADS, GROUP, DIM = 2, 3, 16


class Peer:
    def __init__(self, path):
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "bench/cpu/torch_peer.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(path)},
        )
        self.greeting = self.answer()

    def answer(self):
        return self.process.stdout.readline().decode().strip()

    def ask(self, request, data=b""):
        self.process.stdin.write(request.encode() + b"\n" + data)
        self.process.stdin.flush()
        return self.answer()

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(timeout=20)


@pytest.fixture
def peer():
    peer = Peer(STUB)
    yield peer
    assert peer.end() == 0


def draw(rng, batch, q_len, kv_len, dtype):
    q = rng.standard_normal((batch, q_len, HEADS * GROUP, DIM), np.float32)
    k, v = rng.standard_normal((2, batch, kv_len, HEADS, DIM), np.float32).astype(DTYPES[dtype])
    request = f"case {batch} {q_len} {kv_len} {HEADS * GROUP} {HEADS} {DIM} {dtype} 3"
    return (q, k, v), request, q.tobytes() + k.tobytes() + v.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, q_len, kv_len", [(3, 1, 20), (1, 7, 7), (2, 5, 19)])
def test_it_computes_causal_attention_of_grouped_queries(peer, rng, dtype, batch, q_len, kv_len):
    assert peer.greeting == "torch stub"
    (q, k, v), request, data = draw(rng, batch, q_len, kv_len, dtype)
    assert peer.ask(request, data) == "ok"
    assert peer.ask("threads 2") == "ok"
    word, nanoseconds = peer.ask("run 2 5").split()
    assert word == "ok" and int(nanoseconds) > 0
    word, size = peer.ask("out").split()
    assert (word, int(size)) == ("ok", q.nbytes)
    out = np.frombuffer(peer.process.stdout.read(q.nbytes), np.float32).reshape(q.shape)
    for i in range(batch):
        expected, _ = attention_reference(q[i].astype(k.dtype), k[i], v[i])
        np.testing.assert_allclose(out[i], expected, rtol=0, atol=1e-5)


def test_an_error_is_an_answer_and_leaves_no_bytes_behind(peer, rng):
    _, request, data = draw(rng, 1, 1, 4, "float32")
    assert peer.ask(request.replace("float32", "float99"), b"").startswith("error")
    assert peer.ask("walk 1").startswith("error unknown request")
    assert peer.ask(request, data) == "ok"
    assert peer.ask("run 0 1").startswith("ok ")


def test_it_sleeps_while_nobody_asks(peer, rng):
    _, request, data = draw(rng, 1, 1, 4, "float32")
    peer.ask(request, data)

    def switches():
        """How often the main thread has gone to sleep or been put off, or None while it is running."""
        lines = Path(f"/proc/{peer.process.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        if fields["State"].split()[0] != "S":
            return None
        return fields["voluntary_ctxt_switches"], fields["nonvoluntary_ctxt_switches"]

    # One that spins is never asleep; one that polls wakes between two looks. It may take its time to come to rest.
    deadline = time.monotonic() + 20
    before = switches()
    while time.monotonic() < deadline:
        time.sleep(0.2)
        now = switches()
        if now is not None and now == before:
            return
        before = now
    pytest.fail(f"it does not sleep: {before}")


@pytest.mark.parametrize(
    "module, greeting", [("raise ImportError", "none not installed"), (None, "none 1.0, which is too old")]
)
def test_it_says_why_there_is_no_torch(tmp_path, module, greeting):
    (tmp_path / "torch.py").write_text(
        module
        or "import types\n__version__ = '1.0'\n"
        "nn = types.SimpleNamespace(functional=types.SimpleNamespace())\n"
    )
    peer = Peer(tmp_path)
    assert peer.greeting.startswith(greeting)
    assert peer.end() == 0
