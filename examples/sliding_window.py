#!/usr/bin/env python3
"""A sliding window with attention sinks: a text that never ends, in a cache that never grows.

Every token sees the first few (the sinks) and the last `WINDOW` ones. Pages that hold nothing which anybody will see
again go back to the pool as the sequence grows, for that very call: the pool of this program holds a tenth of the text,
and does not fall short. What is seen is exact to the token, not to the page, which is checked at every one.
"""

import numpy as np

import seqattn
import toy_model

WINDOW, NUM_SINKS, PAGE_SIZE = 24, 3, 8
PROMPT_LEN, TEXT_LEN = 150, 600
CHUNK = PAGE_SIZE  # of the prompt, a run
# The sinks' page; the window, which may begin and end inside a page; what a run adds.
NUM_PAGES = 1 + WINDOW // PAGE_SIZE + 1 + CHUNK // PAGE_SIZE
TEXT = 7


def main() -> None:
    sequences = seqattn.CacheDescriptor(
        toy_model.make_cache(NUM_PAGES, PAGE_SIZE), window=WINDOW, num_sink_tokens=NUM_SINKS
    )
    model = toy_model.Model(sequences.cache_manager)
    rng = np.random.default_rng(2026)
    text = rng.integers(toy_model.VOCABULARY, size=PROMPT_LEN).tolist()

    most_pages = 0

    def run(first: int, end: int) -> np.ndarray:
        """Tokens [first, end) through the model; what may follow the last."""
        nonlocal most_pages
        logits = model.forward(sequences, {TEXT: text[first:end]})
        for i in range(first, end):
            expected = toy_model.recompute(text[: i + 1], WINDOW, NUM_SINKS)
            toy_model.check(logits[i - first], expected, f"token {i}")
        most_pages = max(most_pages, len(sequences.pages(TEXT)))
        return logits[-1]

    # A prompt that is longer than the window, and than the pool, comes in pieces.
    for first in range(0, PROMPT_LEN, CHUNK):
        logits = run(first, min(first + CHUNK, PROMPT_LEN))
    while len(text) < TEXT_LEN:
        text.append(int(rng.choice(toy_model.VOCABULARY, p=np.exp(toy_model.log_softmax(logits)))))
        logits = run(len(text) - 1, len(text))

    sequences.check_invariants()
    print(
        f"{sequences.length(TEXT)} tokens, {sequences.num_kv_tokens(TEXT)} of them held; never more than {most_pages} "
        f"pages, where {-(-TEXT_LEN // PAGE_SIZE)} would be without a window"
    )


if __name__ == "__main__":
    main()
