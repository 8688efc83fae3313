"""CUDA graphs from torch: captured once, replayed for every later plan."""

import gc

import pytest
from cuda_support import DEVICE, DTYPES, Layer, torch

from seqattn import InvalidArgumentError, UnsupportedError

ROWS = 24  # max_q_tokens
CAPACITY = {"max_sequences": 8, "max_q_tokens": ROWS, "max_q_len": 4, "max_pages": 100}
NAN = float("nan")


class Graph:
    """A layer whose append and run are captured, with the tensors that they read and write."""

    def __init__(self, layer: Layer, give_outputs=True):
        self.layer, self.attention = layer, layer.attention
        options = {"dtype": DTYPES[layer.dtype], "device": DEVICE}
        num_qo_heads = layer.heads * layer.group
        self.keys = torch.zeros(ROWS, layer.heads, layer.head_dim, **options)
        self.values = torch.zeros_like(self.keys)
        self.q = torch.zeros(ROWS, num_qo_heads, layer.head_dim, **options)
        self.out = torch.empty_like(self.q) if give_outputs else None
        self.lse = torch.empty(ROWS, num_qo_heads, device=DEVICE) if give_outputs else None
        self.attention.plan(layer.descriptor.pack_for_flashinfer([]), [0])
        self.body()  # kernels are loaded on their first launch
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out, self.lse = self.body()

    def body(self):
        self.attention.append_kv(self.keys, self.values)
        return self.attention.run(self.q, out=self.out, lse=self.lse, return_lse=True)

    def step(self, batch: dict[int, int]) -> None:
        total = sum(batch.values())
        fresh = self.layer.plan(batch)
        for tensor, new in zip((self.keys, self.values, self.q), fresh, strict=True):
            tensor.fill_(NAN)
            tensor[:total] = new
        self.out.fill_(-7)
        self.lse.fill_(-7)
        self.graph.replay()
        self.layer.check(batch, fresh[2], self.out[:total], self.lse[:total])
        assert self.out[total:].eq(-7).all() and self.lse[total:].eq(-7).all()


STEPS = [
    {0: 4},
    {0: 1, 1: 4, 2: 4, 3: 3},
    {},
    {seq_id: 1 for seq_id in range(8)},
    {2: 4},
    {seq_id: 3 for seq_id in range(8)},
    {5: 0, 6: 1},
    {0: 1},
]


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_one_graph_serves_every_plan(dtype, layout, rng):
    layer = Layer(rng, dtype, layout, **CAPACITY)
    graph = Graph(layer)
    for batch in STEPS:
        graph.step(batch)
    layer.check_cache()


def test_sequences_grow_shrink_and_fork_between_replays(rng):
    layer = Layer(rng, head_dim=128, **CAPACITY)
    graph = Graph(layer)
    for _ in range(40):
        graph.step({0: 4, 1: 1})  # sequence 0 comes to need more chunks of keys than one
    layer.descriptor.truncate(0, 21)
    layer.held[0] = tuple(part[:21] for part in layer.held[0])
    layer.fork(0, 2, 21)
    graph.step({0: 1, 1: 1, 2: 2})
    layer.descriptor.release([1])
    del layer.held[1]
    graph.step({2: 1, 3: 4})
    layer.check_cache()


def test_long_sequences(rng):
    layer = Layer(rng, **{**CAPACITY, "max_pages": 128})
    graph = Graph(layer)
    prefill = Layer(rng, manager=layer.manager)
    prefill.descriptor, prefill.held = layer.descriptor, layer.held  # prefill needs no graph
    prefill.step({0: 1500, 1: 17})
    for _ in range(3):
        graph.step({0: 1, 1: 1})
    layer.check_cache()


def test_outputs_that_are_not_given_come_from_the_graphs_pool(rng):
    layer = Layer(rng, **CAPACITY)
    graph = Graph(layer, give_outputs=False)
    assert graph.out.shape == (ROWS, 8, 64) and graph.lse.shape == (ROWS, 8)
    for batch in STEPS:
        graph.step(batch)


def test_several_layers_in_one_graph_on_a_side_stream(rng):
    layer, other = Layer(rng, **CAPACITY), Layer(rng, "bfloat16", **CAPACITY)
    graphs = [Graph(layer), Graph(other)]
    together = torch.cuda.CUDAGraph()
    with torch.cuda.graph(together, stream=torch.cuda.Stream(DEVICE)):
        for graph in graphs:
            graph.body()
    for batch in STEPS:
        fresh, total = [], sum(batch.values())
        for graph in graphs:
            fresh.append(graph.layer.plan(batch))
            for tensor, new in zip((graph.keys, graph.values, graph.q), fresh[-1], strict=True):
                tensor[:total] = new
        together.replay()
        for graph, (_, _, q) in zip(graphs, fresh, strict=True):
            graph.layer.check(batch, q, graph.out[:total], graph.lse[:total])


def test_a_captured_step_takes_no_memory_of_its_own(rng):
    layer = Layer(rng, **CAPACITY)
    graph = Graph(layer)
    graph.step({0: 4})
    gc.collect()
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info(DEVICE)[0]
    for _ in range(20):
        graph.attention.append_kv(graph.keys, graph.values)
        graph.attention.run(graph.q, out=graph.out, lse=graph.lse)
        graph.graph.replay()
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info(DEVICE)[0] >= free


def test_what_would_not_replay_is_refused_and_the_capture_goes_on(rng):
    layer = Layer(rng, **CAPACITY)
    plain = Layer(rng, manager=layer.manager)
    graph = Graph(layer)
    keys, values, q = plain.plan({100: 3})
    plain.attention.append_kv(keys, values)
    out = plain.attention.run(q)
    layer.plan({0: 2})
    packed = layer.descriptor.pack_for_flashinfer([0])
    torch.cuda.synchronize()
    refused = [
        (lambda: plain.attention.run(q, out=out), UnsupportedError),  # no capacity
        (lambda: plain.attention.append_kv(keys, values), UnsupportedError),
        (lambda: layer.attention.plan(packed, [0, 2]), UnsupportedError),
        (lambda: layer.manager.append_kv(keys[:2], values[:2], packed, [0, 2]), UnsupportedError),
        (lambda: layer.attention.run(graph.q[:2], out=graph.out[:2]), InvalidArgumentError),  # not all the rows
    ]
    again = torch.cuda.CUDAGraph()
    with torch.cuda.graph(again):
        for call, error in refused:
            with pytest.raises(error):
                call()
        graph.body()
    batch = {0: 1, 1: 4}
    keys, values, q = layer.plan(batch)
    for tensor, new in zip((graph.keys, graph.values, graph.q), (keys, values, q), strict=True):
        tensor[:5] = new
    again.replay()
    layer.check({1: 4}, q[1:], graph.out[1:5])


@pytest.mark.parametrize(
    "batch,error",
    [
        ({0: 5}, UnsupportedError),  # more queries of one sequence than max_q_len
        ({seq_id: 4 for seq_id in range(7)}, InvalidArgumentError),  # more in all than max_q_tokens
        ({seq_id: 1 for seq_id in range(9)}, InvalidArgumentError),  # more sequences
    ],
)
def test_a_batch_beyond_the_capacity_is_refused_and_the_plan_stays(batch, error, rng):
    layer = Layer(rng, **CAPACITY)
    graph = Graph(layer)
    graph.step({100: 4})
    graph.step({100: 1})
    with pytest.raises(error):
        layer.plan(batch)
    assert layer.attention.run(graph.q).shape == (ROWS, 8, 64)
    layer.descriptor.release(list(batch))
    graph.step({100: 1})
