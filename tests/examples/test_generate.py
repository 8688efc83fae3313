"""examples/generate.py on a tiny random model: options, sharing, the check, files that are no model."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tiny_model import write_model

import dense_check
import generate
import smollm2

SYSTEM = "the quick brown fox jumps over the lazy dog"


def ask(model, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, generate.__file__, "--model", str(model), "--system", SYSTEM, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def model(model_path):
    return smollm2.Model(model_path)


OPTIONS = ["", "--kv-dtype f16", "--kv-dtype bfloat16", "--layout nhd", "--page-size 1", "--page-size 64 --threads 1"]


@pytest.mark.parametrize("options", OPTIONS)
def test_answers_are_those_of_dense_attention(model_path, options):
    done = ask(model_path, "--check", "--json", "--max-tokens", "20", *options.split(), "one", "the two", "three 333")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [answer["question"] for answer in result["answers"]] == ["one", "the two", "three 333"]
    assert result["checked_tokens"] == sum(len(answer["tokens"]) for answer in result["answers"]) >= 3


def test_an_answer_does_not_depend_on_the_others(model_path):
    def answers(*questions):
        return json.loads(ask(model_path, "--json", *questions).stdout)["answers"]

    assert answers("one", "the two") == [*answers("one"), *answers("the two")]


def test_forks_share_the_full_pages_of_the_system_prompt(model_path, model):
    result = json.loads(ask(model_path, "--json", "--max-tokens", "1", "a", "b", "c", "d").stdout)
    full_pages = len(model.tokenizer.turn("system", SYSTEM)) // 16
    assert full_pages > 0
    assert result["pages_without_sharing"] - result["pages"] == 3 * full_pages


def test_report_ends_the_text_output(model_path):
    done = ask(model_path, "--check", "--max-tokens", "5", "one")
    assert done.stdout.startswith(f"loading {model_path.name}\n[1] > one\n")
    words = [line.split()[0] for line in done.stdout.splitlines()[-5:]]
    assert words == ["prefill", "decode", "attention", "pages", "check"]


def test_check_fails_when_the_cache_gives_other_tokens(model_path, monkeypatch, capsys):
    attend = generate.PagedModel._attend
    monkeypatch.setattr(generate.PagedModel, "_attend", lambda self, layer, q, k, v: attend(self, layer, q, k, -v))
    assert generate.main(["--model", str(model_path), "--check", "one"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "answer 1 differs at token" in error[0]


@pytest.mark.parametrize("index", [0, 3, 7])
def test_check_names_the_first_token_that_differs(model, index):
    prompt, answer = model.tokenizer.question("one"), []
    for _ in range(8):
        logits = model.forward(
            prompt + answer, range(len(prompt + answer)), dense_check.DenseAttention("float32"), [-1]
        )
        answer.append(int(logits.argmax()))
    assert dense_check.first_difference(model, prompt, answer, "float32") is None
    expected, answer[index] = answer[index], answer[index] + 1
    assert dense_check.first_difference(model, prompt, answer, "float32") == (index, expected)


def test_dense_attention_rounds_as_the_cache_does():
    x = np.float32([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, -3.14159])
    assert dense_check.rounded(x, "float32").tolist() == x.tolist()
    assert dense_check.rounded(x, "bfloat16").tolist() == [1, 1, 1 + 2**-6, 1, -3.140625]
    assert dense_check.rounded(x, "float16").tolist() == [1, 1 + 2**-8, 1 + 3 * 2**-8, 1, -3.140625]


def test_rotated_products_depend_on_distance_alone():
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 8))

    def product(q_position, k_position):
        angles = np.outer([q_position, k_position], 1e5 ** (-np.arange(0, 8, 2) / 8))[:, None, None]
        turned = [smollm2.rotate(x, np.cos(angle), np.sin(angle)) for x, angle in zip((q, k), angles, strict=True)]
        return (turned[0] * turned[1]).sum()

    assert product(907, 900) == pytest.approx(product(7, 0), abs=1e-12)
    assert product(7, 0) != pytest.approx(product(0, 0), abs=1e-3)


@pytest.mark.parametrize("text", ["", "the other", "tabs\tand\n\nlines  ", "12345", "naïve 日本語 🦊", "<|im_end|>"])
def test_text_survives_the_tokenizer_and_never_becomes_a_control_token(model, text):
    tokens = model.tokenizer.encode(text)
    assert model.tokenizer.decode(tokens) == text
    assert min(tokens, default=3) >= 3


def test_tokenizer_merges_letters_and_keeps_digits_apart(model):
    assert len(model.tokenizer.encode("the the")) == 2
    assert len(model.tokenizer.encode("1234")) == 4


def test_lines_are_streamed_when_full(model, capsys):
    screen, answer = generate.Screen(model.tokenizer, sys.stdout), generate.Answer("", [])
    answer.tokens = model.tokenizer.encode("word " * 30 + "\nshort\nhalf")
    screen.update(0, answer)
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["[1] " + " ".join(["word"] * 19), "[1] " + " ".join(["word"] * 11), "[1] short"]
    answer.tokens, answer.done = answer.tokens + model.tokenizer.encode(" done"), True
    cut = generate.Answer("", [], model.tokenizer.encode("so"), done=True)
    answer.tokens.append(min(model.tokenizer.ends))
    screen.update(0, answer)
    screen.update(1, cut)
    assert capsys.readouterr().out == "[1] half done\n[2] so [cut at --max-tokens]\n"


def damage(path, model_path, kind):
    whole = model_path.read_bytes()
    random = np.random.default_rng(1).bytes(len(whole))
    contents = {
        "empty": b"",
        "cut in the header": whole[:1000],
        "cut in the weights": whole[:-1000],
        "random": random,
        "random after the magic": whole[:8] + random[8:],
    }
    path.write_bytes(contents[kind])


@pytest.mark.parametrize(
    "kind", ["empty", "cut in the header", "cut in the weights", "random", "random after the magic"]
)
def test_a_damaged_model_is_one_line(tmp_path, model_path, kind):
    damage(tmp_path / "bad.gguf", model_path, kind)
    assert_one_line(ask(tmp_path / "bad.gguf", "one"), "bad.gguf: not a GGUF file, or a damaged one (")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"architecture": "gpt2"}, "general.architecture is 'gpt2'; this example knows 'llama' alone"),
        ({"drop": "blk.1.ffn_up"}, "the tensor blk.1.ffn_up.weight is missing"),
        ({"extra": "output"}, "it holds tensors that this example does not know: output.weight"),
        ({"scale": float("inf")}, "the tensor token_embd.weight holds values that are not finite"),
    ],
)
def test_another_kind_of_model_is_one_line(tmp_path, change, words):
    assert_one_line(ask(write_model(tmp_path / "other.gguf", **change), "one"), words)


def test_a_missing_model_is_one_line(tmp_path):
    assert_one_line(ask(tmp_path / "none.gguf", "one"), "none.gguf: No such file or directory")
    assert_one_line(ask(tmp_path, "one"), "Is a directory")


def test_a_prompt_beyond_the_context_is_one_line(model_path):
    assert_one_line(ask(model_path, "word " * 200), "the model's context has 512")


def test_a_page_size_that_no_cache_can_have_is_one_line(model_path):
    done = ask(model_path, "--page-size", str(10**12), "one")
    assert done.returncode == 2 and "argument --page-size: expected a whole number from 1 to" in done.stderr


def assert_one_line(done, words):
    assert done.returncode == 1
    assert done.stderr.startswith("generate.py: ") and done.stderr.count("\n") == 1
    assert words in done.stderr


@pytest.mark.parametrize(
    "arguments",
    ["--max-tokens 0", "--page-size -1", "--threads two", "--threads 2147483648", "--kv-dtype f8", "--layout HDN"],
)
def test_bad_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        generate.parse_arguments(arguments.split())
    assert error.value.code == 2
    assert arguments.split()[0] in capsys.readouterr().err


def test_a_question_that_is_not_utf8_is_refused(model_path):
    done = ask(model_path, b"caf\xe9")
    assert done.returncode == 2 and "expected text in UTF-8" in done.stderr.splitlines()[-1]


def test_any_answer_can_be_shown_on_any_terminal(model_path):
    command = [sys.executable, generate.__file__, "--model", str(model_path), "--max-tokens", "30", "na\u00efve \u65e5"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0 and "[1] > na?ve ?" in done.stdout


def test_a_reader_that_leaves_ends_it_quietly(model_path):
    command = [sys.executable, generate.__file__, "--model", str(model_path), "one"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_an_interrupt_is_one_line(model_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "generate", interrupt)
    assert generate.main(["--model", str(model_path), "one"]) == 130
    assert capsys.readouterr().err == "generate.py: interrupted\n"


def test_default_options():
    args = generate.parse_arguments([])
    assert len(args.questions) >= 3
    assert (args.kv_dtype, args.page_size, args.layout, args.max_tokens) == ("float32", 16, "HND", 64)
