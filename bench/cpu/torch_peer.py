"""The side of torch in bench_cpu: scaled_dot_product_attention, asked through pipes.

Says first "torch VERSION" or "none WHY". Then, line by line, each answered by one that begins with "ok" or "error":

    case BATCH Q_LEN KV_LEN NUM_QO_HEADS NUM_KV_HEADS HEAD_DIM DTYPE LAYERS
        and, as bytes, queries [batch, q_len, heads, dim] in float32, keys, values [batch, kv_len, heads, dim] in DTYPE
    threads N
    run LAYER COUNT     ok NANOSECONDS of so many runs, on layers from this one on
    out                 ok BYTES, then the last run's output as bytes: [batch, q_len, heads, dim] in float32
"""

import ctypes
import os
import sys
import time


def read_exactly(stream, size):
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = stream.readinto(view)
        if not count:
            raise EOFError("bench_cpu has gone")
        view = view[count:]
    return data


class Case:
    """Tensors of one case in the layout that torch likes best: [batch, heads, tokens, dim], contiguous.

    The query heads of a KV head are so many tokens more: the same result as with enable_gqa, to the bit, in less time.
    """

    def __init__(self, torch, words, stream):
        batch, q_len, kv_len, qo_heads, kv_heads, dim = (int(word) for word in words[:6])
        dtype = getattr(torch, words[6])
        kv_bytes = batch * kv_len * kv_heads * dim * (4 if words[6] == "float32" else 2)
        # All of it first: what torch refuses must not leave bytes behind.
        data = [read_exactly(stream, size) for size in (4 * batch * q_len * qo_heads * dim, kv_bytes, kv_bytes)]

        def tensor(data, data_type, tokens, heads):
            by_token = torch.frombuffer(data, dtype=data_type).view(batch, tokens, heads, dim)
            return by_token.transpose(1, 2).contiguous()

        group = qo_heads // kv_heads
        self.q_shape = batch, qo_heads, q_len, dim
        self.q = tensor(data[0], torch.float32, q_len, qo_heads).view(batch, kv_heads, group * q_len, dim).to(dtype)
        keys, values = (tensor(part, dtype, kv_len, kv_heads) for part in data[1:])
        self.layers = [(keys.clone(), values.clone()) for _ in range(int(words[7]))]
        # is_causal would count from the first key: query j sees keys up to kv_len - q_len + j.
        self.mask = None
        if q_len > 1:
            self.mask = torch.full((q_len, kv_len), float("-inf")).triu(kv_len - q_len + 1).repeat(group, 1).to(dtype)
        self.attend = torch.nn.functional.scaled_dot_product_attention
        self.out = None

    def run(self, layer, count):
        start = time.perf_counter_ns()
        for i in range(layer, layer + count):
            keys, values = self.layers[i % len(self.layers)]
            self.out = self.attend(self.q, keys, values, attn_mask=self.mask)
        return time.perf_counter_ns() - start

    def output(self):
        out = self.out.view(*self.q_shape).transpose(1, 2).float().contiguous()
        return ctypes.string_at(out.data_ptr(), 4 * out.numel())


def import_torch():
    """The module, and the greeting."""
    try:
        import torch
    except ImportError:
        return None, "none not installed"
    if not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        return None, f"none {torch.__version__}, which is too old: attention came with 2.0"
    return torch, f"torch {torch.__version__}"


def answer(torch, case, line, requests):
    """Returns the case from now on, a line and bytes."""
    command, *words = line.split()
    if command == "case":
        return Case(torch, words, requests), "ok", b""
    if command == "threads":
        torch.set_num_threads(int(words[0]))
        return case, "ok", b""
    if command == "run":
        with torch.inference_mode():
            return case, f"ok {case.run(int(words[0]), int(words[1]))}", b""
    if command == "out":
        out = case.output()
        return case, f"ok {len(out)}", out
    raise ValueError(f"unknown request: {line}")


def main():
    # Whatever else prints goes to stderr.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    torch, greeting = import_torch()
    answers.write(greeting.encode() + b"\n")
    answers.flush()
    case = None
    while torch is not None and (line := requests.readline().decode().strip()):
        data = b""
        try:
            case, text, data = answer(torch, case, line, requests)
        except Exception as error:
            text = "error " + " ".join(str(error).split())
        answers.write(text.encode() + b"\n" + data)
        answers.flush()


if __name__ == "__main__":
    main()
