"""Plain values that go in and out of the library, and the mapping of sequences."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, SupportsIndex

if TYPE_CHECKING:
    from ._core import CacheDescriptor


@dataclass(slots=True)
class SequenceData:
    """The pages of one sequence, in order, and the tokens on the last of them."""

    kv_page_indices: list[int]
    last_page_len: int


class PageCopy(NamedTuple):
    """Copy all token slots of page `source` onto page `target`, in every layer."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer of `try_allocate`: false when the pool fell short, and then nothing changed."""

    ok: bool
    needed: int
    available: int
    copies: list[PageCopy] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True, slots=True)
class Stats:
    """What a descriptor holds."""

    num_sequences: int
    num_tokens: int  # KV slots held, summed over sequences
    num_page_references: int  # pages, summed over sequences
    num_pages: int  # distinct pages that the sequences hold
    num_shared_pages: int  # of those, the ones with a reference count above 1
    num_free_pages: int  # free in the pool


class SequenceMapping(MutableMapping[int, SequenceData]):
    """The sequences of a descriptor as a live mapping from id to `SequenceData`.

    Reading gives a fresh `SequenceData`; assign to change a table. Assigning takes over references
    that the caller holds (`CacheDescriptor.adopt`), deleting releases the sequence.
    """

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: CacheDescriptor) -> None:
        self._descriptor = descriptor

    def __getitem__(self, seq_id: int) -> SequenceData:
        return self._descriptor.sequence(seq_id)

    def __setitem__(self, seq_id: int, data: SequenceData) -> None:
        full_pages = max(len(data.kv_page_indices) - 1, 0)
        num_tokens = full_pages * self._descriptor.page_size + data.last_page_len
        self._descriptor.adopt(seq_id, data.kv_page_indices, num_tokens)

    def __delitem__(self, seq_id: int) -> None:
        self._descriptor.length(seq_id)  # raises for an unknown id, which release ignores
        self._descriptor.release([seq_id])

    def __contains__(self, seq_id: object) -> bool:
        return isinstance(seq_id, SupportsIndex) and seq_id in self._descriptor

    def __iter__(self) -> Iterator[int]:
        return iter(self._descriptor.seq_ids())

    def __len__(self) -> int:
        return len(self._descriptor)

    def __repr__(self) -> str:
        return repr(dict(self))
