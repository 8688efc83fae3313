"""plot_results.py: the results of bench_attention, and of torch_sdpa.py where there are any, as tables and a plot.

Without arguments it takes the newest files of bench/results for each GPU, attention-GPU-DATE.json and
torch-sdpa-GPU-DATE.json, and rewrites docs/performance-GPU.png and the part of docs/performance.md between its markers.
With --table it prints the tables and writes nothing (matplotlib is not needed).
"""

import argparse
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
TORCH_GOAL = 1.5  # of flash's speed, for prefill

TITLES = {
    "append": "Append (new tokens into their pages)",
    "decode": "Decode (one query a sequence where nothing else is said)",
    "prefill": "Prefill, causal",
}


def newest(pattern: str) -> Path | None:
    files = sorted((ROOT / "bench" / "results").glob(pattern), key=date_of)
    return files[-1] if files else None


def date_of(path: Path) -> str:
    return json.loads(path.read_text())["date"]


def gpus() -> list[str]:
    """The GPUs of bench/results, the newest results first."""
    names = {path.name.split("-")[1] for path in (ROOT / "bench" / "results").glob("attention-*-*.json")}
    return sorted(names, key=lambda name: date_of(newest(f"attention-{name}-*.json")), reverse=True)


def load(path: Path | None) -> dict | None:
    return json.loads(path.read_text()) if path else None


def add_torch(report: dict, torch_report: dict | None) -> None:
    """Puts torch's results beside the cases that they belong to, with the goal that names them."""
    for case in report["cases"]:
        for other in (torch_report or {}).get("cases", []):
            if case["group"] != "prefill" or other["case"] != case["case"]:
                continue
            case["contenders"] |= {name: c for name, c in other["contenders"].items() if "us" in c}
            flash = case["contenders"].get("torch_flash")
            if flash:
                ratio = flash["us"] / case["contenders"]["seqattn"]["us"]
                text = f">= {TORCH_GOAL} x torch flash"
                goal = {"text": text, "value": ratio, "limit": TORCH_GOAL, "met": ratio >= TORCH_GOAL}
                case["goals"].append(goal)


def goals_text(goals: list[dict]) -> str:
    parts = []
    for goal in goals:
        value = f"{goal['value']:.3f}" if goal["limit"] < 10 else f"{goal['value']:.1f}"
        parts.append(f"{goal['text']}: {value}, {'met' if goal['met'] else '**missed**'}")
    return "; ".join(parts)


def markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def group_table(group: str, cases: list[dict]) -> list[str]:
    unit = cases[0]["unit"]
    peers = ["flashinfer"]
    for name in ("flashinfer_fixed_split", "reader", "torch_flash", "torch_cudnn"):
        if any(name in case["contenders"] for case in cases):
            peers.append(name)
    has_ceiling = any(case["ceiling"] > 0 for case in cases)
    head = ["heads", "case", "seqattn, us", unit]
    head += [f"% of {cases[0]['ceiling_name']}"] if has_ceiling else []
    head += [name.replace("_", " ").replace("flashinfer", "FlashInfer") + ", us" for name in peers]
    head += ["FlashInfer / seqattn", "goals"]
    lines = [f"#### {TITLES[group]}", "", markdown_row(head), markdown_row(["---"] * len(head))]
    for case in cases:
        own, contenders = case["contenders"]["seqattn"], case["contenders"]
        cells = [f"{case['num_qo_heads']:.0f}, {case['num_kv_heads']:.0f}", case["case"]]
        cells += [f"{own['us']:.1f}", f"{own['rate']:,.0f}"]
        cells += [f"{100 * own['rate'] / case['ceiling']:.1f}"] if has_ceiling else []
        cells += [f"{contenders[name]['us']:.1f}" if name in contenders else "" for name in peers]
        peer = contenders.get("flashinfer")
        cells += [f"{peer['us'] / own['us']:.3f}" if peer else "", goals_text(case["goals"])]
        lines.append(markdown_row(cells))
    return lines + [""]


def host_table(results: list[dict]) -> list[str]:
    lines = ["#### Host", "", "| | seqattn, us | FlashInfer, us | goals |", "|---|---|---|---|"]
    for result in results:
        times = {name: f"{timing['median_us']:.1f}" for name, timing in result["contenders"].items()}
        cells = [result["case"], times["seqattn"], times.get("flashinfer", ""), goals_text(result["goals"])]
        lines.append(markdown_row(cells))
    return lines + [""]


