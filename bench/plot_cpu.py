"""plot_cpu.py RESULTS.json PICTURE.png [--page PAGE]: what bench_cpu has measured as a plot.

With --page its tables take the place of what stands between two markers in that file, docs/performance.md.
"""

import argparse
import json
import re
from pathlib import Path

BEGIN, END = "<!-- cpu results: begin -->", "<!-- cpu results: end -->"
ROUNDED = "seqattn bf16 dot"
HALF = "ggml by token, f16"
COLOURS = {
    "seqattn": "#1f6feb",
    ROUNDED: "#79c0ff",
    "torch": "#3fb950",
    "ggml by head": "#f0883e",
    "ggml by token": "#ffd8b0",
    HALF: "#d4a72c",
}
CEILINGS = {
    "decode": [("read", "black"), ("gather", "#6e7781")],
    "prefill": [("fma", "black"), ("bf16 dot", "#6e7781")],
}


def group_of(result: dict) -> str:
    return result["case"].split("/")[0]


def rate(result: dict, contender: str) -> float:
    """GB/s, or GFLOP/s; of a ceiling its own."""
    entry = result["contenders"][contender]
    work_per_us = entry["rate"] / 1e6 if "rate" in entry else result["work"] / entry["median_us"]
    return work_per_us / 1e3


def about(report: dict) -> list[str]:
    peers = [f"ggml {report['ggml']}", f"torch {report['torch']}"]
    return [report["machine"], report["kernel"], *peers, f"commit {report['commit']}"]


