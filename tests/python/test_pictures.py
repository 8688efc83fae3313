"""The pictures of docs/sequences.md are what the library does."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_pictures_show_what_the_calls_do(tmp_path):
    spec = importlib.util.spec_from_file_location("draw_sequences", DOCS / "draw_sequences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.draw(tmp_path)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    checked_in = {path.name: path.read_text() for path in (DOCS / "sequences").iterdir()}
    assert drawn == checked_in, "draw them again: python docs/draw_sequences.py"
