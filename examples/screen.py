"""What examples/generate.py shows while it works."""

import sys


class Screen:
    """Streams answers that grow side by side: line by line, each line behind its answer's number.

    Progress goes to standard error: one line that is rewritten on a terminal, and nothing elsewhere.
    """

    WIDTH = 96

    def __init__(self, tokenizer, out) -> None:
        self._tokenizer, self._out = tokenizer, out
        self._shown: dict[int, int] = {}  # characters of each answer that have been printed

    def text(self, answer) -> str:
        return self._tokenizer.decode([token for token in answer.tokens if token not in self._tokenizer.ends])

    def progress(self, text: str = "") -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        self.progress()
        print(text, file=self._out, flush=True)

    def update(self, number: int, answer) -> None:
        """Prints the lines that are full, and at the end of the answer the last one."""
        text = self.text(answer)
        if answer.done and answer.tokens[-1] not in self._tokenizer.ends:
            text += " [cut at --max-tokens]"
        shown = self._shown.get(number, 0)
        while shown < len(text):
            line = text[shown : shown + self.WIDTH + 1]
            if "\n" in line:
                line = line[: line.index("\n") + 1]
            elif len(line) > self.WIDTH:
                line = line[: line.rfind(" ") + 1] or line[: self.WIDTH]
            elif not answer.done:
                break  # the line may grow, and its last character may still be half a character
            shown += len(line)
            if line.strip():
                self.line(f"[{number + 1}] {line.rstrip()}")
        self._shown[number] = shown
