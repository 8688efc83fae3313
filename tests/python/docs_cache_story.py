"""As docs_story, with a prefix cache."""

import re

from docs_story import PAGE_SIZE, Story

import seqattn

PROMPTS = {1: "abcdefghijklm", 2: "abcdefxyz", 3: "klmnopqrs"}


class Clock:
    """A cache's clock that stands until it is moved on."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def advance(self, seconds):
        self.seconds += seconds


class CacheStory(Story):
    """With a prefix cache; tokens are letters, each sequence's those of its prompt."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.cache = seqattn.PrefixCache(self.manager, clock=self.clock)
        self.handle = None
        self.names |= {"sequences": self.sequences, "tokens": None, "insert": self.insert, "match": self.match}
        self.names |= {"pin": self.pin, "clock": self.clock}
        self.names |= {name: getattr(self.cache, name) for name in ("attach", "evict", "evict_expired", "clear")}

    def prompt_of(self, seq_id):
        return [ord(letter) for letter in PROMPTS[seq_id]]

    def token_at(self, seq_id, position):
        return self.prompt_of(seq_id)[position]

    def spell(self, token):
        return chr(int(token))

    def match(self, letters):
        self.handle = self.names["handle"] = self.cache.match(letters)
        return self.handle

    def pin(self, letters):
        self.handle = self.names["handle"] = self.cache.pin(letters)
        return self.handle

    def insert(self, sequences, seq_id, _, **options):
        return self.cache.insert(sequences, seq_id, self.prompt_of(seq_id)[: sequences.length(seq_id)], **options)

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
            r"(\d+) pages? (?:is|are) pinned": lambda count: self.cache.stats().num_pinned_pages == int(count),
            r"(\d+) pages have gone": lambda count: self.result == int(count),
            r"(\d+) tokens": lambda count: self.handle.num_tokens == int(count),
            **super().notes(row),
        }
