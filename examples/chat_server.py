#!/usr/bin/env python3
"""A chat server that computes of each turn only what is new.

Every request carries its whole conversation. The prefix cache knows the pages of those that were there before: the turn
starts over them, computes the rest, and gives its own pages to the cache when it is answered. All chats share the
system prompt; the tenants do not, since their salts keep them apart. The pool is too small for everything: the cache
gives up what was not used for longest. Every reply is checked against a computation without a cache.
"""

from dataclasses import dataclass, field

import numpy as np

import seqattn
import toy_model

PAGE_SIZE, NUM_PAGES, NUM_TURNS, REPLY_LEN = 8, 96, 60, 10
TENANTS = {"north": 4, "south": 3}  # and how many chats each has


@dataclass
class Server:
    manager: seqattn.PagedKVCacheManager
    num_asked: int = 0  # tokens of all requests
    num_computed: int = 0  # of those, the ones that the model ran on
    next_id: int = 0
    sequences: seqattn.CacheDescriptor = field(init=False)
    cache: seqattn.PrefixCache = field(init=False)
    model: toy_model.Model = field(init=False)

    def __post_init__(self) -> None:
        self.sequences = seqattn.CacheDescriptor(self.manager)
        self.cache = seqattn.PrefixCache(self.manager)
        self.model = toy_model.Model(self.manager)

    def reply(self, tenant: str, conversation: list[int]) -> list[int]:
        seq_id, self.next_id = self.next_id, self.next_id + 1
        with self.cache.match(conversation, salt=tenant) as found:  # pinned while we look at it
            self.cache.attach(self.sequences, seq_id, found)
            new = conversation[found.num_tokens :]
        self.num_asked += len(conversation)
        self.num_computed += len(new)

        tokens = list(conversation)
        for _ in range(REPLY_LEN):
            logits = self.model.forward(self.sequences, {seq_id: new})[-1]
            toy_model.check(logits, toy_model.recompute(tokens), f"request {seq_id}, token {len(tokens)}")
            new = [int(logits.argmax())]
            tokens += new
        # The last token has been chosen, but not been through the model.
        self.cache.insert(self.sequences, seq_id, tokens[:-1], salt=tenant)
        self.sequences.release([seq_id])
        return tokens[len(conversation) :]


def main() -> None:
    rng = np.random.default_rng(2026)
    server = Server(toy_model.make_cache(NUM_PAGES, PAGE_SIZE))
    system = rng.integers(toy_model.VOCABULARY, size=40).tolist()
    chats = {(tenant, number): list(system) for tenant, count in TENANTS.items() for number in range(count)}
    for _ in range(NUM_TURNS):
        tenant, number = list(chats)[rng.integers(len(chats))]
        chat = chats[tenant, number]
        chat += rng.integers(toy_model.VOCABULARY, size=rng.integers(3, 12)).tolist()
        chat += server.reply(tenant, chat)

    server.cache.check_invariants()
    stats = server.cache.stats()
    print(f"{NUM_TURNS} turns of {len(chats)} chats: {server.num_computed} of {server.num_asked} tokens were computed")
    print(f"{stats.num_pages} of {NUM_PAGES} pages are cached; {stats.num_pages_evicted} had to go")
    if server.num_computed > server.num_asked // 3 or stats.num_pages_evicted == 0:
        raise SystemExit("expected most tokens from the cache, and a pool that falls short")


if __name__ == "__main__":
    main()
