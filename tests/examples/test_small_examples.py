"""The examples that check themselves run as their readers run them, and end well."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "beam_search.py": "4 beams of 34 tokens: 12 pages where 36 would be without sharing\n",
    "chat_server.py": "60 turns of 7 chats: 1148 of 7236 tokens were computed\n",
    "parallel_sampling.py": "8 answers share the prompt's 7 pages: 49 are saved\n",
    "sliding_window.py": "600 tokens, 32 of them held; never more than 5 pages, where 75 would be without a window\n",
    "speculative_tree.py": "204 tokens in 76 runs of the model; 54 pages are in use for 213 tokens\n",
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_example(name):
    done = subprocess.run([sys.executable, "-W", "error", EXAMPLES / name], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(SMALL[name])


def test_examples_are_short():
    small = [EXAMPLES / name for name in SMALL] + [
        path for path in EXAMPLES.glob("*.cc") if path.stem not in ("quickstart", "toy_model")
    ]
    for path in small:
        assert len(path.read_text().splitlines()) < 80, path
