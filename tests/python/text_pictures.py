"""Pictures of pages in text, as the docs have them: calls, and after each what it has made of the pages."""

import re
from dataclasses import dataclass, field
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


@dataclass
class Row:
    """One line: whose pages, what their slots hold ("." for nothing), their counts, and what else is said."""

    owner: str = ""
    slots: list[list[str]] | None = None
    prefix: list[str] = field(default_factory=list)  # what the row above has in front of the column where this begins
    pages: list[int] = field(default_factory=list)
    references: list[int] | None = None
    notes: str = ""


@dataclass
class Call:
    text: str
    rows: list[Row] = field(default_factory=list)


def numbers(text):
    """ "3 to 11, 2" and "0 1 2" as lists."""
    found = []
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", text):
        found += range(int(first), int(last or first) + 1)
    return found


def row_of(line, above):
    row, notes = Row(), []
    for part in re.split(r" {2,}", re.sub(r"\bpage  +", "page ", line).strip()):
        if part.startswith("["):
            row.slots = [page.split() for page in part.strip("[]").split("|")]
        elif re.fullmatch(r"pages? [\d ]+", part):
            row.pages = numbers(part)
        elif re.fullmatch(r"references [\d ]+", part):
            row.references = numbers(part)
        elif re.fullmatch(r"sequence \d+|the caller|the cache|a handle", part):
            row.owner = part
        elif part:
            notes.append(part)
    row.notes = "; ".join(notes)
    if row.slots and above.find("[") >= 0:
        row.prefix = above[above.find("[") : line.index("[")].strip("[|").replace("|", " ").split()
    return row


def pictures(name):
    """The pictures of a file, each a list of calls: blocks between fences that begin with a call and show pages."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL)
    for language, block in fenced:
        if language or not re.match(r"[\w.]+\(.*\) ", block) or not re.search(r"\] +pages? ", block):
            continue
        calls, above = [], ""
        for line in block.splitlines():
            call = re.match(r"\S[^(]*\(.*?\)(?=  |$)", line)
            if call:
                calls.append(Call(call.group()))
                line, above = " " * call.end() + line[call.end() :], ""
            if line.strip():
                calls[-1].rows.append(row_of(line, above))
            above = line
        yield calls
