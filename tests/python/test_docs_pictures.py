"""The pictures in text of docs/*.md are what the calls do, made on real pages."""

import re
import struct

import numpy as np
import pytest
from docs_cache_story import CacheStory
from docs_story import PAGE_SIZE, Story
from text_pictures import DOCS, numbers, pictures

import seqattn


class StateStory(Story):
    """Two layers of four elements a token; `others` is a descriptor over another pool, with pages of eight slots."""

    num_layers, head_dim = 2, 2

    def __init__(self):
        super().__init__()
        others = seqattn.CacheDescriptor(self.make_manager(6, 2 * PAGE_SIZE))
        self.names |= {"sequences": self.sequences, "others": others, "state": None}
        self.names |= {"save_sequence": self.save, "restore_sequence": self.restore}
        self.at, self.tokens = 0, ""  # where the next row is in the state, and the layer's tokens

    def save(self, sequences, seq_id):
        self.names["state"], self.at = seqattn.save_sequence(sequences, seq_id), 0
        return self.names["state"]

    def restore(self, sequences, seq_id, state):
        self.sequences, self.manager = sequences, sequences.cache_manager
        return seqattn.restore_sequence(sequences, seq_id, state)

    def owner_of(self, call, row):
        return row.owner

    def make(self, call):
        super().make(call)
        assert not call.text.startswith("save") or self.at == len(self.names["state"])

    def header(self, length, num_kv_tokens):
        window, num_sinks = self.sequences.window(7)
        expected = int(length), int(num_kv_tokens), window, num_sinks
        return struct.unpack_from("<4q", self.names["state"], 32) == expected

    def skip(self, num_bytes):
        self.at += int(num_bytes)
        return True

    def layer(self, _, tokens):
        self.tokens = tokens
        held = np.array(numbers(tokens), np.float32).repeat(self.head_dim)
        return self.names["state"].startswith(held.tobytes() * 2, self.at)

    def notes(self, row):
        return {
            r"header: length (\d+), num_kv_tokens (\d+), the window": self.header,
            r"^\W*(\d+) bytes": self.skip,
            r"layer (\d): keys, values of ([\d ]+)": self.layer,
            r"layer (\d): likewise": lambda layer: self.layer(layer, self.tokens),
            r"(\d+) \* (\d+), and (\d+) of the checksum": lambda n, size, rest: self.skip(
                int(n) * int(size) + int(rest)
            ),
            **super().notes(row),
        }


CALLS = {
    "sequences.md": "allocate fork release pool.allocate attach adopt set_window allocate_tree commit_tree",
    "prefix_cache.md": "allocate insert release match attach handle.release evict pin clear clock.advance "
    "evict_expired pool.allocate set_window",
    "sequence_state.md": "allocate fork set_window save_sequence release restore_sequence",
}
STORIES = [("sequences.md", Story, 5), ("prefix_cache.md", CacheStory, 5), ("sequence_state.md", StateStory, 1)]


@pytest.mark.parametrize("name", CALLS)
def test_there_is_a_picture_of_each_call(name):
    assert {call.text.split("(")[0] for calls in pictures(name) for call in calls} == set(CALLS[name].split())


@pytest.mark.parametrize("name,story,count", STORIES)
def test_pictures_in_text_show_what_the_calls_do(name, story, count):
    found = list(pictures(name))
    assert len(found) == count
    for calls in found:
        teller = story()
        for call in calls:
            teller.make(call)


def codes(letters):
    return [ord(letter) for letter in letters]


def test_the_picture_of_the_tree_is_what_matches_find():
    text = (DOCS / "prefix_cache.md").read_text()
    block = re.search(r"^```\n(page_size 4 .*?)^```$", text, re.MULTILINE | re.DOTALL)[1]
    found = re.findall(r"\[([^\]]*)\] +pages? ([\d ]+)", block)
    nodes = [(re.findall("[a-z]", slots), numbers(pages)) for slots, pages in found]
    (stem, stem_pages), *branches = nodes
    story = CacheStory()
    for seq_id, (branch, _) in enumerate(branches):
        tokens = codes(stem + branch)
        with story.cache.match(tokens) as handle:
            story.cache.attach(story.sequences, seq_id, handle)
        story.sequences.allocate([seq_id], [len(tokens) - story.sequences.length(seq_id)])
        story.cache.insert(story.sequences, seq_id, tokens)
    assert story.cache.stats().num_nodes == len(nodes)
    for branch, pages in branches:
        with story.cache.pin(codes(stem + branch)) as handle:
            assert handle.pages == stem_pages + pages

    finds = r"match \[([a-z ]+)\.\.\.\] +finds (\d+) tokens: pages ([\d, ]+and \d+) as far as ([a-z])"
    asked, count, pages, last = re.search(finds, block).groups()
    assert asked.split()[int(count) - 1] == last
    handle = story.cache.match(codes(asked.split()))
    assert (handle.num_tokens, handle.pages) == (int(count), numbers(pages))
    story.cache.attach(story.sequences, 9, handle)
    copies = story.sequences.allocate([9], [1])
    shared = int(re.search(r"grows inside page (\d+), which is shared: it is copied", block)[1])
    assert [source for source, _ in copies] == [shared]

    asked = re.search(r"match \[([a-z ]+)\.\.\.\] +finds nothing", block)[1].split()
    assert asked == branches[0][0]
    assert story.cache.match(codes([*asked, "z"])).num_tokens == 0
