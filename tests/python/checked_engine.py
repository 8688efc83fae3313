"""What the random calls are made on: an engine that compares all of it with models."""

from itertools import accumulate

import numpy as np
from eviction_model import EvictionModel
from sequence_model import rows_behind
from support import snapshot, to_numpy

import seqattn

LAYERS, HEADS, DIM = 2, 2, 8
POOL_TOKENS = 50


def keys_and_values(rows):
    """[layer, keys or values, token, head, element]: the digits of numbers that belong to one place only."""
    places = np.arange(LAYERS * 2 * HEADS * DIM).reshape(LAYERS, 2, 1, HEADS, DIM)
    numbers = np.array(rows, np.int64)[:, None, None] * places.size + places
    return (numbers // 256 ** (np.arange(DIM) % 4) % 256).astype(np.float32)  # exact in every type


class CheckedEngine:
    """A manager, its sequences and its prefix cache, beside what they are meant to hold; counts what has happened."""

    def __init__(self, counts, place, page_size, kv_layout):
        self.counts, self.place, self.page_size = counts, place, page_size
        self.manager = place.manager(
            POOL_TOKENS // page_size, page_size, HEADS, DIM, num_layers=LAYERS, kv_layout=kv_layout
        )
        self.descriptor = seqattn.CacheDescriptor(self.manager)
        self.now, self.counts_met = 0, []  # seconds, and the references that the cache met when it last asked for them
        self.cache = seqattn.PrefixCache(self.manager, clock=self.clock, event_capacity=1024)
        self.sequences = {}  # id -> SequenceModel
        self.evictions = EvictionModel()
        self.cached = self.evictions.pages  # the row at a page's end -> CachedPage
        self.evicted_by_now = None  # the model's pages, where a call of the cache said how many
        self.events = []  # those not followed yet
        self.blocks = {}  # block -> the row at its end, as events tell
        self.handles = []  # the live ones, each with the rows that it found

    def clock(self):
        """The cache looks when it begins to evict too: what the call gives up has been given up then."""
        self.counts_met = self.manager.ref_count.tolist()
        return self.now

    def attempt(self, name, allowed, call, *args):
        """Makes a call, which has to fail where it is not allowed, and else may for want of pages; says whether not."""
        self.events += self.cache.drain_events()
        before, stats, num_spare = snapshot(self.descriptor)[:3], self.cache.stats(), self.num_spare_pages()
        try:
            result = call(*args)
        except seqattn.NoPageError as error:
            assert allowed and error.needed > error.available + num_spare
            self.counts[name, "no page"] += 1
        except (seqattn.InvalidArgumentError, seqattn.PinnedError, seqattn.SequenceStateError):
            assert not allowed
            self.counts[name, "refused"] += 1
        else:
            assert allowed
            self.counts[name, "done"] += 1
            self.counts[name, "moved"] += isinstance(result, list) and len(result) > 0
            self.counts[name, "evicted"] += self.cache.stats().num_pages_evicted > stats.num_pages_evicted
            return True
        assert (snapshot(self.descriptor)[:3], self.cache.stats()) == (before, stats)
        assert self.cache.drain_events() == []
        return False

    def num_spare_pages(self):
        """Pages that the cache alone holds: it has to give them up before a call may fail."""
        held = {page for seq_id in self.sequences for page in self.descriptor.pages(seq_id)}
        held.update(page for handle, _ in self.handles for page in handle.pages)
        return sum(entry.page not in held for entry in self.cached.values())

    def write(self, num_new):
        """Writes the rows of the last slots, so many for each id."""
        rows = []
        for seq_id, count in num_new.items():
            held = self.sequences[seq_id].rows()
            rows += held[len(held) - count :]
        packed, indptr = self.descriptor.pack_for_flashinfer(num_new), [0, *accumulate(num_new.values())]
        for layer, (keys, values) in enumerate(keys_and_values(rows)):
            self.manager.append_kv(self.place.array(keys), self.place.array(values), packed, indptr, layer)

    def check(self):
        stored = self.read_all()
        self.descriptor.check_invariants()
        self.cache.check_invariants()
        self.follow_events()
        references = [0] * self.manager.num_pages
        assert set(self.descriptor) == set(self.sequences)
        for seq_id, model in self.sequences.items():
            pages = self.descriptor.pages(seq_id)
            self.check_rows(stored, pages, model.rows())
            assert self.descriptor.length(seq_id) == model.length
            assert self.descriptor.num_kv_tokens(seq_id) == len(model.rows())
            assert self.descriptor.kept_from(seq_id) == model.kept_from()
            assert self.descriptor.window(seq_id) == (model.window, model.num_sinks)
            for page in pages:
                references[page] += 1
        for entry in self.cached.values():
            self.check_rows(stored, [entry.page], entry.rows)
            references[entry.page] += 1
        for handle, rows in self.handles:
            self.check_rows(stored, handle.pages, rows)
        assert self.manager.ref_count.tolist() == references

    def read_all(self):
        """[layer, keys or values, page, slot, head, element], read in one go for the sake of devices."""
        count = self.manager.num_pages * self.page_size
        parts = [self.manager.read_kv(range(self.manager.num_pages), 0, count, layer) for layer in range(LAYERS)]
        shape = (LAYERS, 2, -1, self.page_size, HEADS, DIM)
        return np.array([[to_numpy(part) for part in layer] for layer in parts]).reshape(shape)

    def check_rows(self, stored, pages, rows):
        """That these pages hold these rows."""
        assert len(pages) == -(-len(rows) // self.page_size)
        found = stored[:, :, pages].reshape(LAYERS, 2, -1, HEADS, DIM)[:, :, : len(rows)]
        assert np.array_equal(found, keys_and_values(rows))

    def follow_events(self):
        """What the cache says is stored has to be what the calls have put there, and what it says is gone what the
        model of eviction has go."""
        gone, events, self.events = [], self.events + self.cache.drain_events(), []
        for event in events:
            if event.kind == "stored":
                before = self.blocks[event.parent] if event.parent else event.salt
                self.blocks[event.block] = rows_behind(before, event.tokens)[-1]
            elif event.kind == "evicted":
                gone.append(self.blocks.pop(event.block))
            elif event.kind == "cleared":
                self.blocks.clear()
                self.cached.clear()
        expected, self.evicted_by_now = self.evicted_by_now, None
        if gone and expected is None:  # a call took so many as it lacked
            num_free = sum(self.counts_met[self.cached[row].page] == 1 for row in gone)
            self.counts["shares", "went"] += num_free < len(gone)
            expected = self.evictions.evict(num_free, self.counts_met, self.now, gives_shares=True)
        assert {*gone} == {entry.rows[-1] for entry in expected or []}
        assert set(self.blocks.values()) == set(self.cached)