def tables(report: dict, torch_report: dict | None) -> str:
    lines = [
        f"{report['device']}, driver {report['driver']}, CUDA {report['runtime']}; commit {report['commit']}, "
        f"{report['date']}. Ceilings: device copy {report['copy_gb_s']:,.0f} GB/s (bytes read and written), read "
        f"{report['read_gb_s']:,.0f} GB/s.",
        "",
    ]
    if torch_report:
        lines[0] += f" torch {torch_report['torch']} on {torch_report['device']}, {torch_report['date']}."
    for group in TITLES:
        cases = [case for case in report["cases"] if case["group"] == group]
        if cases:
            lines += group_table(group, cases)
    if report["host"]:
        lines += host_table(report["host"])
    goals = [goal for result in report["cases"] + report["host"] for goal in result["goals"]]
    missed = sum(not goal["met"] for goal in goals)
    lines.append(f"{len(goals) - missed} of {len(goals)} goals are met.")
    return "\n".join(lines)


def plot(report: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [("decode", "GB/s of keys and values"), ("prefill", "TFLOP/s")]
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.5), width_ratios=[3, 1.3])
    styles = {
        "seqattn": "#1f6feb",
        "flashinfer": "#f0883e",
        "flashinfer_fixed_split": "#ffd8b0",
        "torch_flash": "#8b949e",
        "torch_cudnn": "#c9d1d9",
    }
    for axis, (group, label) in zip(axes, panels):
        cases = [case for case in report["cases"] if case["group"] == group]
        names = [name for name in styles if any(name in case["contenders"] for case in cases)]
        width = 0.8 / max(len(names), 1)
        for i, name in enumerate(names):
            places = [at + i * width for at, case in enumerate(cases) if name in case["contenders"]]
            rates = [rate_of(case, name) for case in cases if name in case["contenders"]]
            axis.bar(places, rates, width, color=styles[name], label=name.replace("_", " "))
        if group == "decode":
            axis.axhline(report["read_gb_s"], color="black", linewidth=1, linestyle="--", label="read ceiling")
        ticks = [at + 0.4 - width / 2 for at in range(len(cases))]
        heads = [(case["num_qo_heads"], case["num_kv_heads"]) for case in cases]
        labels = [
            case["case"] if pair == (32, 8) else f"{case['case']} ({pair[0]},{pair[1]})"
            for case, pair in zip(cases, heads, strict=True)
        ]
        axis.set_xticks(ticks, labels, rotation=35, ha="right", fontsize=8)
        axis.set_ylabel(label)
        axis.set_title(f"{group}, queries of bfloat16" if group == "decode" else f"{group}, bfloat16")
        axis.margins(y=0.25)  # room for the legend
        axis.legend(fontsize=8, loc="upper right", ncols=2)
    figure.suptitle(f"{report['device']}, commit {report['commit']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def rate_of(case: dict, contender: str) -> float:
    factor = 1e6 if case["unit"] == "TFLOP/s" else 1e3
    return case["work"] / case["contenders"][contender]["us"] / factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", type=Path, help="JSON of bench_attention: print its tables alone")
    parser.add_argument("--torch", type=Path, help="JSON of torch_sdpa.py")
    parser.add_argument("--table", action="store_true", help="print only")
    arguments = parser.parse_args()
    if arguments.attention:
        report, torch_report = load(arguments.attention), load(arguments.torch)
        add_torch(report, torch_report)
        print(tables(report, torch_report))
        return
    parts = []
    for gpu in gpus():
        report, torch_report = load(newest(f"attention-{gpu}-*.json")), load(newest(f"torch-sdpa-{gpu}-*.json"))
        add_torch(report, torch_report)
        image = f"performance-{gpu}.png"
        head = f"### {report['device']}\n\n![seqattn, FlashInfer and the ceiling]({image})"
        parts.append(f"{head}\n\n{tables(report, torch_report)}")
        if not arguments.table:
            plot(report, ROOT / "docs" / image)
    if not parts:
        parser.error("no bench/results/attention-GPU-DATE.json; name a file with --attention")
    text = "\n\n".join(parts)
    if arguments.table:
        print(text)
        return
    page = ROOT / "docs" / "performance.md"
    pattern = re.compile(re.escape(BEGIN) + ".*" + re.escape(END), re.DOTALL)
    page.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", page.read_text()))


if __name__ == "__main__":
    main()
