"""bookkeeping.py <bench_bookkeeping> <result.json>: that program beside the original's algorithm in Python.

The two take turns, so that what else the machine does falls on both. Prints a table and writes the same as JSON. Ends
with 1 where a result is wrong; a goal that is missed is only marked, since it is one for a certain machine.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import bookkeeping_peer

ROUNDS = 5
REPETITIONS = 3  # in a round, of each benchmark

# Title; unit, and how many of it a second holds; benchmark, or counter of "memory"; the peer's name where it differs;
# the parts of a call that the row is about; goals: most of the unit, least ratio.
ROWS = [
    ("pack 256 sequences x 512 pages, checked", "us", 1e6, "pack_checked", "pack", 1, 25, 100),
    ("  packing alone", "us", 1e6, "pack", None, 1, None, None),
    ("  packing alone, sequences that grow each step", "us", 1e6, "pack_growing", "pack", 1, None, None),
    ("  every page checked, as after a release", "us", 1e6, "pack_checked_after_free", "pack", 1, None, None),
    ("  the caller's arrays, copied and checked", "us", 1e6, "arrays_checked", "pack", 1, None, None),
    ("allocate + release, sequences, per page", "ns", 1e9, "sequence_pages", None, 1, 4, None),
    ("  of a bare pool, per page", "ns", 1e9, "pool_pages", None, 1, 4, None),
    ("allocate_decoding, 256 sequences", "us", 1e6, "decode/256", None, 1, None, None),
    ("  per sequence", "ns", 1e9, "decode/256", None, 256, None, None),
    ("  when all of them take a page", "us", 1e6, "decode_all_cross/256", None, 1, None, None),
    ("allocate_decoding, 10,000 sequences", "us", 1e6, "decode/10000", None, 1, None, None),
    ("  per sequence", "ns", 1e9, "decode/10000", None, 10_000, None, None),
    ("  when all of them take a page", "us", 1e6, "decode_all_cross/10000", None, 1, None, None),
    ("fork a sequence of 512 pages", "ns", 1e9, "fork/512", None, 1, None, None),
    ("fork a sequence of 1 page", "ns", 1e9, "fork/1", None, 1, None, None),
    ("host memory, per page of a pool", "bytes", 1, "bytes_per_pool_page", None, 1, None, None),
    ("  per page in a page table", "bytes", 1, "bytes_per_table_page", None, 1, None, None),
    ("  per sequence, its pages apart", "bytes", 1, "bytes_per_sequence", None, 1, None, None),
]


def die(message):
    sys.exit(f"bookkeeping: {message}")


def run_program(program, samples, expected_checksum):
    """One round of the C++ side; adds the seconds of a unit to samples[name]. Returns what it says of its build."""
    command = [
        program,
        "--benchmark_format=json",
        f"--benchmark_repetitions={REPETITIONS}",
        "--benchmark_enable_random_interleaving=true",
        "--benchmark_min_time=0.05",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        die(f"{program} ended with {done.returncode}:\n{done.stderr}")
    report = json.loads(done.stdout)
    for run in report["benchmarks"]:
        if run.get("error_occurred"):
            die(f"{run['name']}: {run['error_message']}")
        if run["run_type"] != "iteration":
            continue
        if "checksum" in run and run["checksum"] != expected_checksum:
            die(f"{run['name']}: other arrays than Python's")
        name = run["name"].split("/manual_time")[0]
        if "units" in run:
            samples.setdefault(name, []).append(run["real_time"] * 1e-9 / run["units"])
        for counter in ("bytes_per_pool_page", "bytes_per_sequence", "bytes_per_table_page"):
            if counter in run:
                samples[counter] = [run[counter]]
    return report["context"]


def run_peer(tasks, samples):
    for task in tasks:
        for _ in range(REPETITIONS):
            samples.setdefault(task.name, []).append(task.seconds())


def summary(values, factor):
    """Median, and the tenth and ninetieth of a hundred."""
    values = sorted(value * factor for value in values)
    last = len(values) - 1
    return {"median": values[last // 2], "low": values[round(last * 0.1)], "high": values[round(last * 0.9)]}


def make_row(row, ours, peers):
    title, unit, per_second, name, peer_name, parts, most, least_ratio = row
    result = {"name": name, "title": title.strip(), "unit": unit, **summary(ours[name], per_second / parts)}
    result["python"] = summary(peers[peer_name or name], per_second / parts)
    result["ratio"] = result["python"]["median"] / result["median"]
    result["goals"] = []
    if most is not None:
        result["goals"].append({"goal": f"<= {most} {unit}", "met": result["median"] <= most})
    if least_ratio is not None:
        result["goals"].append({"goal": f">= {least_ratio}x", "met": result["ratio"] >= least_ratio})
    return result


def first_line(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_model():
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    if "model name" not in fields:
        return platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"


def number(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def print_table(report):
    print(f"Bookkeeping of seqattn {report['seqattn']} ({report['commit']}) beside the original's algorithm in Python")
    print(f"{report['cpu']}, {report['num_cpus']} CPUs, load {report['load']:.1f}; one thread; ", end="")
    print(f"compiler {report['compiler']}; Python {report['python']}")
    print(f"Medians and 10% .. 90% of {ROUNDS * REPETITIONS} repetitions; ratios are of medians\n")
    heads = ("", "unit", "seqattn", "10% .. 90%", "Python", "ratio")
    print(f"{heads[0]:44}{heads[1]:>6}{heads[2]:>10}{heads[3]:>18}{heads[4]:>10}{heads[5]:>8}  goals")
    for (title, *_), row in zip(ROWS, report["rows"]):
        spread = "" if row["unit"] == "bytes" else f"{number(row['low'])} .. {number(row['high'])}"
        goals = ", ".join(f"{goal['goal']} {'met' if goal['met'] else 'MISSED'}" for goal in row["goals"])
        print(
            f"{title:44}{row['unit']:>6}{number(row['median']):>10}{spread:>18}"
            f"{number(row['python']['median']):>10}{number(row['ratio']):>7}x  {goals}".rstrip()
        )


def main():
    program, target = sys.argv[1:]
    tasks = bookkeeping_peer.make_tasks()
    ours, peers = {}, {}
    for done in range(ROUNDS):
        if sys.stderr.isatty():
            print(f"\rround {done + 1} of {ROUNDS} ", end="", file=sys.stderr, flush=True)
        context = run_program(program, ours, tasks[0].checksum)
        run_peer(tasks, peers)
    peers |= {name: [value] for name, value in bookkeeping_peer.memory().items()}
    report = {
        "seqattn": context["seqattn"],
        "commit": first_line("git", "describe", "--always", "--dirty", "--exclude=*"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "num_cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "compiler": context["compiler"],
        "python": platform.python_version(),
        "rows": [make_row(row, ours, peers) for row in ROWS],
    }
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps(report, indent=2) + "\n")
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    print_table(report)
    if report["load"] > report["num_cpus"]:
        print("\nThe machine was busy with other work: run again before you trust these figures.")
    print(f"\nAlso in {target}")


if __name__ == "__main__":
    main()
