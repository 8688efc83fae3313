"""An engine that makes random calls, and counts how many of each came to pass."""

from collections import Counter, deque
from itertools import takewhile
from random import Random
from typing import NamedTuple

from checked_engine import CachedPage, CheckedEngine
from sequence_model import SequenceModel, rows_behind

import seqattn

IDS = range(8)
SALTS = ["", "tenant"]
WEIGHTS = {
    "allocate": 8,
    "decode": 8,
    "fork": 8,
    "truncate": 4,
    "release": 12,
    "set_window": 3,
    "allocate_tree": 6,
    "commit_tree": 4,
    "keep": 6,
    "match": 8,
    "unpin": 4,
    "insert": 8,
    "evict": 1,
    "clear": 1,
    "save": 2,
    "restore": 4,
}
OPERATIONS = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
GROWTH = ["allocate", "decode", "allocate_tree"]
# What has to happen now and then, lest the test say less than it seems to.
EVENTS = [
    *((name, "done") for name in WEIGHTS if name not in ("release", "unpin", "evict")),
    *((name, "refused") for name in WEIGHTS if name not in ("release", "unpin", "evict")),
    *((name, "no page") for name in [*GROWTH, "keep", "restore"]),
    *((name, "evicted") for name in [*GROWTH, "keep", "restore"]),
    *((name, "moved") for name in [*GROWTH, "keep", "commit_tree"]),
    ("restore", "elsewhere"),
    ("tree", "truncated"),
    ("window", "dropped"),
]


class SavedSequence(NamedTuple):
    state: bytes
    model: SequenceModel
    page_size: int


