"""What a sequence is meant to hold, written down as plainly as possible: a list of slots, and no pages."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

_rows = {}


def rows_behind(before, tokens):
    """The rows of tokens that come behind a row, or behind a salt.

    A row is a number, the same only where the salt and all tokens up to there are the same. The tests write it where
    a model would write the keys and values that it computes from those.
    """
    rows = []
    for token in tokens:
        before = _rows.setdefault((before, token), len(_rows))
        rows.append(before)
    return rows


class Slot(NamedTuple):
    place: int  # what a window counts: the position, until `keep` numbers the tokens anew
    row: int


class Draft(NamedTuple):
    parent: int
    token: int
    row: int


@dataclass
class SequenceModel:
    salt: str
    tokens: list[int] = field(default_factory=list)  # at every position, also where they were dropped
    slots: list[Slot] = field(default_factory=list)
    tree: list[Draft] = field(default_factory=list)
    window: int = 0
    num_sinks: int = 0
    compacted_to: int = 0  # the length at which `keep` last picked tokens
    forgotten: int = 0  # positions less places

    @property
    def length(self):
        return len(self.tokens)

    @property
    def next_place(self):
        return self.length - self.forgotten

    def rows(self):
        return [slot.row for slot in self.slots] + [draft.row for draft in self.tree]

    def last_row(self):
        return [self.salt, *rows_behind(self.salt, self.tokens)][-1]

    def missing(self):
        """The places that the window has dropped."""
        held = {slot.place for slot in self.slots}
        return [place for place in range(self.next_place) if place not in held]

    def kept_from(self):
        return max([self.compacted_to, *(place + self.forgotten + 1 for place in self.missing())])

    def sees(self, place):
        """Whether the next token does."""
        return self.window == 0 or place < self.num_sinks or place > self.next_place - self.window

    def drop_unseen_pages(self, page_size):
        """What growth begins with. Returns how many tokens go."""
        num_held = len(self.slots)
        pages = [self.slots[first : first + page_size] for first in range(0, num_held, page_size)]
        left = [page for page in pages if len(page) < page_size or any(self.sees(slot.place) for slot in page)]
        self.slots = [slot for page in left for slot in page]
        return num_held - len(self.slots)

    def grow(self, tokens):
        rows = rows_behind(self.last_row(), tokens)
        self.slots += [Slot(self.next_place + i, row) for i, row in enumerate(rows)]
        self.tokens += tokens

    def can_have_window(self, window, num_sinks):
        missing = self.missing()
        if window == 0:
            return num_sinks == 0 and not missing
        return not missing or (self.next_place - window >= missing[-1] and num_sinks <= missing[0])

    def can_end_at(self, end):
        missing, place = self.missing(), end - self.forgotten
        if end == self.length or not missing:
            return self.compacted_to <= end <= self.length
        behind = missing[-1] + self.window <= place
        in_front = self.compacted_to == 0 and place <= missing[0]
        return self.compacted_to <= end < self.length and (behind or in_front)

    def first(self, end):
        """A copy that ends at a position where it can, without a tree."""
        slots = [slot for slot in self.slots if slot.place < end - self.forgotten]
        return replace(self, tokens=self.tokens[:end], slots=slots, tree=[])

    def add_tree(self, parents, tokens):
        for parent, token in zip(parents, tokens):
            before = self.last_row() if parent < 0 else self.tree[parent].row
            self.tree.append(Draft(parent, token, *rows_behind(before, [token])))

    def path_to(self, draft):
        return [] if draft < 0 else [*self.path_to(self.tree[draft].parent), draft]

    def can_commit(self, path):
        return self.tree and all(self.tree[draft].parent == above for above, draft in zip([-1, *path], path))

    def commit(self, path):
        tokens = [self.tree[draft].token for draft in path]
        self.tree = []
        self.grow(tokens)

    def can_keep(self, indices):
        return not self.tree and all(self.sees(self.slots[i].place) for i in indices)

    def keep(self, indices):
        if len(indices) == len(self.slots):
            return
        self.slots = [Slot(place, self.slots[i].row) for place, i in enumerate(indices)]
        self.num_sinks = sum(i < self.num_sinks for i in indices)
        self.compacted_to = self.length
        self.forgotten = self.length - len(indices)
