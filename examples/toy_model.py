"""A language model that needs no weights: every number of its tables is a hash.

One attention layer, which is seqattn's; its answers make no sense, but they depend on every token and its position, so
that a wrong page or a wrong slot changes them. The tables are those of toy_model.cc.
"""

import numpy as np

import seqattn

VOCABULARY = 64
NUM_HEADS, NUM_QO_HEADS, HEAD_DIM = 2, 4, 16
WIDTH = NUM_QO_HEADS * HEAD_DIM  # of the embedding, and of what attention adds
SCALE = 2.0  # sharp: some keys count more than others
TOLERANCE = 1e-3  # two computations that differ by more are not the same
EMBEDDING, QUERY, KEY, VALUE, OUTPUT, POSITION = range(6)


def make_cache(num_pages: int, page_size: int) -> seqattn.PagedKVCacheManager:
    return seqattn.PagedKVCacheManager(num_pages, page_size, NUM_HEADS, HEAD_DIM, "float32", "cpu")


def weights(table: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The numbers in [-1, 1) at those places of a table."""
    x = np.uint64(table << 40) | rows.astype(np.uint64)[:, None] << np.uint64(20) | columns.astype(np.uint64)
    for odd in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xD6E8FEB86659FD93):
        x = (x ^ x >> np.uint64(32)) * np.uint64(odd)
    return (x >> np.uint64(40)) / 2.0**23 - 1


def features(table: int, tokens: np.ndarray, positions: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """Features of tokens where they stand, [tokens, width]: float32, as the cache has them."""
    of_position = weights(POSITION, positions, table * WIDTH + np.arange(width))
    return (weights(table, tokens, np.arange(width)) + 0.3 * of_position).astype(np.float32)


def keys_and_values(tokens: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
    shape, width = (-1, NUM_HEADS, HEAD_DIM), NUM_HEADS * HEAD_DIM
    return [features(table, tokens, positions, width).reshape(shape) for table in (KEY, VALUE)]


def logits_of(tokens: np.ndarray, positions: np.ndarray, attended: np.ndarray) -> np.ndarray:
    hidden = features(EMBEDDING, tokens, positions) + attended.reshape(-1, WIDTH).astype(np.float64)
    return hidden @ weights(OUTPUT, np.arange(VOCABULARY), np.arange(WIDTH)).T


class Model:
    def __init__(self, manager: seqattn.PagedKVCacheManager) -> None:
        self._attention = seqattn.BatchAttention(manager, NUM_QO_HEADS, sm_scale=SCALE)

    def forward(self, sequences: seqattn.CacheDescriptor, new_tokens: dict[int, list[int]]) -> np.ndarray:
        """Grows each sequence by its tokens, as one batch; for every one of them, in order, what may follow it."""
        lengths = [len(tokens) for tokens in new_tokens.values()]
        starts = [sequences.length(seq_id) if seq_id in sequences else 0 for seq_id in new_tokens]
        positions = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths)])
        sequences.allocate(list(new_tokens), lengths)
        return self._run(sequences, new_tokens, positions)

    def forward_tree(
        self, sequences: seqattn.CacheDescriptor, seq_id: int, tokens: list[int], drafts: list[int], parents: list[int]
    ) -> np.ndarray:
        """Grows a sequence by tokens, and behind them by a tree of drafts; for each of both, what may follow it."""
        start = sequences.length(seq_id)
        positions = list(range(start, start + len(tokens)))
        for parent in parents:
            positions.append((positions[len(tokens) + parent] if parent >= 0 else start + len(tokens) - 1) + 1)
        sequences.allocate_tree(seq_id, parents, len(tokens))
        return self._run(sequences, {seq_id: tokens + drafts}, np.array(positions))

    def _run(
        self, sequences: seqattn.CacheDescriptor, new_tokens: dict[int, list[int]], positions: np.ndarray
    ) -> np.ndarray:
        tokens = np.array([token for some in new_tokens.values() for token in some], np.int64)
        q = features(QUERY, tokens, positions).reshape(-1, NUM_QO_HEADS, HEAD_DIM)
        indptr = np.cumsum([0, *(len(some) for some in new_tokens.values())])
        self._attention.plan(sequences.pack_for_flashinfer(list(new_tokens)), indptr)
        # A real model would do the rest for each of its layers.
        self._attention.append_kv(*keys_and_values(tokens, positions))
        return logits_of(tokens, positions, self._attention.run(q))


def recompute(tokens: list[int], window: int = 0, num_sink_tokens: int = 0) -> np.ndarray:
    """What may follow the last of these tokens, from all of them in double precision: no cache, and no seqattn.

    With a window it sees the last `window` tokens, itself included, and the first `num_sink_tokens`.
    """
    all_tokens, positions = np.array(tokens), np.arange(len(tokens))
    q = features(QUERY, all_tokens[-1:], positions[-1:]).reshape(NUM_HEADS, -1, HEAD_DIM).astype(np.float64)
    k, v = keys_and_values(all_tokens, positions)
    shares = np.exp(SCALE * np.einsum("hgd,thd->hgt", q, k))
    if window:
        shares[..., (positions >= num_sink_tokens) & (positions < len(tokens) - window)] = 0
    attended = np.einsum("hgt,thd->hgd", shares, v) / shares.sum(axis=-1, keepdims=True)
    return logits_of(all_tokens[-1:], positions[-1:], attended)[0]


def guess(token: int, position: int) -> np.ndarray:
    """A guess of the same from the last token alone, leaving out the attention layer: right now and then."""
    return logits_of(np.array([token]), np.array([position]), np.zeros(WIDTH))[0]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def check(logits: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Ends the program where two computations are not the same."""
    if (off := np.abs(logits - expected).max()) > TOLERANCE:
        raise SystemExit(f"{what}: off by {off} from what it is without a cache")