class RandomEngine(CheckedEngine):
    """Makes random calls. What one engine has saved, another one may restore."""

    def __init__(self, random, saved, counts, place, page_size, kv_layout):
        super().__init__(counts, place, page_size, kv_layout)
        self.random, self.saved = random, saved
        self.heard = deque([(salt, []) for salt in SALTS], maxlen=16)  # salts and tokens of sequences so far

    def step(self):
        """One operation, in a quarter of all cases with no free page."""
        name = self.random.choice(OPERATIONS if self.sequences else ["allocate", "match", "restore"])
        taken = self.manager.allocate(self.manager.available_pages_count if self.one_in(4) else 0)
        getattr(self, name)()
        self.manager.unref(taken)
        self.check()

    # What calls are made with.

    def one_in(self, n):
        return self.random.randrange(n) == 0

    def any_id(self):
        """As a rule, one that does not exist."""
        new = [seq_id for seq_id in IDS if seq_id not in self.sequences]
        return self.random.choice(IDS if not new or self.one_in(8) else new)

    def any_sequence(self, pending=None):
        """An id and its model; as a rule, with a pending tree or without one, where that is asked for."""
        every = [*self.sequences.items()]
        asked = [(seq_id, model) for seq_id, model in every if pending in (None, bool(model.tree))]
        return self.random.choice(every if not asked or self.one_in(8) else asked)

    def any_tokens(self, most):
        return [self.random.randrange(2) for _ in range(self.random.randint(0, most))]

    def any_prompt(self):
        """A salt and tokens, which may begin like others before."""
        salt, tokens = self.random.choice(self.heard)
        return salt, tokens[: self.random.randint(0, len(tokens))] + self.any_tokens(6)

    # The operations.

    def allocate(self):
        growth = {}
        for seq_id in self.random.sample(IDS, 2):
            if seq_id in self.sequences:
                growth[seq_id] = self.sequences[seq_id], self.any_tokens(8)
            else:
                salt, tokens = self.any_prompt()
                growth[seq_id] = SequenceModel(salt), tokens
        lengths = [len(tokens) for _, tokens in growth.values()]
        self.grow("allocate", growth, self.descriptor.allocate, growth, lengths)

    def decode(self):
        models = dict(self.any_sequence(pending=False) for _ in range(2))
        growth = {seq_id: (model, [self.random.randrange(2)]) for seq_id, model in models.items()}
        self.grow("decode", growth, self.descriptor.allocate_decoding, growth)

    def grow(self, name, growth, call, *args):
        """`growth` has a model and its new tokens for each id."""
        allowed = not any(model.tree and tokens for model, tokens in growth.values())
        if not self.attempt(name, allowed, call, *args):
            return
        for seq_id, (model, tokens) in growth.items():
            self.sequences[seq_id] = model
            if tokens:
                self.counts["window", "dropped"] += model.drop_unseen_pages(self.page_size)
            model.grow(tokens)
            self.heard.append((model.salt, [*model.tokens]))
        self.write({seq_id: len(tokens) for seq_id, (_, tokens) in growth.items()})

    def fork(self):
        parent, model = self.any_sequence()
        child, end = self.any_id(), self.random.choice([model.length, self.random.randint(0, model.length)])
        allowed = child not in self.sequences and model.can_end_at(end)
        if self.attempt("fork", allowed, self.descriptor.fork, parent, child, end):
            self.sequences[child] = model.first(end)

    def truncate(self):
        seq_id, model = self.any_sequence()
        end = self.random.choice([model.length, self.random.randint(0, model.length + 1)])
        if self.attempt("truncate", model.can_end_at(end), self.descriptor.truncate, seq_id, end):
            self.counts["tree", "truncated"] += len(model.tree) > 0
            self.sequences[seq_id] = model.first(end)

    def release(self):
        seq_id, _ = self.any_sequence()
        assert self.descriptor.release([seq_id]) == 1
        del self.sequences[seq_id]

    def set_window(self):
        seq_id, model = self.any_sequence()
        window, num_sinks = self.random.randint(0, 9), self.random.choice([0, self.random.randint(0, 5)])
        allowed = model.can_have_window(window, num_sinks)
        if self.attempt("set_window", allowed, self.descriptor.set_window, seq_id, window, num_sinks):
            model.window, model.num_sinks = window, num_sinks

    def allocate_tree(self):
        seq_id, model = self.any_sequence(pending=False)
        parents = [self.random.randint(-1, i - 1) for i in range(self.random.randint(1, 6))]
        drafts = [2 + i for i in range(len(parents))]  # so that no two have the same row
        tokens = self.any_tokens(2)
        call = self.descriptor.allocate_tree
        if self.attempt("allocate_tree", not model.tree, call, seq_id, parents, len(tokens)):
            self.counts["window", "dropped"] += model.drop_unseen_pages(self.page_size)
            model.grow(tokens)
            model.add_tree(parents, drafts)
            self.write({seq_id: len(tokens + drafts)})

    def commit_tree(self):
        seq_id, model = self.any_sequence(pending=True)
        path = model.path_to(self.random.randint(-1, len(model.tree) - 1))
        if self.one_in(8):
            path.reverse()
        if self.attempt("commit_tree", model.can_commit(path), self.descriptor.commit_tree, seq_id, path):
            model.commit(path)

    def keep(self):
        seq_id, model = self.any_sequence(pending=False)
        share, blindly = self.random.random(), self.one_in(4)
        offered = [i for i, slot in enumerate(model.slots) if blindly or model.sees(slot.place)]
        indices = [i for i in offered if self.random.random() < share]
        if self.attempt("keep", model.can_keep(indices), self.descriptor.keep, seq_id, indices):
            model.keep(indices)

    def match(self):
        """Looks a prompt up, starts a sequence over what is found, and pins that for a while or not."""
        salt, tokens = self.any_prompt()
        pins = self.one_in(4)
        handle = self.cache.pin(tokens, salt) if pins else self.cache.match(tokens, salt)
        cached = {row for entry in self.cached.values() for row in entry.rows}
        found = [*takewhile(cached.__contains__, rows_behind(salt, tokens if pins else tokens[:-1]))]
        if pins:
            found = found[: len(found) - len(found) % self.page_size]
        assert handle.num_tokens == len(found)
        self.check_rows(self.read_all(), handle.pages, found)
        self.handles.append((handle, found))
        if found:
            self.attach(handle, salt, tokens[: len(found)])
        if not self.one_in(4):
            self.handles.pop()[0].release()

    def attach(self, handle, salt, tokens):
        seq_id, model = self.any_id(), SequenceModel(salt)
        model.grow(tokens)
        allowed = seq_id not in self.sequences
        if self.attempt("match", allowed, self.cache.attach, self.descriptor, seq_id, handle):
            self.sequences[seq_id] = model

    def unpin(self):
        if self.handles:
            self.handles.pop(self.random.randrange(len(self.handles)))[0].release()

    def insert(self):
        seq_id, model = self.any_sequence()
        salt = self.random.choice([model.salt, model.salt, *SALTS])
        tokens = [*model.tokens, 0][: self.random.choice([model.length, self.random.randint(0, model.length + 1)])]
        new = self.new_pages(seq_id, rows_behind(salt, tokens))
        cached_pages = {entry.page for entry in self.cached.values()}
        allowed = (
            model.kept_from() == 0
            and len(tokens) <= model.length
            and not any(entry.page in cached_pages for entry in new.values())
        )
        if allowed and new and salt != model.salt:
            return  # a lie that no cache could notice
        if self.attempt("insert", allowed, self.cache.insert, self.descriptor, seq_id, tokens, salt):
            self.cached.update(new)

    def new_pages(self, seq_id, rows):
        """The sequence's whole pages that are not in the cache as these rows."""
        new = {}
        for i, page in enumerate(self.descriptor.pages(seq_id)[: len(rows) // self.page_size]):
            entry = CachedPage(page, rows[i * self.page_size : (i + 1) * self.page_size])
            if entry.rows[-1] not in self.cached:
                new[entry.rows[-1]] = entry
        return new

    def evict(self):
        num_pages, num_free = self.random.randint(0, 3), self.manager.available_pages_count
        assert self.cache.evict(num_pages) == self.manager.available_pages_count - num_free <= num_pages

    def clear(self):
        self.attempt("clear", not any(found for _, found in self.handles), self.cache.clear)

    def save(self):
        seq_id, model = self.any_sequence()

        def save():
            state = seqattn.save_sequence(self.descriptor, seq_id)
            self.saved.append(SavedSequence(state, model.first(model.length), self.page_size))

        self.attempt("save", not model.tree, save)

    def restore(self):
        if not self.saved:
            return
        saved, seq_id = self.random.choice(self.saved), self.any_id()
        state, is_spoilt = bytearray(saved.state), self.one_in(8)
        if is_spoilt:
            state[self.random.randrange(len(state))] ^= 1
        allowed = seq_id not in self.sequences and not is_spoilt
        if self.attempt("restore", allowed, seqattn.restore_sequence, self.descriptor, seq_id, state):
            self.counts["restore", "elsewhere"] += saved.page_size != self.page_size
            self.sequences[seq_id] = saved.model.first(saved.model.length)


def make_random_calls(rng, places, num_rounds):
    """Rounds of 1000 calls on two engines, one at each place; returns what has happened how often."""
    random, saved, counts = Random(int(rng.integers(2**31))), deque(maxlen=8), Counter()
    for _ in range(num_rounds):
        shapes = zip(places, random.sample(range(1, 6), 2), ("NHD", "HND"))
        engines = [RandomEngine(random, saved, counts, *shape) for shape in shapes]
        for _ in range(1000):
            random.choice(engines).step()
    return counts
