"""examples/generate.py --device: the dense layers in torch, on a CPU as far as that goes, else on a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dense_check
import generate
import seqattn
import smollm2
import smollm2_torch


@pytest.fixture(scope="module")
def model(model_path):
    return smollm2.Model(model_path)


def gpu_is_missing() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        seqattn.PagedKVCacheManager(1, 16, 1, 64, torch.float16, 0)
        smollm2.find_weights()
    except (seqattn.UnsupportedError, smollm2.ModelError) as error:
        return str(error)
    return None


def test_the_layers_are_those_of_numpy(model):
    tokens = model.tokenizer.question("the quick brown fox 123")
    positions = range(900, 900 + len(tokens))
    attention = dense_check.DenseAttention("float32")

    def attend(layer, q, k, v):
        return torch.from_numpy(attention(layer, *(x.numpy() for x in (q, k, v))))

    logits = smollm2_torch.Forward(model, "cpu")(tokens, positions, attend, [0, 5, -1])
    expected = model.forward(tokens, positions, attention, [0, 5, -1])
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


needs_float8 = pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no float8_e4m3fn")


@pytest.mark.parametrize("dtype", ["float32", "f16", "bf16", pytest.param("fp8", marks=needs_float8)])
def test_answers_with_torchs_layers(model_path, dtype, capsys):
    # torch's name for the CPU takes the way that a GPU takes.
    arguments = ["--model", str(model_path), "--device", "cpu:0", "--kv-dtype", dtype, "--check", "--json"]
    assert generate.main([*arguments, "--max-tokens", "12", "one", "the two"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["device"] == "cpu:0" and result["margin"] == dense_check.DEVICE_MARGIN
    assert result["checked_tokens"] > 0


def test_the_check_still_sees_a_wrong_cache(model_path, monkeypatch, capsys):
    attend = generate.PagedModel._attend
    monkeypatch.setattr(generate.PagedModel, "_attend", lambda self, layer, q, k, v: attend(self, layer, q, k, -v))
    assert generate.main(["--model", str(model_path), "--device", "cpu:0", "--check", "one"]) == 1
    assert "answer 1 differs at token" in capsys.readouterr().err


def test_a_margin_lets_near_ties_pass():
    class Model:
        def forward(self, tokens, positions, attend, rows):
            return np.array([[0.0, 1.0, 0.9], [2.0, 1.0, 0.0]])

    assert dense_check.first_difference(Model(), [7], [1, 0], "float32") is None
    assert dense_check.first_difference(Model(), [7], [2, 0], "float32") == (0, 1)
    assert dense_check.first_difference(Model(), [7], [2, 0], "float32", margin=0.2) is None
    assert dense_check.first_difference(Model(), [7], [2, 1], "float32", margin=0.2) == (1, 0)


def test_types_go_with_the_device():
    assert generate.parse_arguments(["--device", "cuda"]).kv_dtype == "bfloat16"
    assert generate.parse_arguments(["--device", "cuda", "--kv-dtype", "f16"]).kv_dtype == "float16"
    assert generate.parse_arguments([]).device == "cpu"


@pytest.mark.parametrize("device, words", [("tpu", "device: got tpu"), ("cuda:99", "cuda:99")])
def test_a_device_that_is_not_there_is_one_line(model_path, device, words, capsys):
    assert generate.main(["--model", str(model_path), "--device", device, "one"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and words in error[0]


def test_the_device_is_checked_before_weights_and_torch():
    folder = str(Path(generate.__file__).parent)
    hide_torch = f"import sys; sys.path.insert(0, {folder!r}); sys.modules['torch'] = None"
    code = f"{hide_torch}; import generate; sys.exit(generate.main(['--device', 'cuda:98']))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("generate.py: device cuda:98")


def test_the_model_on_a_gpu():
    if reason := gpu_is_missing():
        pytest.skip(f"GPU case: {reason}")
    command = [sys.executable, generate.__file__, "--device", "cuda", "--check", "--json", "--max-tokens", "24"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kernel"].startswith("cuda-") and result["checked_tokens"] > 24
