#!/usr/bin/env python3
"""Parallel sampling: many answers to one prompt, which is computed once and stored once.

The prompt is prefilled as a sequence of its own, and every answer forks it. They decode together, one batch a step, and
end when they draw the end token, at different times: an answer that is done is released, and its own pages are free for
others. Every token's logits are checked against a computation without a cache.
"""

import numpy as np

import seqattn
import toy_model

NUM_ANSWERS, MAX_TOKENS, PAGE_SIZE = 8, 40, 8
PROMPT = -1  # answer i is sequence i
END = 0
TEMPERATURE = 0.8


def main() -> None:
    manager = toy_model.make_cache(num_pages=128, page_size=PAGE_SIZE)
    sequences = seqattn.CacheDescriptor(manager)
    model = toy_model.Model(manager)
    rng = np.random.default_rng(2026)

    prompt = rng.integers(toy_model.VOCABULARY, size=50).tolist()
    first = model.forward(sequences, {PROMPT: prompt})[-1]
    answers = {seq_id: list(prompt) for seq_id in range(NUM_ANSWERS)}
    for seq_id in answers:
        sequences.fork(PROMPT, seq_id)
    sequences.release([PROMPT])  # its pages live on in the answers
    stats = sequences.stats()
    saved = stats.num_page_references - stats.num_pages
    print(f"{NUM_ANSWERS} answers share the prompt's {stats.num_pages} pages: {saved} are saved")

    running = dict.fromkeys(answers, first)  # what may follow each answer that is not done
    for _ in range(MAX_TOKENS):
        for seq_id, logits in list(running.items()):
            toy_model.check(logits, toy_model.recompute(answers[seq_id]), f"answer {seq_id}")
            probabilities = np.exp(toy_model.log_softmax(logits / TEMPERATURE))
            answers[seq_id].append(int(rng.choice(toy_model.VOCABULARY, p=probabilities)))
            if answers[seq_id][-1] == END:
                sequences.release([seq_id])
                del running[seq_id]
        if not running:
            break
        logits = model.forward(sequences, {seq_id: answers[seq_id][-1:] for seq_id in running})
        running = dict(zip(running, logits))
    lengths = [len(tokens) - len(prompt) for tokens in answers.values()]
    print(*lengths, f"tokens; {len(running)} answers are still going on")


if __name__ == "__main__":
    main()
