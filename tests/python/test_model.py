"""Random calls against a model of dicts and lists."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import seqattn

PAGES, PAGE_SIZE = 12, 4
ids = st.integers(0, 4)
lengths = st.integers(0, 11)


class Model(RuleBasedStateMachine):
    """Tokens are numbered; the model knows which tokens each sequence holds and where they lie."""

    def __init__(self):
        super().__init__()
        self.pool = seqattn.PagePool(PAGES, PAGE_SIZE)
        self.real = seqattn.CacheDescriptor(self.pool)
        self.tokens = {}  # id -> list of token numbers
        self.slots = {}  # (page, slot) -> token number
        self.next_token = 0

    def write(self, seq_id, count):
        pages = self.real.pages(seq_id)
        held = self.tokens.setdefault(seq_id, [])
        for _ in range(count):
            slot = (pages[len(held) // PAGE_SIZE], len(held) % PAGE_SIZE)
            self.slots[slot] = self.next_token
            held.append(self.next_token)
            self.next_token += 1

    def make(self, copies):
        for source, target in copies:
            for slot in range(PAGE_SIZE):
                self.slots[(target, slot)] = self.slots.get((source, slot))

    @rule(batch=st.lists(st.tuples(ids, lengths), max_size=3))
    def allocate(self, batch):
        seq_ids, new = [i for i, _ in batch], [n for _, n in batch]
        admission = self.real.try_allocate(seq_ids, new)
        if admission:
            self.make(admission.copies)
            for seq_id, count in batch:
                self.write(seq_id, count)
        else:
            assert admission.needed > admission.available == len(self.pool.free_pages)
            with pytest.raises(seqattn.NoPageError):
                self.real.allocate(seq_ids, new)

    @rule(batch=st.lists(ids, max_size=3))
    def decode(self, batch):
        try:
            self.make(self.real.allocate_decoding(batch))
        except seqattn.UnknownSequenceError:
            assert set(batch) - set(self.tokens)
        except seqattn.NoPageError:
            pass
        else:
            for seq_id in batch:
                self.write(seq_id, 1)

    @rule(parent=ids, child=ids, count=st.one_of(st.none(), lengths))
    def fork(self, parent, child, count):
        known = self.tokens.get(parent)
        try:
            self.real.fork(parent, child, count)
        except (seqattn.UnknownSequenceError, seqattn.InvalidArgumentError):
            assert known is None or child in self.tokens or count > len(known)
        else:
            self.tokens[child] = list(known if count is None else known[:count])

    @rule(seq_id=ids, count=lengths)
    def truncate(self, seq_id, count):
        try:
            self.real.truncate(seq_id, count)
        except (seqattn.UnknownSequenceError, seqattn.InvalidArgumentError):
            assert count > len(self.tokens.get(seq_id, [])) or seq_id not in self.tokens
        else:
            del self.tokens[seq_id][count:]

    @rule(batch=st.lists(ids, max_size=3))
    def release(self, batch):
        assert self.real.release(batch) == len(set(batch) & set(self.tokens))
        for seq_id in batch:
            self.tokens.pop(seq_id, None)

    @invariant()
    def every_sequence_finds_its_tokens(self):
        self.real.check_invariants()
        assert set(self.real.seq_ids()) == set(self.tokens)
        references = [0] * PAGES
        for seq_id, held in self.tokens.items():
            assert self.real.length(seq_id) == len(held)
            pages = self.real.pages(seq_id)
            found = [self.slots[(pages[i // PAGE_SIZE], i % PAGE_SIZE)] for i in range(len(held))]
            assert found == held
            for page in pages:
                references[page] += 1
        assert self.pool.ref_count.tolist() == references
        assert sorted(self.pool.free_pages) == [p for p in range(PAGES) if references[p] == 0]


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
