"""torch_sdpa.py [--json FILE] [--samples N]: torch's scaled_dot_product_attention (flash, cuDNN) for the prefill
shapes of bench_attention, on dense tensors: bfloat16, causal, 32 query and 8 KV heads of 128.

Every output is checked beside float64 on sampled queries, then timed with events over rotating inputs. A backend that
cannot serve a shape is reported with torch's words. Ends with 1 where a result is wrong.
"""

import argparse
import datetime
import json
import statistics
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

QO_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
TOLERANCE = 6e-3  # bfloat16 weights and outputs give 1e-3 to 3e-3
SETS, RUNS = 4, 4
CASES = {"1x8k": (1, 8192, 8192), "8x2k": (8, 2048, 2048), "16x(512 new on 8k)": (16, 512, 8704)}
BACKENDS = {"torch_flash": SDPBackend.FLASH_ATTENTION, "torch_cudnn": SDPBackend.CUDNN_ATTENTION}


def make_inputs(batch: int, q_len: int, kv_len: int, seed: int):
    generator = torch.Generator("cuda").manual_seed(seed)

    def tensor(heads: int, tokens: int):
        return torch.randn(batch, heads, tokens, HEAD_DIM, device="cuda", dtype=torch.bfloat16, generator=generator)

    return tensor(QO_HEADS, q_len), tensor(KV_HEADS, kv_len), tensor(KV_HEADS, kv_len)


def attend(q, k, v):
    q_len, kv_len = q.shape[2], k.shape[2]
    attention = torch.nn.functional.scaled_dot_product_attention
    if q_len == kv_len:
        return attention(q, k, v, is_causal=True, enable_gqa=True)
    # The last queries of longer sequences.
    return attention(q, k, v, attn_mask=causal_lower_right(q_len, kv_len), enable_gqa=q.shape[1] != k.shape[1])


def expanded(q, k, v):
    """The same attention without heads that share keys."""
    return q, *(x.repeat_interleave(QO_HEADS // x.shape[1], dim=1) for x in (k, v))


def relative_error(q, k, v, out) -> float:
    """The largest over some queries and all heads."""
    q_len, kv_len = q.shape[2], k.shape[2]
    worst = 0.0
    for query in {0, 1, q_len // 3, q_len // 2 + 1, q_len - 1}:
        row = (7 * query) % q.shape[0]
        visible = kv_len - q_len + query + 1
        group = QO_HEADS // k.shape[1]
        keys, values = (x[row, :, :visible].double().repeat_interleave(group, dim=0) for x in (k, v))
        logits = torch.einsum("hd,htd->ht", q[row, :, query].double(), keys) / HEAD_DIM**0.5
        want = torch.einsum("ht,htd->hd", logits.softmax(-1), values)
        error = (out[row, :, query].double() - want).norm(dim=-1) / want.norm(dim=-1)
        worst = max(worst, error.max().item())
    return worst


def time_us(inputs, samples: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    taken = []
    for sample in range(-3, samples):
        begin.record()
        for run in range(RUNS):
            attend(*inputs[run % len(inputs)])
        end.record()
        end.synchronize()
        if sample >= 0:
            taken.append(1000 * begin.elapsed_time(end) / RUNS)
    return statistics.median(taken)


def flops(batch: int, q_len: int, kv_len: int) -> float:
    visible = q_len * (kv_len - q_len) + q_len * (q_len + 1) / 2
    return 4 * HEAD_DIM * QO_HEADS * batch * visible


def measure(shape: tuple[int, int, int], backend: SDPBackend, samples: int) -> dict:
    if backend == SDPBackend.CUDNN_ATTENTION and shape[1] != shape[2]:
        return {"error": "torch's bias for the last queries has no way to cuDNN"}
    inputs = [make_inputs(*shape, seed) for seed in range(SETS)]
    with torch.inference_mode(), sdpa_kernel(backend):
        try:
            out = attend(*inputs[0])
        except RuntimeError as error:
            if shape[1] == shape[2]:
                return {"error": str(error).splitlines()[0]}
            inputs = [expanded(*tensors) for tensors in inputs]
            try:
                out = attend(*inputs[0])
            except RuntimeError as second_error:
                return {"error": str(second_error).splitlines()[0]}
        worst = relative_error(*inputs[0], out)
        if not worst <= TOLERANCE:
            raise SystemExit(f"{backend}, {shape}: off by {worst}; no time is reported")
        us = time_us(inputs, samples)
    return {"us": us, "rate": flops(*shape) / us / 1e6, "relative_error": worst}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--samples", type=int, default=25)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no CUDA device", file=sys.stderr)
        return 1
    cases = []
    for name, shape in CASES.items():
        contenders = {contender: measure(shape, backend, arguments.samples) for contender, backend in BACKENDS.items()}
        cases.append({"group": "prefill", "case": name, "unit": "TFLOP/s", "contenders": contenders})
        for contender, result in contenders.items():
            text = result.get("error") or f"{result['us']:.1f} us, {result['rate']:.0f} TFLOP/s"
            print(f"{name:20} {contender:12} {text}")
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "cases": cases,
    }
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(report, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
