"""What the random calls are made with."""

from collections import deque

from checked_engine import CheckedEngine

IDS = range(8)
SALTS = ["", "tenant"]


class RandomChoices(CheckedEngine):
    def __init__(self, random, counts, place, page_size, kv_layout):
        super().__init__(counts, place, page_size, kv_layout)
        self.random = random
        self.heard = deque([(salt, []) for salt in SALTS], maxlen=16)  # salts and tokens of sequences so far

    def release(self, seq_id):
        assert self.descriptor.release([seq_id]) == 1
        del self.sequences[seq_id]

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
