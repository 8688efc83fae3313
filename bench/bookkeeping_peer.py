"""Times the algorithm of original_algorithm.py at the work of bookkeeping.cc, under the same names."""

import gc
import sys
import tracemalloc
from collections import deque
from time import perf_counter

from original_algorithm import Descriptor, PageManager

PAGE_SIZE = 16
NUM_SEQUENCES = 256
PAGES_EACH = 512
NUM_PAGES = NUM_SEQUENCES * PAGES_EACH


def scattered_pages(num_pages):
    """The order in which a service hands out its pages; as in service.cc."""
    page = 0
    for _ in range(num_pages):
        page = (page * 1664525 + 1013904223) % num_pages
        yield page


def sequence_ids(count, first=0):
    return [((i * 0x9E3779B97F4A7C15) % 2**64) >> 1 for i in range(first, first + count)]


def service(num_pages):
    manager = PageManager(num_pages, PAGE_SIZE)
    manager.free = deque(scattered_pages(num_pages))
    return Descriptor(manager)


def checksum(packed):
    total = 0
    for values in packed:
        for value in values:
            total = (total * 31 + value) % 2**32
    return total


def check(right, what):
    if not right:
        raise SystemExit(f"bookkeeping_peer: {what}: wrong result")


def nothing():
    pass


class Task:
    """`body` is timed, `reset` is not; `units` says how many calls, or pages, one body holds."""

    def __init__(self, name, units, body, reset=nothing):
        self.name, self.units, self.body, self.reset = name, units, body, reset
        body()
        reset()

    def seconds(self):
        """Of one unit."""
        gc.collect()
        gc.disable()
        begin = perf_counter()
        self.body()
        taken = perf_counter() - begin
        gc.enable()
        self.reset()
        return taken / self.units


class Packing(Task):
    def __init__(self):
        sequences = service(2 * NUM_PAGES)
        ids = sequence_ids(NUM_SEQUENCES)
        sequences.allocate(ids, [PAGES_EACH * PAGE_SIZE - i % PAGE_SIZE for i in range(NUM_SEQUENCES)])
        super().__init__("pack", 1, lambda: sequences.pack_for_flashinfer(ids))
        self.checksum = checksum(sequences.pack_for_flashinfer(ids))


def pool_pages():
    pool = service(NUM_PAGES).manager

    def body():
        taken = [pool.allocate(PAGES_EACH) for _ in range(NUM_SEQUENCES)]
        for pages in taken:
            pool.unref(pages)

    return Task("pool_pages", NUM_PAGES, body, lambda: check(len(pool.free) == NUM_PAGES, "pool_pages"))


def sequence_pages():
    sequences = service(NUM_PAGES)
    ids = sequence_ids(NUM_SEQUENCES)
    lengths = [PAGES_EACH * PAGE_SIZE] * NUM_SEQUENCES

    def body():
        sequences.allocate(ids, lengths)
        sequences.release(ids)

    return Task(
        "sequence_pages", NUM_PAGES, body, lambda: check(len(sequences.manager.free) == NUM_PAGES, "sequence_pages")
    )


def decode(num_sequences):
    num_calls = 4 * PAGE_SIZE  # fewer than in C++: each PAGE_SIZE of them are alike
    sequences = service(2**20 if num_sequences > 1000 else 2**15)
    ids = sequence_ids(num_sequences)
    lengths = [31 * PAGE_SIZE + 1 + i % PAGE_SIZE for i in range(num_sequences)]
    sequences.allocate(ids, lengths)

    def body():
        for _ in range(num_calls):
            sequences.allocate_decoding(ids)

    def restart():
        check(all(len(sequences.sequences[i].pages) == 36 for i in ids), "decode")
        sequences.release(ids)
        sequences.allocate(ids, lengths)

    return Task(f"decode/{num_sequences}", num_calls, body, restart)


def decode_all_cross(num_sequences):
    sequences = service(2**20 if num_sequences > 1000 else 2**15)
    ids = sequence_ids(num_sequences)
    sequences.allocate(ids, [32 * PAGE_SIZE] * num_sequences)

    def reset():
        for sequence in map(sequences.sequences.get, ids):
            check(len(sequence.pages) == 33, "decode_all_cross")
            sequences.manager.unref([sequence.pages.pop()])
            sequence.last_page_len = PAGE_SIZE

    return Task(f"decode_all_cross/{num_sequences}", 1, lambda: sequences.allocate_decoding(ids), reset)


def fork(num_pages):
    sequences = service(NUM_PAGES)
    parent, *children = sequence_ids(65)
    sequences.allocate([parent], [num_pages * PAGE_SIZE - 8])

    def body():
        for child in children:
            sequences.fork(parent, child)

    return Task(f"fork/{num_pages}", len(children), body, lambda: sequences.release(children))


def make_tasks():
    return [
        Packing(),
        pool_pages(),
        sequence_pages(),
        decode(256),
        decode(10_000),
        decode_all_cross(256),
        decode_all_cross(10_000),
        fork(PAGES_EACH),
        fork(1),
    ]


def memory():
    """Bytes, under the names of the counters of the C++ side."""
    tracemalloc.start()

    def since(before):
        return tracemalloc.get_traced_memory()[0] - before

    before = since(0)
    manager = PageManager(2**20, PAGE_SIZE)
    result = {"bytes_per_pool_page": since(before) / 2**20}
    sequences = Descriptor(manager)
    ids = sequence_ids(10_000)
    before = since(0)
    sequences.allocate(ids, [0] * len(ids))
    result["bytes_per_sequence"] = since(before) / len(ids)
    tracemalloc.stop()
    sequences.release(ids)
    sequences.allocate(ids, [32 * PAGE_SIZE] * len(ids))
    for _ in range(16 * PAGE_SIZE):
        sequences.allocate_decoding(ids)
    tables = [sequence.pages for sequence in sequences.sequences.values()]
    result["bytes_per_table_page"] = sum(map(sys.getsizeof, tables)) / sum(map(len, tables))
    return result
