"""Random calls of a prefix cache."""

from itertools import takewhile
from math import inf

from eviction_model import CachedPage
from random_choices import SALTS, RandomChoices
from sequence_model import SequenceModel, rows_behind


class RandomPrefixes(RandomChoices):
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
        self.note_match(handle, is_use=not pins)
        if found:
            self.attach(handle, salt, tokens[: len(found)])
        if not self.one_in(4):
            self.let_go(self.handles.pop())

    def attach(self, handle, salt, tokens):
        seq_id, model = self.any_id(), SequenceModel(salt)
        model.grow(tokens)
        allowed = seq_id not in self.sequences
        if self.attempt("match", allowed, self.cache.attach, self.descriptor, seq_id, handle):
            self.sequences[seq_id] = model

    def unpin(self):
        if self.handles:
            self.let_go(self.handles.pop(self.random.randrange(len(self.handles))))

    def insert(self):
        seq_id, model = self.any_sequence()
        salt = self.random.choice([model.salt, model.salt, *SALTS])
        tokens = [*model.tokens, 0][: self.random.choice([model.length, self.random.randint(0, model.length + 1)])]
        rows = rows_behind(salt, tokens[: len(tokens) - len(tokens) % self.page_size])
        new = self.new_pages(seq_id, rows)
        cached_pages = {entry.page for entry in self.cached.values()}
        ends = zip(self.descriptor.pages(seq_id), rows[self.page_size - 1 :: self.page_size])
        known = [(page, self.cached[end].page) for page, end in ends if end in self.cached]
        allowed = (
            model.kept_from() == 0
            and len(tokens) <= model.length
            and not any(entry.page in cached_pages for entry in new)
            and not any(page in cached_pages and page != cached for page, cached in known)
        )
        if allowed and new and salt != model.salt:
            return  # a lie that no cache could notice
        priority, ttl = self.random.choice([0, 0, 1]), self.random.choice([None, None, 5, 20])

        def insert():
            return self.cache.insert(self.descriptor, seq_id, tokens, salt, priority=priority, ttl=ttl)

        if self.attempt("insert", allowed, insert) and rows:
            end = new[-1] if new else self.cached[rows[-1]]
            self.evictions.insert(new, end, priority, inf if ttl is None else ttl, self.now)
            if self.one_in(2):  # so that the cache alone holds pages, and has a choice
                self.release(seq_id)

    def new_pages(self, seq_id, rows):
        """The sequence's whole pages that are not in the cache as these rows."""
        new, parent = [], None
        for i, page in enumerate(self.descriptor.pages(seq_id)[: len(rows) // self.page_size]):
            own = rows[i * self.page_size : (i + 1) * self.page_size]
            if own[-1] not in self.cached:
                new.append(CachedPage(page, own, parent))
            parent = self.cached.get(own[-1]) or new[-1]
        return new

    def evict(self):
        num_pages = self.random.randint(0, 3)
        self.check_evicted(num_pages, self.cache.evict(num_pages))

    def evict_expired(self):
        self.check_evicted(len(self.cached), self.cache.evict_expired(), only_expired=True)

    def check_evicted(self, num_pages, num_evicted, **options):
        self.evicted_by_now = self.evictions.evict(num_pages, self.counts_met, self.now, **options)
        assert len(self.evicted_by_now) == num_evicted
        self.counts["expired" if options else "evict", "went"] += num_evicted

    def clear(self):
        self.attempt("clear", not any(found for _, found in self.handles), self.cache.clear)

    def note_match(self, handle, is_use):
        by_page = {entry.page: entry for entry in self.cached.values()}
        path = [by_page[page] for page in handle.pages]
        for entry in path:
            entry.num_pins += 1
        if is_use and path:
            self.evictions.use(path[-1], self.now)

    def let_go(self, pin):
        handle, _ = pin
        for entry in self.cached.values():
            entry.num_pins -= entry.page in handle.pages
        handle.release()
