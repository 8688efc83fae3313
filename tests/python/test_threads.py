"""The GIL, threads and processes."""

import threading

import numpy as np
import pytest
from support import main_thread_runs_during, make_manager, run_python

from seqattn import BatchAttention, CacheDescriptor, FlashInferPackedData

TOKENS = 2048


@pytest.fixture
def long_sequence(rng):
    manager = make_manager(TOKENS // 4, 4, 4, 64, "float32", kv_layout="HND")
    packed = FlashInferPackedData(manager.allocate(TOKENS // 4), [0, TOKENS // 4], [4])
    tokens = rng.standard_normal((TOKENS, 4, 64), np.float32)
    attention = BatchAttention(manager, 4, num_threads=1)
    attention.plan(packed, [0, TOKENS])
    attention.append_kv(tokens, tokens)
    return manager, packed, attention, tokens


def test_append_plan_and_run_leave_the_gil(long_sequence):
    manager, packed, attention, tokens = long_sequence
    mask = np.ones(TOKENS * TOKENS, bool)
    assert main_thread_runs_during(lambda: attention.run(tokens))
    assert main_thread_runs_during(lambda: attention.append_kv(tokens, tokens))
    assert main_thread_runs_during(lambda: manager.append_kv(tokens, tokens, packed, [0, TOKENS]))
    assert main_thread_runs_during(lambda: attention.plan(packed, [0, TOKENS], mask))


def test_a_call_that_keeps_the_gil_is_told_apart():
    assert not main_thread_runs_during(lambda: sum(range(1000)))


def test_threads_may_run_and_plan_one_attention_at_the_same_time(rng):
    manager = make_manager()
    descriptor = CacheDescriptor(manager)
    descriptor.allocate([0], [8])
    packed = descriptor.pack_for_flashinfer([0])
    attention = BatchAttention(manager, 2)
    attention.plan(packed, [0, 8])
    tokens = rng.standard_normal((8, 2, 8), np.float32)
    attention.append_kv(tokens, tokens)
    expected = attention.run(tokens)
    results = []

    def work():
        for _ in range(50):
            attention.plan(packed, [0, 8])
            results.append(attention.run(tokens))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_a_forked_child_may_use_the_manager_it_inherits():
    # In a process of its own, since JAX, loaded here, does not take forks.
    code = """
import os
import numpy as np
from seqattn import BatchAttention, CacheDescriptor, PagedKVCacheManager

manager = PagedKVCacheManager(64, 8, 4, 64, "float32", "cpu", kv_layout="HND")
descriptor = CacheDescriptor(manager)
descriptor.allocate([0, 1], [200, 250])
attention = BatchAttention(manager, 4, num_threads=2)
attention.plan(descriptor.pack_for_flashinfer([0, 1]), [0, 200, 450])
tokens = np.random.default_rng(0).standard_normal((450, 4, 64), np.float32)
attention.append_kv(tokens, tokens)
expected = attention.run(tokens)
child = os.fork()
if child == 0:
    same = np.array_equal(attention.run(tokens), expected)
    attention.append_kv(2 * tokens, 2 * tokens)
    changed = not np.array_equal(attention.run(tokens), expected)
    os._exit(0 if same and changed else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert np.array_equal(attention.run(tokens), expected)
"""
    run_python(code)
