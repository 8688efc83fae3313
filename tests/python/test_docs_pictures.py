"""The pictures in text of docs/sequences.md and docs/prefix_cache.md are what the calls do, made on real pages."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from text_pictures import numbers, pictures

import seqattn

PAGE_SIZE, NUM_PAGES = 4, 12


class Story:
    """Makes the calls of a picture, writes what each token is into its slot, and compares rows with that."""

    def __init__(self):
        self.manager = seqattn.PagedKVCacheManager(NUM_PAGES, PAGE_SIZE, 1, 1, "float32", "cpu")
        self.sequences = seqattn.CacheDescriptor(self.manager)
        self.result = None  # of the last call
        methods = ("fork", "release", "attach", "adopt", "set_window")
        self.names = {name: getattr(self.sequences, name) for name in methods}
        self.names |= {"allocate": self.allocate, "pool": SimpleNamespace(allocate=self.take)}

    def write(self, pages, first, tokens):
        rows = np.array(tokens, np.float32).reshape(-1, 1, 1)
        self.manager.write_kv(pages, first, rows, rows)

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
            held, length = self.sequences.num_kv_tokens(seq_id), self.sequences.length(seq_id)
            new = [self.token_at(seq_id, position) for position in range(length - count, length)]
            first = (held - count) // PAGE_SIZE * PAGE_SIZE  # pages in front may be shared
            self.write(self.sequences.pages(seq_id)[first // PAGE_SIZE :], held - count - first, new)
        return copies

    def spell(self, token):
        return str(int(token))

    def owner_of(self, call, row):
        return row.owner or (f"sequence {numbers(call.text)[0]}" if row.slots else "")

    def make(self, call):
        before = self.manager.free_pages[:], self.manager.ref_count.tolist(), self.sequences.seq_ids()
        if any(row.notes.startswith("refused") for row in call.rows):
            with pytest.raises(seqattn.InvalidArgumentError):
                eval(call.text, self.names)
            assert (self.manager.free_pages[:], self.manager.ref_count.tolist(), self.sequences.seq_ids()) == before
        else:
            self.result = eval(call.text, self.names)
        for row in call.rows:
            self.check(call, row)
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
        assert all(len(page) == PAGE_SIZE for page in row.slots)
        held, _ = self.manager.read_kv(row.pages, 0, count)
        empty = ["."] * (len(row.pages) * PAGE_SIZE - count)
        assert [slot for page in row.slots for slot in page] == [self.spell(x) for x in held.ravel()] + empty

    def notes(self, row):
        """What may be said behind a row, and what has to hold then."""
        window, num_sinks = self.sequences.window(1) if 1 in self.sequences else (0, 0)

        def sees(query, tokens):
            query = int(query)
            seen = [t for t in range(query + 1) if t < num_sinks or query - t < window]
            return numbers(tokens.replace(" and", ",")) == seen

        return {
            r"refused": lambda: True,
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


class CacheStory(Story):
    """With a prefix cache; tokens are letters, and sequence 2 goes on with x, y and z."""

    def __init__(self):
        super().__init__()
        self.cache = seqattn.PrefixCache(self.manager)
        self.handle = None
        self.names |= {"sequences": self.sequences, "tokens": None, "insert": self.insert, "match": self.match}
        self.names |= {"attach": self.cache.attach, "evict": self.cache.evict}

    def prompt_of(self, seq_id):
        return [ord(letter) for letter in ("abcdefghij" if seq_id == 1 else "abcdefxyz")]

    def token_at(self, seq_id, position):
        return self.prompt_of(seq_id)[position]

    def spell(self, token):
        return chr(int(token))

    def match(self, letters):
        self.handle = self.names["handle"] = self.cache.match(letters)
        return self.handle

    def insert(self, sequences, seq_id, _):
        return self.cache.insert(sequences, seq_id, self.prompt_of(seq_id)[: sequences.length(seq_id)])

    def owner_of(self, call, row):
        return "the cache" if row.prefix else super().owner_of(call, row)

    def make(self, call):
        call.text = re.sub(r"\[([a-z]( [a-z])+)( \.\.\.)?\]", lambda m: str([ord(x) for x in m[1].split()]), call.text)
        super().make(call)
        cached = [page for row in call.rows if self.owner_of(call, row) == "the cache" for page in row.pages]
        assert not cached or self.cache.stats().num_pages == len(cached)
        self.cache.check_invariants()

    def check(self, call, row):
        owner = self.owner_of(call, row)
        if owner == "the cache":
            tokens = row.prefix + [slot for page in row.slots for slot in page]
            with self.cache.pin([ord(letter) for letter in tokens]) as found:
                assert found.num_tokens == len(tokens)
                assert found.pages[-len(row.pages) :] == row.pages
            self.check_slots(row, len(row.pages) * PAGE_SIZE)
        elif owner == "a handle":
            assert self.handle.pages == row.pages
            self.check_slots(row, self.handle.num_tokens)
        super().check(call, row)

    def notes(self, row):
        return {
            r"the cache is empty": lambda: self.cache.stats().num_pages == 0,
            r"(\d+) pages? (?:is|are) new": lambda count: self.result == int(count),
            r"(\d+) tokens": lambda count: self.handle.num_tokens == int(count),
            **super().notes(row),
        }


def test_there_is_a_picture_of_each_call():
    made = {call.text.split("(")[0] for calls in pictures("sequences.md") for call in calls}
    assert made == {"allocate", "fork", "release", "pool.allocate", "attach", "adopt", "set_window"}
    made = {call.text.split("(")[0] for calls in pictures("prefix_cache.md") for call in calls}
    assert made == {"allocate", "insert", "release", "match", "attach", "handle.release", "evict"}


@pytest.mark.parametrize("name,story,count", [("sequences.md", Story, 4), ("prefix_cache.md", CacheStory, 1)])
def test_pictures_in_text_show_what_the_calls_do(name, story, count):
    found = list(pictures(name))
    assert len(found) == count
    for calls in found:
        teller = story()
        for call in calls:
            teller.make(call)
