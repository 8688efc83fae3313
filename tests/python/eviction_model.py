"""Which pages a prefix cache gives up, in plain lists of pages: no nodes, no heaps."""

from dataclasses import dataclass, field
from math import inf


@dataclass(eq=False)
class CachedPage:
    page: int
    rows: list[int]  # of its tokens
    parent: "CachedPage | None"  # the page in front
    priority: int = 0
    ttl: float = 0
    expires: float = inf
    last_use: int = 0
    num_pins: int = 0

    def path(self):
        """The page and those in front of it, the first one last."""
        return [self, *(self.parent.path() if self.parent else [])]


@dataclass
class EvictionModel:
    pages: dict[int, CachedPage] = field(default_factory=dict)  # by the row at the page's end
    num_uses: int = 0

    def use(self, end, now):
        self.num_uses += 1
        for page in end.path():
            page.last_use, page.expires = self.num_uses, now + page.ttl

    def insert(self, new, end, priority, ttl, now):
        """New pages, and the last of those that were inserted, new or not."""
        self.pages.update((page.rows[-1], page) for page in new)
        for page in end.path():
            page.priority = max(page.priority, priority) if page.last_use else priority
            page.ttl = max(page.ttl, ttl)
        self.use(end, now)

    def evict(self, num_pages, counts, now, only_expired=False, gives_shares=False):
        """Takes out up to that many pages that have one reference, and says which; `counts` has the references."""

        def goes_first(page):
            return (0, page.expires, page.last_use) if page.expires <= now else (1, page.priority, page.last_use)

        going, in_use = [], []
        while len(going) < num_pages:
            ends = [page for page in self.ends(going) if page not in in_use]
            ends = [page for page in ends if page.expires <= now or not only_expired]
            if not ends:
                break
            end = min(ends, key=goes_first)
            (going if counts[end.page] == 1 else in_use).append(end)
        if gives_shares and len(going) < num_pages:
            self.give_up_shares(num_pages, counts, going, in_use)
        for page in going:
            del self.pages[page.rows[-1]]
        for end in in_use:
            self.use(end, now)
        return going

    def ends(self, going):
        """The pages that could go next: nothing is behind them but what goes, and no handle pins them."""
        in_front = {page.parent for page in self.pages.values() if page not in going}
        return [p for p in self.pages.values() if not (p in going or p in in_front or p.num_pins)]

    def give_up_shares(self, num_pages, counts, going, in_use):
        """Ends that sequences hold go too, as long as a page that nobody holds lies in front."""

        def num_free():
            return sum(counts[page.page] == 1 for page in going)

        for end in [*in_use]:
            for page in end.path():
                leads_on = any(counts[p.page] == 1 for p in page.path() if not p.num_pins)
                if num_free() >= num_pages or page not in self.ends(going) or not leads_on:
                    break
                going.append(page)
                in_use[:] = [other for other in in_use if other is not end]
        for page in sorted(going, key=lambda page: len(page.path())):  # shares that lead to nothing stay
            if counts[page.page] > 1 and page.parent not in going:
                going.remove(page)
