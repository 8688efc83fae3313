"""Tells the docs' pictures in text: makes their calls on real pages, and compares each row with what is there."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from text_pictures import numbers

import seqattn

PAGE_SIZE, NUM_PAGES = 4, 12
DRAFT = 1000  # a token that came as a draft is this and its letter
REFUSALS = {
    "allocate": seqattn.NoPageError,
    "clear": seqattn.PinnedError,
    "set_window": seqattn.InvalidArgumentError,
}


class Story:
    """Makes the calls of a picture, writes what each token is into its slot, and compares rows with that."""

    num_layers, head_dim = 1, 1

    def __init__(self):
        self.manager = self.make_manager(NUM_PAGES, PAGE_SIZE)
        self.sequences = seqattn.CacheDescriptor(self.manager)
        self.result = None  # of the last call
        methods = ("fork", "release", "attach", "adopt", "set_window", "commit_tree")
        self.names = {name: getattr(self.sequences, name) for name in methods}
        self.names |= {"allocate": self.allocate, "allocate_tree": self.allocate_tree}
        self.names |= {"pool": SimpleNamespace(allocate=self.take)}

    def make_manager(self, num_pages, page_size):
        shape = num_pages, page_size, 1, self.head_dim
        return seqattn.PagedKVCacheManager(*shape, "float32", "cpu", num_layers=self.num_layers)

    def write(self, pages, first, tokens):
        rows = np.array(tokens, np.float32).reshape(-1, 1, 1).repeat(self.head_dim, axis=2)
        for layer in range(self.num_layers):
            self.manager.write_kv(pages, first, rows, rows, layer)

    def take(self, num_pages):
        """The caller's pages, computed by somebody."""
        pages = self.manager.allocate(num_pages)
        self.write(pages, 0, range(num_pages * PAGE_SIZE))
        return pages

    def token_at(self, seq_id, position):
        return position

    def allocate(self, seq_ids, lengths):
        copies = self.sequences.allocate(seq_ids, lengths)
        for seq_id, count in zip(seq_ids, lengths):
            self.write_last(seq_id, self.last_tokens(seq_id, count))
        return copies

    def allocate_tree(self, seq_id, parents, num_tokens=0):
        copies = self.sequences.allocate_tree(seq_id, parents, num_tokens)
        drafts = [DRAFT + ord("a") + i for i in range(len(parents))]
        self.write_last(seq_id, self.last_tokens(seq_id, num_tokens) + drafts)
        return copies

    def last_tokens(self, seq_id, count):
        length = self.sequences.length(seq_id)
        return [self.token_at(seq_id, position) for position in range(length - count, length)]

    def write_last(self, seq_id, tokens):
        begin = self.sequences.num_kv_tokens(seq_id) - len(tokens)
        first = begin // PAGE_SIZE * PAGE_SIZE  # pages in front may be shared
        self.write(self.sequences.pages(seq_id)[first // PAGE_SIZE :], begin - first, tokens)

    def spell(self, token):
        return str(int(token)) if token < DRAFT else chr(int(token) - DRAFT)

    def owner_of(self, call, row):
        return row.owner or (f"sequence {numbers(call.text)[0]}" if row.slots else "")

    def make(self, call):
        before = self.manager.free_pages[:], self.manager.ref_count.tolist(), self.sequences.seq_ids()
        if any(row.notes.startswith("refused") for row in call.rows):
            with pytest.raises(REFUSALS[call.text.split("(")[0]]):
                eval(call.text, self.names)
            assert (self.manager.free_pages[:], self.manager.ref_count.tolist(), self.sequences.seq_ids()) == before
        else:
            self.result = eval(call.text, self.names)
        for row in call.rows:
            self.check(call, row)
        taken = [row.pages for row in call.rows if row.owner == "the caller"]
        assert not call.text.startswith("pool.allocate") or taken == [self.result]
        self.sequences.check_invariants()

    def check(self, call, row):
        owner = self.owner_of(call, row)
        if owner.startswith("sequence"):
            seq_id = numbers(owner)[0]
            assert self.sequences.pages(seq_id) == row.pages
            self.check_slots(row, self.sequences.num_kv_tokens(seq_id))
        if row.references is not None:
            assert [int(self.manager.ref_count[page]) for page in row.pages] == row.references
        rest = row.notes
        for pattern, holds in self.notes(row).items():
            for found in re.finditer(pattern, rest):
                assert holds(*found.groups()), (call.text, found.group())
            rest = re.sub(pattern, "", rest)
        assert not rest.strip(" ;:,"), f"nobody checks {rest!r}"

    def check_slots(self, row, count):
        page_size = self.manager.page_size
        assert all(len(page) == page_size for page in row.slots)
        empty = ["."] * (len(row.pages) * page_size - count)
        for layer in range(self.num_layers):
            for held in self.manager.read_kv(row.pages, 0, count, layer):
                assert (held == held[:, :, :1]).all()
                tokens = [self.spell(token) for token in held[:, 0, 0]]
                assert [slot for page in row.slots for slot in page] == tokens + empty

    def notes(self, row):
        """What may be said behind a row, and what has to hold then."""
        seq_id = row.owner.startswith("sequence") and numbers(row.owner)[0] or 1
        window, num_sinks = self.sequences.window(1) if 1 in self.sequences else (0, 0)

        def sees(query, tokens):
            query = int(query)
            seen = [t for t in range(query + 1) if t < num_sinks or query - t < window]
            return numbers(tokens.replace(" and", ",")) == seen

        return {
            r"refused": lambda: True,
            r"nothing is free but ([\d, to]+)": lambda pages: self.manager.free_pages == numbers(pages),
            r"nothing is free": lambda: len(self.manager.free_pages) == 0,
            r"length (\d+)": lambda length: self.sequences.length(seq_id) == int(length),
            r"free: ([\d, to]+)": lambda pages: self.manager.free_pages == numbers(pages),
            r"page (\d+) was copied to (\d+)": lambda *pages: self.result == [tuple(map(int, pages))],
            r"nothing is copied": lambda: self.result == [],
            r"page (\d+) is free, no other": lambda page: self.result == 1 and self.freed(page),
            r"page (\d+) is free, then (\d+)": lambda *pages: self.freed(*pages),
            r"page (\d+) is free": lambda page: int(page) in self.manager.free_pages,
            r"(\d+) (?:sees|will see) ([\d, to]+ and [\d to]+)": sees,
            r"\d+ would see (\d+), which is gone": lambda token: int(token) in range(*self.gone()),
        }

    def freed(self, *pages):
        return self.manager.free_pages[-len(pages) :] == [int(page) for page in pages]

    def gone(self):
        details = self.sequences.details(1)
        return details.num_in_front, details.dropped_to
