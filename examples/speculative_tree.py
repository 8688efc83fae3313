#!/usr/bin/env python3
"""Speculative decoding with a tree of drafts: several guesses at each step, all looked at in one run.

A cheap guess proposes the likeliest tokens behind the text, and behind each of those again: a tree. `allocate_tree`
lays it behind the sequence, where every draft sees the text, its ancestors and itself. One run of the model says at
each what it would have chosen; the path that agrees is kept by `commit_tree`, moved into place, and the rest goes. The
text is the very one that decoding token by token gives, which is checked. (speculative.cc tries one guess a step.)
"""

import seqattn
import toy_model

WIDTHS = [3, 2, 1, 1]  # guesses behind each token of the tree, level by level
NUM_TOKENS, PAGE_SIZE = 200, 4
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7]
TEXT = 7


def draft(text: list[int]) -> tuple[list[int], list[int]]:
    """A tree of drafts behind the text, and the parent of each: -1 for the text's last token."""
    drafts: list[int] = []
    parents: list[int] = []
    level = [-1]
    for depth, width in enumerate(WIDTHS):
        next_level = []
        for parent in level:
            last = text[-1] if parent < 0 else drafts[parent]
            best = toy_model.guess(last, len(text) - 1 + depth).argsort()[::-1][:width]
            next_level += range(len(drafts), len(drafts) + width)
            drafts += best.tolist()
            parents += [parent] * width
        level = next_level
    return drafts, parents


def main() -> None:
    sequences = seqattn.CacheDescriptor(toy_model.make_cache(num_pages=80, page_size=PAGE_SIZE))
    model = toy_model.Model(sequences.cache_manager)

    # `text` is what is known; the cache holds all of it but the last token.
    text = list(PROMPT)
    text.append(int(model.forward(sequences, {TEXT: PROMPT})[-1].argmax()))
    num_runs = 1
    while len(text) < len(PROMPT) + NUM_TOKENS:
        drafts, parents = draft(text)
        chosen = model.forward_tree(sequences, TEXT, text[-1:], drafts, parents).argmax(axis=1).tolist()
        num_runs += 1
        children = {(parent, token): i for i, (parent, token) in enumerate(zip(parents, drafts))}
        path: list[int] = []  # of drafts that the model would have chosen
        text.append(chosen[0])
        while (child := children.get((path[-1] if path else -1, text[-1]))) is not None:
            path.append(child)
            text.append(chosen[1 + child])
        sequences.commit_tree(TEXT, path)

    sequences.check_invariants()
    print(
        f"{len(text) - len(PROMPT)} tokens in {num_runs} runs of the model; {len(sequences.pages(TEXT))} pages are in "
        f"use for {sequences.length(TEXT)} tokens"
    )
    expected = list(PROMPT)
    while len(expected) < len(text):
        expected.append(int(toy_model.recompute(expected).argmax()))
    if text != expected:
        raise SystemExit("the text is another one without speculation")


if __name__ == "__main__":
    main()
