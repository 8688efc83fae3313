"""The same model without a cache: whole sequences through plain dense attention, in numpy alone."""

import numpy as np

# How far below the best logit a token may lie that a device chose. Its kernels round queries and softmax weights to 16
# bits, which the CPU's do not. With SmolLM2 and bfloat16 that moves the differences among the five best logits by 0.025
# (root mean square), so that a token 0.25 below the best is no matter of rounding.
DEVICE_MARGIN = 0.25


def explain(model, system: list[int], answers: list, kv_dtype: str, margin: float) -> str | None:
    """Computes the answers again; a sentence on the first token that differs, or None."""
    for number, answer in enumerate(answers, start=1):
        difference = first_difference(model, system + answer.prompt, answer.tokens, kv_dtype, margin)
        if difference:
            index, expected = difference
            words = [f"{token} {model.tokenizer.decode([token])!r}" for token in (answer.tokens[index], expected)]
            return f"answer {number} differs at token {index}: {words[0]} through the cache, {words[1]} without one"
    return None


def first_difference(
    model, prompt: list[int], answer: list[int], kv_dtype: str, margin: float = 0
) -> tuple[int, int] | None:
    """(index, expected token) of the first token of `answer` that greedy decoding would not have chosen, or None.

    With a margin, another token than the likeliest will do if its logit is no more than that below.

    One pass over prompt and answer gives, at every position, the likeliest token after what stands before it. If the
    first token of the answer is the likeliest after the prompt, and each later one the likeliest after those before
    it, then decoding step by step without a cache arrives at this very answer: one token after the other by induction.
    """
    tokens = prompt + answer[:-1]
    rows = range(len(prompt) - 1, len(tokens))
    logits = model.forward(tokens, range(len(tokens)), DenseAttention(kv_dtype), rows)
    for index, (row, token) in enumerate(zip(logits, answer, strict=True)):
        expected = int(row.argmax())
        if expected != token and row[token] < row[expected] - margin:
            return index, expected
    return None


class DenseAttention:
    """Causal attention of one whole sequence: every query against every key, in double precision.

    Keys and values are rounded to the cache's type first, so that it is the arithmetic that is compared and not the
    precision that the caller chose.
    """

    def __init__(self, kv_dtype: str) -> None:
        self._kv_dtype = kv_dtype

    def __call__(self, layer: int, q, k, v):
        group = q.shape[1] // k.shape[1]  # query heads that share a KV head
        k, v = (np.repeat(rounded(x, self._kv_dtype), group, axis=1).transpose(1, 0, 2) for x in (k, v))
        logits = q.astype(np.float64).transpose(1, 0, 2) @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        logits[:, np.triu(np.ones(logits.shape[1:], bool), k=1)] = -np.inf
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        out = weights @ v / weights.sum(axis=-1, keepdims=True)
        return out.transpose(1, 0, 2).astype(np.float32)


def rounded(x, dtype: str):
    """float32 values as they come back from an array of `dtype`, in float64."""
    if dtype == "bfloat16":  # numpy has none: keep the upper half of the bits, to nearest, ties to even
        bits = x.view(np.uint32)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    elif dtype == "float16":
        x = x.astype(np.float16)
    elif dtype == "float8_e4m3fn":  # numpy has none: eighths of the power of two below, times a scale of each row
        scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(448)
        x = x * (1 / np.where(scale == 0, np.float32(1), scale))
        step = np.exp2(np.maximum(np.frexp(x)[1] - 1, -6) - 3)
        return np.rint(x / step) * step * scale.astype(np.float64)
    return x.astype(np.float64)
