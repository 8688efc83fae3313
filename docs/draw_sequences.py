"""Draws the pictures of docs/sequences.md: draw_sequences.py [folder].

Each picture is what the library does, and not what somebody remembers: the calls are made over a bare pool, and the
slots of its pages are followed through the page copies and token moves that come back.
"""

import sys
from pathlib import Path
from xml.sax.saxutils import escape

import seqattn

PAGE_SIZE, NUM_PAGES = 4, 12
SLOT, GAP, ROW, LEFT = 26, 12, 74, 112
OWN, SHARED, DRAFT, EMPTY = "#d6e6f5", "#fbe3c0", "#dcefd5", "#ffffff"


class Story:
    """Calls, one after the other, and the sequences after each."""

    def __init__(self, **window: int) -> None:
        self.pool = seqattn.PagePool(NUM_PAGES, PAGE_SIZE)
        self.sequences = seqattn.CacheDescriptor(self.pool, **window)
        self.slots = [[""] * PAGE_SIZE for _ in range(NUM_PAGES)]  # what each slot of each page holds
        self.frames: list[tuple[str, list[tuple[str, list[tuple[int, list[tuple[str, str]]]]]]]] = []

    def call(self, text: str, show: bool = True) -> None:
        """Makes the call that the text is, and fills in the tokens that are new."""
        made = eval("self.sequences." + text)
        for change in made if isinstance(made, list) else []:
            if isinstance(change, seqattn.PageCopy):
                self.slots[change.target] = list(self.slots[change.source])
            else:
                source_page, source_slot, target_page, target_slot = change
                self.slots[target_page][target_slot] = self.slots[source_page][source_slot]
        if text.startswith("allocate"):
            self.write_new_tokens()
        if show:
            rows = [(f"sequence {seq_id}", self.pages_of(seq_id)) for seq_id in sorted(self.sequences.seq_ids())]
            self.frames.append((text, rows))

    def drafts_of(self, seq_id: int) -> int:
        return sum(len(tree) for tree in self.sequences.pack_for_flashinfer([seq_id]).trees)

    def write_new_tokens(self) -> None:
        for seq_id in self.sequences:
            pages = self.sequences.pages(seq_id)
            num_slots, drafts = self.sequences.num_kv_tokens(seq_id), self.drafts_of(seq_id)
            missing = self.sequences.length(seq_id) - (num_slots - drafts)
            for slot in range(max(self.sequences.kept_from(seq_id) - missing, 0), num_slots):
                page = pages[slot // PAGE_SIZE]
                if self.pool.ref_count[page] > 1:
                    continue
                is_draft = slot >= num_slots - drafts
                text = chr(ord("a") + slot - num_slots + drafts) if is_draft else str(slot + missing)
                self.slots[page][slot % PAGE_SIZE] = text

    def pages_of(self, seq_id: int) -> list[tuple[int, list[tuple[str, str]]]]:
        """Each page with what to write into its slots, and their colors."""
        num_slots, drafts = self.sequences.num_kv_tokens(seq_id), self.drafts_of(seq_id)
        drawn = []
        for number, page in enumerate(self.sequences.pages(seq_id)):
            color = SHARED if self.pool.ref_count[page] > 1 else OWN
            slots = []
            for i, text in enumerate(self.slots[page], start=number * PAGE_SIZE):
                is_draft = i >= num_slots - drafts
                slots.append((text, DRAFT if is_draft else color) if i < num_slots else ("", EMPTY))
            drawn.append((page, slots))
        return drawn

    def svg(self) -> str:
        parts, y, width = [], 6, 0
        for text, rows in self.frames:
            parts.append(f'<text x="6" y="{y + 16}" font-weight="bold">{escape(text)}</text>')
            y += 26
            for name, pages in rows:
                parts.append(f'<text x="6" y="{y + 38}">{name}</text>')
                x = LEFT
                for page, slots in pages:
                    parts.append(f'<text x="{x}" y="{y + 14}" fill="#666">page {page}</text>')
                    for i, (slot, fill) in enumerate(slots):
                        at = x + i * SLOT
                        parts.append(
                            f'<rect x="{at}" y="{y + 20}" width="{SLOT}" height="{SLOT}" fill="{fill}" stroke="#555"/>'
                        )
                        parts.append(f'<text x="{at + SLOT / 2}" y="{y + 38}" text-anchor="middle">{slot}</text>')
                    x += PAGE_SIZE * SLOT + GAP
                width = max(width, x)
                y += ROW - 14
            y += 12
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 6}" height="{y}" '
        style = 'font-family="DejaVu Sans, Arial, sans-serif" font-size="12">\n'
        background = '<rect width="100%" height="100%" fill="#fff"/>\n'
        return head + style + background + "\n".join(parts) + "\n</svg>\n"


STORIES: dict[str, tuple[dict[str, int], list[str]]] = {
    "allocate": ({}, ["allocate([1, 2], [6, 3])", "allocate_decoding([1, 2])", "allocate([1], [3])"]),
    "fork": ({}, ["allocate([1], [10])", "fork(1, 2)", "fork(1, 3, 5)"]),
    "copy_on_write": ({}, ["allocate([1], [6])", "fork(1, 2)", "allocate([1], [1])", "allocate([2], [1])"]),
    "truncate": ({}, ["allocate([1], [10])", "fork(1, 2)", "truncate(1, 5)", "allocate([1], [1])"]),
    "window": (
        {"window": 6, "num_sink_tokens": 2},
        ["allocate([1], [14])", "allocate([1], [1])", "allocate([1], [3])", "allocate([1], [1])"],
    ),
    "tree": ({}, ["allocate([1], [6])", "allocate_tree(1, [-1, 0, 0, -1, 3])", "commit_tree(1, [3, 4])"]),
    "keep": ({}, ["allocate([1], [10])", "fork(1, 2)", "keep(1, [0, 1, 4, 5, 9])", "allocate([1], [2])"]),
}


def draw(folder: Path) -> None:
    for name, (window, calls) in STORIES.items():
        story = Story(**window)
        for call in calls:
            story.call(call)
        (folder / f"{name}.svg").write_text(story.svg(), encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "sequences")
