"""The bookkeeping of the Python package seqattn 0.0.2, in our own words: what bench/bookkeeping.py compares with.

The algorithm is the original's: page ids in Python lists, a deque of free pages, one count a page, one dict entry a
sequence, packing by extending a list. Where it has torch tensors and numpy arrays there is `array` here: about as fast
as torch at taking a list, and many times faster than numpy at counting one page. Its faults stay out of the way: the
benchmark does nothing that brings them up.
"""

from array import array
from collections import Counter, deque


def int32(values):
    result = array("i")
    result.fromlist(values)
    return result


class NoPageError(Exception):
    pass


class PageManager:
    def __init__(self, num_pages, page_size):
        self.page_size = page_size
        self.counts = array("i", bytes(4 * num_pages))
        self.free = deque(range(num_pages))

    def allocate(self, num_pages):
        if len(self.free) < num_pages:
            raise NoPageError(f"{num_pages} pages of {len(self.free)}")
        pages = []
        for _ in range(num_pages):
            page = self.free.popleft()
            self.counts[page] += 1
            pages.append(page)
        return pages

    def ref(self, pages):
        for page in pages:
            self.counts[page] += 1

    def unref(self, pages):
        for page in pages:
            self.counts[page] -= 1
            if self.counts[page] == 0:
                self.free.append(page)

    def release_pages(self, pages):
        for page, times in Counter(pages).items():
            self.counts[page] -= times
            if self.counts[page] == 0:
                self.free.append(page)


class Sequence:
    __slots__ = ("pages", "last_page_len")

    def __init__(self, pages, last_page_len):
        self.pages = pages
        self.last_page_len = last_page_len


class Descriptor:
    def __init__(self, manager):
        self.manager = manager
        self.sequences = {}

    def allocate(self, seq_ids, new_lens):
        page_size = self.manager.page_size
        needed, last_page_lens, total = [], [], 0
        for seq_id, new_len in zip(seq_ids, new_lens, strict=True):
            sequence = self.sequences.get(seq_id)
            length = new_len + (sequence.last_page_len if sequence else 0)
            count = (length + page_size - 1) // page_size - (1 if sequence else 0)
            needed.append(count)
            last_page_lens.append((length - 1) % page_size + 1)
            total += count
        pages = self.manager.allocate(total)
        begin = 0
        for seq_id, count, last_page_len in zip(seq_ids, needed, last_page_lens, strict=True):
            own = pages[begin : begin + count]
            begin += count
            sequence = self.sequences.get(seq_id)
            if sequence:
                sequence.pages.extend(own)
                sequence.last_page_len = last_page_len
            else:
                self.sequences[seq_id] = Sequence(own, last_page_len)

    def allocate_decoding(self, seq_ids):
        page_size = self.manager.page_size
        needed, total = [], 0
        for seq_id in seq_ids:
            sequence = self.sequences[seq_id]
            count = int(sequence.last_page_len + 1 > page_size)
            sequence.last_page_len = sequence.last_page_len % page_size + 1
            needed.append(count)
            total += count
        pages = self.manager.allocate(total)
        if not pages:
            return
        begin = 0
        for seq_id, count in zip(seq_ids, needed, strict=True):
            if count:
                self.sequences[seq_id].pages.extend(pages[begin : begin + count])
                begin += count

    def release(self, seq_ids):
        pages = []
        for seq_id in seq_ids:
            sequence = self.sequences.get(seq_id)
            if sequence is not None:
                pages.extend(sequence.pages)
        self.manager.release_pages(pages)
        for seq_id in seq_ids:
            self.sequences.pop(seq_id, None)

    def fork(self, parent, child):
        """The original has none; its users shared pages like this."""
        sequence = self.sequences[parent]
        self.manager.ref(sequence.pages)
        self.sequences[child] = Sequence(list(sequence.pages), sequence.last_page_len)

    def pack_for_flashinfer(self, seq_ids):
        indices, indptr, last_page_lens = [], [0], []
        for seq_id in seq_ids:
            if seq_id not in self.sequences:
                raise ValueError(f"unknown sequence {seq_id}")
            sequence = self.sequences[seq_id]
            indices.extend(sequence.pages)
            indptr.append(indptr[-1] + len(sequence.pages))
            last_page_lens.append(sequence.last_page_len)
        return int32(indices), int32(indptr), int32(last_page_lens)
