#!/usr/bin/env python3
"""Runs every code block of README.md: C++ and CMake against an installed seqattn, Python with this interpreter.

A shell block runs in a copy of the tree, as in a fresh clone, unless it holds nothing but commands that the caller
names with --ran, since it runs them itself. A block in any other language, and a README without blocks, is an error.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(title: str, command: list[str], timeout: int = 300, **kwargs) -> None:
    print(f"README.md: {title}", flush=True)
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, **kwargs
    )
    if done.returncode != 0:
        sys.exit(f"{title} failed with {done.returncode}:\n{done.stdout}")


def run_python(code: str, title: str, folder: Path) -> None:
    path = folder / "block.py"
    path.write_text(code)
    run(title, [sys.executable, "-W", "error", str(path)], cwd=folder)


def run_cpp(code: str, cmake: str, prefix: Path, title: str, folder: Path) -> None:
    """Builds the block as the main.cc of the README's own CMake project, whose program is `my_engine`."""
    (folder / "main.cc").write_text(code)
    (folder / "CMakeLists.txt").write_text(cmake)
    build = str(folder / "build")
    run(f"{title}, configured", ["cmake", "-S", str(folder), "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}"])
    run(f"{title}, built", ["cmake", "--build", build])
    run(f"{title}, run", [f"{build}/my_engine"])


def run_shell(code: str, ran: list[str], title: str, folder: Path) -> None:
    commands = [line.split("#")[0].strip() for line in code.splitlines()]
    if all(command in ran for command in commands if command):
        print(f"README.md: {title}, run by the caller")
        return
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["xargs", "-0", "cp", "--parents", "-t", str(folder)], cwd=ROOT, check=True, input=files)
    run(title, ["bash", "-euo", "pipefail", "-c", code], timeout=1800, cwd=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", type=Path, required=True, help="where seqattn is installed")
    parser.add_argument("--ran", action="append", default=[], help="a shell command that the caller runs itself")
    args = parser.parse_args()

    readme = (ROOT / "README.md").read_text()
    blocks = [(readme.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in BLOCK.finditer(readme)]
    if readme.count("```") != 2 * len(blocks) or not blocks:
        sys.exit("README.md: no code blocks, or one that does not end")
    cmake = "".join(code for _, language, code in blocks if language == "cmake")
    for line, language, code in blocks:
        title = f"{language} block of line {line}"
        with tempfile.TemporaryDirectory() as folder:
            if language == "python":
                run_python(code, title, Path(folder))
            elif language == "cpp":
                run_cpp(code, cmake, args.prefix.resolve(), title, Path(folder))
            elif language == "sh":
                run_shell(code, args.ran, title, Path(folder))
            elif language != "cmake":  # which is part of every C++ block's build
                sys.exit(f"README.md:{line}: no way to run a block of language '{language}'")
    if cmake and not any(language == "cpp" for _, language, _ in blocks):
        sys.exit("README.md: CMake lines, and no C++ block to build with them")
    print(f"README.md: {len(blocks)} code blocks accounted for")


if __name__ == "__main__":
    main()
