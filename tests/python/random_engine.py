"""An engine that makes random calls, and counts how many of each came to pass."""

from collections import Counter, deque
from dataclasses import replace
from random import Random
from typing import NamedTuple

from random_choices import IDS
from random_prefixes import RandomPrefixes
from sequence_model import SequenceModel

import seqattn

WEIGHTS = {
    "allocate": 8,
    "try_allocate": 4,
    "decode": 8,
    "fork": 6,
    "attach_pages": 4,
    "attach_details": 4,
    "adopt": 3,
    "truncate": 4,
    "let_one_go": 10,
    "set_window": 3,
    "allocate_tree": 6,
    "commit_tree": 4,
    "keep": 6,
    "match": 8,
    "unpin": 4,
    "insert": 14,
    "evict": 4,
    "evict_expired": 1,
    "clear": 1,
    "save": 2,
    "restore": 4,
}
OPERATIONS = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
GROWTH = ["allocate", "try_allocate", "decode", "allocate_tree"]
NEVER_REFUSED = ("let_one_go", "unpin", "evict", "evict_expired")
# What has to happen now and then, lest the test say less than it seems to.
EVENTS = [
    *((name, "done") for name in WEIGHTS if name not in NEVER_REFUSED),
    *((name, "refused") for name in WEIGHTS if name not in NEVER_REFUSED),
    *((name, "no page") for name in [*GROWTH, "keep", "restore"]),
    *((name, "evicted") for name in [*GROWTH, "keep", "restore"]),
    *((name, "moved") for name in [*GROWTH, "keep", "commit_tree"]),
    ("restore", "elsewhere"),
    ("evict", "went"),
    ("expired", "went"),
    ("shares", "went"),
    ("tree", "truncated"),
    ("window", "dropped"),
]


class SavedSequence(NamedTuple):
    state: bytes
    model: SequenceModel
    page_size: int


class RandomEngine(RandomPrefixes):
    """Makes random calls. What one engine has saved, another one may restore."""

    def __init__(self, random, saved, counts, place, page_size, kv_layout):
        super().__init__(random, counts, place, page_size, kv_layout)
        self.saved = saved

    def step(self):
        """One operation, in a quarter of all cases with no free page."""
        name = self.random.choice(OPERATIONS if self.sequences else ["allocate", "match", "restore"])
        self.now += self.random.randrange(2)
        taken = self.manager.allocate(self.manager.available_pages_count if self.one_in(4) else 0)
        getattr(self, name)()
        self.manager.unref(taken)
        self.check()

    def allocate(self):
        self.grow_some("allocate", self.descriptor.allocate)

    def try_allocate(self):
        def call(ids, lengths):
            admission = self.descriptor.try_allocate(ids, lengths)
            if not admission:
                raise seqattn.NoPageError("", admission.needed, admission.available)
            return admission.copies

        self.grow_some("try_allocate", call)

    def grow_some(self, name, call):
        growth = {}
        for seq_id in self.random.sample(IDS, 2):
            if seq_id in self.sequences:
                growth[seq_id] = self.sequences[seq_id], self.any_tokens(8)
            else:
                salt, tokens = self.any_prompt()
                growth[seq_id] = SequenceModel(salt), tokens
        lengths = [len(tokens) for _, tokens in growth.values()]
        self.grow(name, growth, call, growth, lengths)

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

    def any_table(self):
        """Salt, tokens and pages of a sequence's first tokens, which it has all; None where it has dropped some."""
        seq_id, model = self.any_sequence()
        if model.kept_from():
            return None
        tokens = model.tokens[: self.random.randint(0, model.length)]
        return model.salt, tokens, self.descriptor.pages(seq_id)[: -(-len(tokens) // self.page_size)]

    def attach_pages(self):
        table, child, is_short = self.any_table(), self.any_id(), self.one_in(8)
        if table is None:
            return
        salt, tokens, pages = table
        allowed = child not in self.sequences and not is_short
        num_tokens = len(tokens) + self.page_size * is_short
        if self.attempt("attach_pages", allowed, self.descriptor.attach, child, pages, num_tokens):
            self.sequences[child] = SequenceModel(salt)
            self.sequences[child].grow(tokens)

    def attach_details(self):
        parent, model = self.any_sequence()
        child, is_wrong = self.any_id(), self.one_in(8)
        details = self.descriptor.details(parent)
        if is_wrong:
            details = replace(details, last_page_len=self.page_size + 1)
        allowed = child not in self.sequences and not is_wrong
        if self.attempt("attach_details", allowed, self.descriptor.attach, child, details):
            self.sequences[child] = replace(model.first(model.length), tree=[*model.tree])

    def adopt(self):
        """Over references of the caller's, which in some cases it does not have."""
        table, child, is_lie = self.any_table(), self.any_id(), self.one_in(8)
        if table is None or child in self.sequences:
            return
        salt, tokens, pages = table
        self.manager.ref(pages if not is_lie else [])
        if self.attempt("adopt", not (is_lie and pages), self.descriptor.adopt, child, pages, len(tokens)):
            self.sequences[child] = SequenceModel(salt)
            self.sequences[child].grow(tokens)

    def truncate(self):
        seq_id, model = self.any_sequence()
        end = self.random.choice([model.length, self.random.randint(0, model.length + 1)])
        if self.attempt("truncate", model.can_end_at(end), self.descriptor.truncate, seq_id, end):
            self.counts["tree", "truncated"] += len(model.tree) > 0
            self.sequences[seq_id] = model.first(end)

    def let_one_go(self):
        self.release(self.any_sequence()[0])

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


def make_random_calls(rng, places, num_rounds, events=()):
    """Rounds of 1000 calls on two engines, one at each place; returns what has happened how often.

    Goes on until each of `events` has happened, up to five times as long.
    """
    random, saved, counts = Random(int(rng.integers(2**31))), deque(maxlen=8), Counter()
    for rounds in range(5 * num_rounds):
        if rounds >= num_rounds and all(counts[event] for event in events):
            break
        shapes = zip(places, random.sample(range(1, 6), 2), ("NHD", "HND"))
        engines = [RandomEngine(random, saved, counts, *shape) for shape in shapes]
        for _ in range(1000):
            random.choice(engines).step()
    return counts
