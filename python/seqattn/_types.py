"""Plain values that go in and out of the library, and the mapping of sequences."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from operator import index
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from ._errors import InvalidArgumentError, UnknownSequenceError

if TYPE_CHECKING:
    from ._core import CacheDescriptor


class BinaryWriter(Protocol):
    """What a state is saved to: a binary file, or what else takes bytes and says how many (None: all of them)."""

    def write(self, data: bytes, /) -> int | None: ...


class BinaryReader(Protocol):
    """What a state is restored from: a binary file, or what else gives up to that many bytes (none: at its end)."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(init=False, slots=True)
class SequenceData:
    """The pages of one sequence, in order, and the tokens on the last of them.

    A copy of what a descriptor holds: assign a new one to `seq_id_to_data` to change a table.
    """

    kv_page_indices: list[int]
    last_page_len: int

    def __init__(self, kv_page_indices: list[int], last_page_len: int) -> None:
        object.__setattr__(self, "kv_page_indices", kv_page_indices)
        object.__setattr__(self, "last_page_len", last_page_len)

    def __setattr__(self, name: str, value: object) -> None:
        # Silence would be worse: the descriptor would not hear of it.
        raise AttributeError(
            f"SequenceData.{name}: got {value!r}; expected no change to a copy: assign a new SequenceData to "
            "seq_id_to_data, or call allocate or truncate"
        )

    def __reduce__(self) -> tuple[type[SequenceData], tuple[list[int], int]]:
        return SequenceData, (self.kv_page_indices, self.last_page_len)


@dataclass(frozen=True, slots=True)
class SequenceDetails:
    """All that a descriptor knows of a sequence; another descriptor of the pool can `attach` it.

    Slots are numbered through the pages, in order: the tokens held, and behind them those of a pending tree.
    """

    kv_page_indices: list[int]  # ceil(num_kv_tokens / page_size)
    last_page_len: int  # 1 to page_size; 0 without pages
    length: int  # the next absolute position
    window: SlidingWindow
    dropped_to: int  # the window has dropped tokens in front of this position, but for pages with sinks; 0: none
    num_dropped: int  # how many it has dropped, since `keep` if ever
    num_in_front: int  # slots in front of the first dropped one; 0 where the window has dropped nothing
    compacted_to: int  # the length at which `keep` last picked tokens; 0: never
    tree_parents: list[int]  # of each pending draft token its parent, -1 for the last token


class PageCopy(NamedTuple):
    """Copy all token slots of page `source` onto page `target`, in every layer."""

    source: int
    target: int


class TokenMove(NamedTuple):
    """Copy one token slot onto another, in every layer."""

    source_page: int
    source_slot: int
    target_page: int
    target_slot: int


class SlidingWindow(NamedTuple):
    """A sequence sees its last `window` tokens, the query's own included, and its first sinks; 0: all."""

    window: int
    num_sink_tokens: int


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
    num_draft_tokens: int = 0  # of num_tokens, those of pending trees
    num_dropped_tokens: int = 0  # tokens whose slots windows or keep gave up


@dataclass(frozen=True, slots=True)
class CacheEvent:
    """What a prefix cache tells a router or a log.

    A block is one cached page; its id is never used again in this cache.
    """

    kind: Literal["stored", "hit", "evicted", "cleared"]
    number: int  # of the event, from 0; a gap says that events were lost
    salt: str
    block: int  # from 1
    parent: int  # stored: the block in front, 0 for the first
    num_tokens: int  # hit: tokens found, the last of them on `block`
    tokens: list[int]  # stored: page_size of them


@dataclass(frozen=True, slots=True)
class PrefixCacheStats:
    """What a prefix cache holds, and what it has done since it began."""

    num_pages: int  # cached
    num_pinned_pages: int  # of those, the ones that live handles keep
    num_nodes: int  # runs of pages that the tree keeps as one
    num_salts: int  # salts that have pages
    num_handles: int  # live, and of something
    num_matches: int  # calls of match
    num_hits: int  # of those, the ones that found something
    num_tokens_asked: int  # tokens that were looked for
    num_tokens_found: int
    num_pages_stored: int
    num_pages_evicted: int  # by evict, evict_expired, the pool's need and clear
    num_events_lost: int  # for want of event_capacity


@dataclass(frozen=True, slots=True)
class SequenceStateInfo:
    """What a saved state says of itself."""

    length: int  # the next absolute position
    num_kv_tokens: int  # token slots held
    window: SlidingWindow
    dropped_to: int  # the window has dropped tokens in front of this position; 0: none
    num_dropped: int  # how many it has dropped, since `keep` if ever
    num_in_front: int  # slots in front of the first dropped one; 0 where the window has dropped nothing
    compacted_to: int  # the length at which `keep` last picked tokens; 0: never
    num_layers: int
    num_heads: int  # KV heads
    head_dim: int  # elements of a key
    head_dim_v: int  # elements of a value
    dtype: str  # of float8_e4m3fn the scales travel with the tokens, however they came
    num_bytes: int  # of the whole state


class SequenceMapping(MutableMapping[int, SequenceData]):
    """The sequences of a descriptor as a live mapping from id to `SequenceData`.

    Reading gives a fresh `SequenceData`; assign to change a table. References move as in 0.0.2: assigning takes over
    those that the caller holds (`CacheDescriptor.adopt`), and `del`, `pop` and `clear` leave the sequence's to the
    caller, who calls `unref` with its pages. `CacheDescriptor.release` drops both. In no particular order.
    """

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: CacheDescriptor) -> None:
        self._descriptor = descriptor

    def __getitem__(self, seq_id: int) -> SequenceData:
        self._require(seq_id)
        return self._descriptor.sequence(seq_id)

    def __setitem__(self, seq_id: int, data: SequenceData) -> None:
        try:
            full_pages = max(len(data.kv_page_indices) - 1, 0)
            num_tokens = full_pages * self._descriptor.page_size + index(data.last_page_len)
        except (AttributeError, TypeError):
            raise TypeError(f"seq_id_to_data[{seq_id!r}]: got {data!r}; expected a SequenceData") from None
        if seq_id in self._descriptor:
            length, held = self._descriptor.length(seq_id), self._descriptor.num_kv_tokens(seq_id)
            if length != held:
                raise InvalidArgumentError(
                    f"seq_id_to_data[{seq_id!r}]: got a table for a sequence of length {length} that holds {held} "
                    "tokens, and a table says no positions; expected a sequence without dropped or draft tokens: "
                    "release it first"
                )
        self._descriptor.adopt(seq_id, data.kv_page_indices, num_tokens)

    def __delitem__(self, seq_id: int) -> None:
        self._require(seq_id)
        self._descriptor.adopt(seq_id, [], 0)  # an empty table: the references are the caller's again
        self._descriptor.release([seq_id])

    def __contains__(self, seq_id: object) -> bool:
        return seq_id in self._descriptor

    def _require(self, seq_id: object) -> None:
        """Also for what no id can be, which dict too calls a key that is not there."""
        if seq_id not in self._descriptor:
            raise UnknownSequenceError(f"Sequence ID {seq_id!r} not found in cache descriptor", seq_id)

    def __iter__(self) -> Iterator[int]:
        return iter(self._descriptor.seq_ids())

    def __len__(self) -> int:
        return len(self._descriptor)

    def __repr__(self) -> str:
        return repr(dict(self))
