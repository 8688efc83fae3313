"""Sequences beside all tokens that they have ever had: every query is compared with attention in double precision."""

import numpy as np
from support import attention_reference, to_numpy, tolerance

import seqattn

HEADS, GROUP, LAYERS = 2, 2, 2
ROUNDOFF = {"float32": 2.0**-25, "float16": 2.0**-12, "bfloat16": 2.0**-9}


class AttendedSequences:
    def __init__(self, place, rng, num_pages=64, page_size=4, **window):
        self.place, self.rng = place, rng
        self.manager = place.manager(num_pages, page_size, HEADS, place.head_dim, num_layers=LAYERS)
        self.descriptor = seqattn.CacheDescriptor(self.manager, **window)
        self.attention = seqattn.BatchAttention(self.manager, HEADS * GROUP)
        self.held = {}  # id -> [layer, keys or values, token, head, element]
        self.drafts = {}  # id -> the same of its pending tree

    def random(self, num_tokens, heads):
        return self.place.array(self.rng.standard_normal((num_tokens, heads, self.place.head_dim), np.float32))

    def step(self, growth, trees=None):
        """Grows sequences {id: tokens}, with trees {id: parents} behind them, attends in all layers and compares."""
        trees = trees or {}
        plain = [seq_id for seq_id in growth if seq_id not in trees]
        self.descriptor.allocate(plain, [growth[seq_id] for seq_id in plain])
        for seq_id, parents in trees.items():
            self.descriptor.allocate_tree(seq_id, parents, growth[seq_id])
        indptr = np.cumsum([0, *(count + len(trees.get(seq_id, ())) for seq_id, count in growth.items())])
        self.attention.plan(self.descriptor.pack_for_flashinfer(list(growth)), indptr)
        fresh, asked = [], []
        for layer in range(LAYERS):
            keys, values = self.random(indptr[-1], HEADS), self.random(indptr[-1], HEADS)
            q = self.random(indptr[-1], HEADS * GROUP)
            self.attention.append_kv(keys, values, layer)
            out, lse = self.attention.run(q, return_lse=True, layer=layer)
            fresh.append([to_numpy(keys), to_numpy(values)])
            asked.append([to_numpy(part) for part in (q, out, lse)])
        fresh = np.array(fresh)
        for (seq_id, count), begin, end in zip(growth.items(), indptr[:-1], indptr[1:]):
            self.add(seq_id, fresh[:, :, begin : begin + count])
            self.drafts[seq_id] = fresh[:, :, begin + count : end]
            mask = self.mask(seq_id, count, trees.get(seq_id, []))
            for layer, parts in enumerate(asked):
                self.check(seq_id, layer, mask, *(part[begin:end] for part in parts))
        self.descriptor.check_invariants()

    def add(self, seq_id, tokens):
        before = self.held.get(seq_id, tokens[:, :, :0])
        self.held[seq_id] = np.concatenate([before, tokens], axis=2)

    def mask(self, seq_id, num_tokens, parents):
        """[query, key]: what the last tokens and the tree see of the tokens and the tree."""
        length = self.held[seq_id].shape[2]
        paths = []
        for i, parent in enumerate(parents):
            paths.append([*(paths[parent] if parent >= 0 else []), i])
        places = np.array([*range(length), *(length + len(path) - 1 for path in paths)])
        seen = np.zeros((num_tokens + len(parents), len(places)), bool)
        for query, row in enumerate(seen):
            draft = query - num_tokens
            row[: length - num_tokens + query + 1 if draft < 0 else length] = True
            if draft >= 0:
                row[length:] = False
                row[[length + ancestor for ancestor in paths[draft]]] = True
        window, num_sinks = self.descriptor.window(seq_id)
        if window > 0:
            distance = places[len(places) - len(seen) :, None] - places
            seen &= (places < num_sinks) | (distance < window)
        return seen

    def check(self, seq_id, layer, mask, q, out, lse):
        keys, values = np.concatenate([self.held[seq_id], self.drafts[seq_id]], axis=2)[layer]
        expected, expected_lse = attention_reference(q, keys, values, causal=False, mask=mask)
        dtype, head_dim = self.place.dtype, self.place.head_dim
        # Kernels may round the weights to the cache's type as well as the result.
        tol = 2 * tolerance(dtype, len(keys), head_dim, np.abs(values).max(initial=1))
        np.testing.assert_allclose(out, expected, rtol=0, atol=tol, err_msg=f"sequence {seq_id}")
        tol = tolerance("float32", len(keys), head_dim, 16.0) + ROUNDOFF[dtype]
        np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=tol, err_msg=f"sequence {seq_id}")

    def commit(self, seq_id, path):
        self.descriptor.commit_tree(seq_id, path)
        self.add(seq_id, self.drafts[seq_id][:, :, path])

    def keep(self, seq_id, kept):
        moves = self.descriptor.keep(seq_id, kept)
        self.held[seq_id] = self.held[seq_id][:, :, kept]
        return moves

    def truncate(self, seq_id, length):
        self.descriptor.truncate(seq_id, length)
        self.held[seq_id] = self.held[seq_id][:, :, :length]

    def fork(self, parent, child, num_tokens=None):
        self.descriptor.fork(parent, child, num_tokens)
        self.held[child] = self.held[parent][:, :, :num_tokens]

    def release(self, seq_id):
        self.descriptor.release([seq_id])
        del self.held[seq_id]

    def read(self, seq_id):
        """What the cache holds of a sequence, as `held` has it."""
        pages, count = self.descriptor.pages(seq_id), self.descriptor.num_kv_tokens(seq_id)
        return np.array([[to_numpy(part) for part in self.manager.read_kv(pages, 0, count, i)] for i in range(LAYERS)])

    def check_cache(self, seq_id):
        """For a sequence of which nothing was dropped."""
        np.testing.assert_array_equal(self.read(seq_id), self.held[seq_id])
