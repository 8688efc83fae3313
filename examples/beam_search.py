#!/usr/bin/env python3
"""Beam search: beams that grow from one another share their pages, down to the prompt's.

Each step runs the beams as one batch, ranks all of their continuations and keeps the best. A continuation is a fork of
its beam: it shares the pages, and the last, partly filled one is copied when the fork writes to it. The same search
without a cache checks the result.
"""

from dataclasses import dataclass
from itertools import count

import numpy as np

import seqattn
import toy_model

NUM_BEAMS, STEPS, PAGE_SIZE = 4, 24, 4
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7]


@dataclass
class Beam:
    seq_id: int
    tokens: list[int]
    score: float = 0.0  # the log probability of what follows the prompt


def extend(beams: list[Beam], logits: np.ndarray) -> list[Beam]:
    """The best continuations of all beams; `logits` [beams, vocabulary] has what may follow each."""
    scores = np.array([[beam.score] for beam in beams]) + toy_model.log_softmax(logits)
    best = np.argsort(-scores, axis=None, kind="stable")[:NUM_BEAMS]
    return [
        Beam(beams[i].seq_id, [*beams[i].tokens, int(token)], float(scores[i, token]))
        for i, token in zip(*np.unravel_index(best, scores.shape))
    ]


def main() -> None:
    manager = toy_model.make_cache(num_pages=64, page_size=PAGE_SIZE)
    sequences = seqattn.CacheDescriptor(manager)
    model = toy_model.Model(manager)

    beams = [Beam(0, PROMPT)]
    logits = model.forward(sequences, {0: PROMPT})[-1:]
    new_ids = count(1)
    for _ in range(STEPS):
        old_ids = sequences.seq_ids()
        beams = extend(beams, logits)
        for beam in beams:
            parent, beam.seq_id = beam.seq_id, next(new_ids)
            sequences.fork(parent, beam.seq_id)
        sequences.release(old_ids)  # pages that no survivor shares are free
        logits = model.forward(sequences, {beam.seq_id: beam.tokens[-1:] for beam in beams})

    stats = sequences.stats()
    print(
        f"{NUM_BEAMS} beams of {len(beams[0].tokens)} tokens: {stats.num_pages} pages where "
        f"{stats.num_page_references} would be without sharing"
    )

    expected = [Beam(0, PROMPT)]
    for _ in range(STEPS):
        expected = extend(expected, np.array([toy_model.recompute(beam.tokens) for beam in expected]))
    for i, (beam, other) in enumerate(zip(beams, expected)):
        if beam.tokens != other.tokens or abs(beam.score - other.score) > toy_model.TOLERANCE:
            raise SystemExit(f"beam {i} is another one without a cache")


if __name__ == "__main__":
    main()