def plot(report: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        (group, threads)
        for group in CEILINGS
        for threads in sorted({int(result["threads"]) for result in report["results"]})
        if any(group_of(r) == group and r["threads"] == threads for r in report["results"])
    ]
    num_panels = len(panels) + bool(report["scaling"])
    figure, axes = pyplot.subplots(num_panels, 1, figsize=(13, 3.6 * num_panels), squeeze=False)
    for axis, (group, threads) in zip(axes[:, 0], panels):
        results = [r for r in report["results"] if group_of(r) == group and r["threads"] == threads]
        names = [name for name in COLOURS if any(name in r["contenders"] for r in results)]
        width = 0.8 / max(len(names), 1)
        for i, name in enumerate(names):
            places = [at + (i - (len(names) - 1) / 2) * width for at in range(len(results))]
            heights = [rate(r, name) if name in r["contenders"] else 0 for r in results]
            axis.bar(places, heights, width, color=COLOURS[name], label=name)
        for name, colour in CEILINGS[group]:
            measured = [at for at, result in enumerate(results) if name in result["contenders"]]
            for at in measured:
                label = name if at == measured[0] else None
                axis.hlines(rate(results[at], name), at - 0.45, at + 0.45, color=colour, linewidth=1.5, label=label)
        axis.set_xticks(range(len(results)), [r["case"].split("/", 1)[1] for r in results], rotation=40, ha="right")
        axis.tick_params(axis="x", labelsize=7)
        axis.set_ylabel(results[0]["unit"])
        axis.set_title(f"{group}, {threads} thread{'s' if threads > 1 else ''}", fontsize=10)
        axis.legend(fontsize=7)
    if report["scaling"]:
        plot_scaling(report["scaling"], axes[-1, 0])
    figure.suptitle("; ".join(about(report)), fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(path, dpi=110)


def tokens_of(point: dict) -> float:
    return point["batch"] * point["kv_len"]


def plot_scaling(fits: list[dict], axis) -> None:
    for fit in fits:
        threads = f"{fit['threads']:.0f} thread{'s' if fit['threads'] > 1 else ''}"
        label = f"against {fit['against']}, {threads}: {fit['fixed_us']:.0f} us + bytes / {fit['gb_s']:.1f} GB/s"
        tokens = [tokens_of(point) for point in fit["points"]]
        axis.loglog(tokens, [point["us"] for point in fit["points"]], "o-", markersize=3, label=label)
    axis.set_xlabel("tokens that are read", fontsize=8)
    axis.set_ylabel("us")
    axis.set_title("decode against context and batch (32,8,128, f16, HND)", fontsize=10)
    axis.legend(fontsize=7)


def scaling_table(fits: list[dict]) -> list[str]:
    head = ["against", "threads", "from", "to", "us", "line of least squares, us", "farthest from it"]
    head += ["over one thread", "goals"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    alone = {fit["against"]: [point["us"] for point in fit["points"]] for fit in fits if fit["threads"] == 1}
    for fit in fits:
        first, last = fit["points"][0], fit["points"][-1]
        ends = [f"{point['batch']:.0f} x {point['kv_len']:,.0f} tokens" for point in (first, last)]
        line = f"{fit['fixed_us']:.0f} + bytes / ({fit['gb_s']:.1f} GB/s)"
        times = f"{first['us']:,.0f} to {last['us']:,.0f}"
        cells = [fit["against"], f"{fit['threads']:.0f}", *ends, times, line, f"{100 * fit['largest_deviation']:.0f} %"]
        gains = [one / point["us"] for one, point in zip(alone.get(fit["against"], []), fit["points"])]
        cells += [f"{min(gains):.2f} to {max(gains):.2f}" if gains else ""]
        cells += ["; ".join(goal_text(goal) for goal in fit["goals"])]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def goal_text(goal: dict) -> str:
    return f"{goal['text']}: {goal['value']:.2f}, {'met' if goal['met'] else '**missed**'}"


def spread(result: dict) -> float:
    """How far apart the quartiles of our samples are, in percent of the median."""
    entry = result["contenders"]["seqattn"]
    return 100 * (entry["upper_quartile_us"] - entry["lower_quartile_us"]) / entry["median_us"]


def has(result: dict, contender: str) -> bool:
    return contender in result["contenders"]


def time_text(result: dict, contender: str) -> str:
    return f"{result['contenders'][contender]['median_us']:,.0f}" if has(result, contender) else ""


def table(report: dict, group: str) -> list[str]:
    results = [result for result in report["results"] if group_of(result) == group]

    def measured(names: list[str]) -> list[str]:
        return [name for name in names if any(name in result["contenders"] for result in results)]

    ceilings = measured([name for name, _ in CEILINGS[group] if name != "bf16 dot"])
    rounded = measured([ROUNDED])
    dot_peak = measured(["bf16 dot"]) if rounded else []
    caches = measured(["ggml by token", "ggml by head"])
    peers = caches + measured([HALF])
    head = ["case", "threads", "seqattn, us", "spread, %", results[0]["unit"]]
    head += [f"% of {name}" for name in ceilings] + [f"{name}, us" for name in rounded]
    head += [f"its % of {name}" for name in dot_peak]
    head += [f"{name}, us" for name in peers + measured(["torch"])]
    head += ["best ggml / seqattn"] if caches else []
    head += ["goals"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        own = result["contenders"]["seqattn"]["median_us"]
        cells = [result["case"].split("/", 1)[1], f"{result['threads']:.0f}"]
        cells += [f"{own:,.0f}", f"{spread(result):.0f}", f"{rate(result, 'seqattn'):.1f}"]
        cells += [f"{100 * rate(result, 'seqattn') / rate(result, name):.0f}" for name in ceilings]
        cells += [time_text(result, name) for name in rounded]
        for name in dot_peak:
            cells.append(f"{100 * rate(result, ROUNDED) / rate(result, name):.0f}" if has(result, ROUNDED) else "")
        cells += [time_text(result, name) for name in peers + measured(["torch"])]
        times = [result["contenders"][name]["median_us"] for name in caches if has(result, name)]
        cells += [f"{min(times) / own:.1f}" if times else ""] if caches else []
        cells += ["; ".join(goal_text(goal) for goal in result["goals"])]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def markdown(report: dict) -> str:
    lines = ["; ".join(about(report)) + f", {report['date']}.", ""]
    for group in CEILINGS:
        if any(group_of(result) == group for result in report["results"]):
            lines += [f"#### {group.capitalize()}", "", *table(report, group), ""]
    if report["scaling"]:
        lines += ["#### Scaling", "", *scaling_table(report["scaling"]), ""]
    goals = [goal for result in report["results"] + report["scaling"] for goal in result["goals"]]
    lines.append(f"{sum(goal['met'] for goal in goals)} of {len(goals)} goals are met.")
    if not any(ROUNDED in result["contenders"] for result in report["results"]):
        lines.append("Goals of products of bfloat16 cannot be measured here: this CPU has no AVX512_BF16.")
    errors = ", ".join(
        f"{who} {max(result[key] for result in report['results']):.1e}"
        for who, key in (("seqattn", "error"), ("its peers", "peer_error"))
        if report["results"]
    )
    lines.append(f"Largest distance from the oracle: {errors}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON of bench_cpu")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--page", type=Path, help="the page to put the tables in")
    arguments = parser.parse_args()
    report = json.loads(arguments.results.read_text())
    if not report["results"] and not report["scaling"]:
        parser.error(f"{arguments.results} has no results")
    plot(report, arguments.picture)
    if arguments.page:
        pattern = re.compile(re.escape(BEGIN) + ".*" + re.escape(END), re.DOTALL)
        picture = f"![seqattn, its peers and the ceilings]({arguments.picture.name})"
        block = f"{BEGIN}\n{picture}\n\n{markdown(report)}\n{END}"
        arguments.page.write_text(pattern.sub(lambda _: block, arguments.page.read_text()))


if __name__ == "__main__":
    main()
