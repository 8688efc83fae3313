"""
The C++ library seqattn as a Python module; use it through the package seqattn.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import os
from typing import Any, SupportsIndex, overload

import numpy
import numpy.typing

import seqattn._types


def version() -> str:
    """The version of the C++ library."""

class FreePages:
    """The free pages of a pool, front first: a live, read-only sequence."""

    def __len__(self) -> int: ...

    def __contains__(self, page: object) -> bool: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        """A page, or the list of the pages of a slice."""

    def __eq__(self, other: object, /) -> bool:
        """
        Whether a list, or what is free in another pool, holds the same pages in this order.
        """

    def __iter__(self) -> Iterator[int]: ...

    def index(self, page: SupportsIndex) -> int:
        """The position of a page. Raises ValueError for one that is not free."""

    def __repr__(self) -> str: ...

class PagePool:
    """
    The free list and the reference counts of a fixed set of pages, without storage.

    Pages are handed out first in, first out, from page 0. Raises InvalidArgumentError unless 0 <= num_pages < 2**31 and page_size >= 1.
    """

    def __init__(self, num_pages: SupportsIndex, page_size: SupportsIndex = 16) -> None: ...

    @property
    def num_pages(self) -> int:
        """Pages of the pool."""

    @property
    def page_size(self) -> int:
        """Tokens a page."""

    @property
    def available_pages_count(self) -> int:
        """Pages that are free."""

    @property
    def free_pages(self) -> FreePages:
        """The free pages, front first: a live, read-only sequence."""

    @property
    def ref_count(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        int32 [num_pages]: references of each page, 0 = free. A live, read-only view.
        """

    def allocate(self, num_pages: SupportsIndex) -> list[int]:
        """
        Takes pages from the front of the free list, each with a count of 1.

        Raises InvalidArgumentError for a negative number, NoPageError when fewer are free.
        """

    def ref(self, page_indices: Iterable[int]) -> None:
        """
        Adds one reference for every listed page; a page listed twice counts twice.

        Raises InvalidArgumentError, having changed nothing, for a free or unknown page.
        """

    def unref(self, page_indices: Iterable[int]) -> None:
        """
        Drops one reference for every listed page; a page whose count falls to 0 is free.

        Raises InvalidArgumentError, having changed nothing, for a free or unknown page, or a count that would fall below 0.
        """

    def release_pages(self, page_indices: Iterable[int]) -> None:
        """The same as unref."""

    def is_cached(self, page: SupportsIndex) -> bool:
        """Whether a PrefixCache holds the page, so that no call writes it."""

    def set_reclaimer(self, reclaimer: Callable[[int], bool] | None) -> None:
        """
        Has a callable asked for pages when the pool falls short, as a prefix cache can give some up; None removes it.

        reclaimer(num_pages) either makes at least that many more pages free, by unref, and returns True; or changes nothing and returns False. The counts that it meets are without the references to pages that the call will copy, or that windows have left behind, and check_invariants does not hold: a page with a count of 1 that the reclaimer holds becomes free by its unref. It may not call a descriptor of this pool, nor allocate: those raise Error. What it raises comes out of the call that fell short, which then has changed nothing.
        """

    def check_invariants(self) -> None:
        """Raises Error naming the first violated invariant."""

    @property
    def id(self) -> int:
        """
        A number that no other pool of this process has; FlashInferPackedData.pool_id is it.
        """

    def __repr__(self) -> str: ...

class PagedKVCacheManager:
    """
    A page pool and its storage: keys and values of all layers under one page table.

    dtype: float32, float16, bfloat16 or float8_e4m3fn, as a torch or numpy dtype or a name. With a torch dtype every array that comes back is a torch tensor, else a numpy array.
    device: "cpu", "cuda:0", a torch device, or an int, the index of a CUDA device; "cuda" is the current one.
    kv_layout: "NHD" or "HND". head_dim_v: elements of a value, head_dim unless given.
    kv_scaling, of float8_e4m3fn: "fixed" (scales of set_kv_scales, beyond which values saturate) or "per_token" (scales of each token and KV head, which append_kv derives). What goes in and comes out is float32, float16 or bfloat16. A torch without that dtype names it: arrays that come back are numpy's then.

    Raises InvalidArgumentError for sizes out of range, UnsupportedError for a device that this build cannot serve, MemoryError.

    On a CUDA device: float16, bfloat16 and float8_e4m3fn. With a torch dtype the storage is torch's, counted by its allocator (which raises its own error when memory falls short), and every call works on torch's current stream of the device. Otherwise CuPy stands in for numpy, provided that it is imported before an array is asked for: its current stream (the default stream without it), and its arrays. Calls return before the device is done. Whoever uses several streams has to order them, also when pages that one of them used are reused.
    """

    def __init__(self, num_pages: SupportsIndex, page_size: SupportsIndex, num_heads: SupportsIndex, head_dim: SupportsIndex, dtype: Any, device: Any, kv_layout: str = 'NHD', *, head_dim_v: SupportsIndex | None = None, num_layers: SupportsIndex = 1, kv_scaling: str = 'fixed') -> None: ...

    @staticmethod
    def from_tensors(keys: Any, values: Any, *, kv_layout: str = 'NHD', key_scales: Any = None, value_scales: Any = None) -> PagedKVCacheManager:
        """
        A manager over the caller's own tensors, one or a list of one a layer, shaped as key_cache; with key_scales and value_scales, float32 and likewise without the last dimension, kv_scaling is "per_token". Without them that of float8_e4m3fn is "fixed", with scales 1 until set_kv_scales.

        They are borrowed, held and never cleared; every page starts free. Raises InvalidArgumentError for tensors that do not agree or are read-only.
        """

    @property
    def num_pages(self) -> int:
        """Pages of the pool."""

    @property
    def page_size(self) -> int:
        """Tokens a page."""

    @property
    def available_pages_count(self) -> int:
        """Pages that are free."""

    @property
    def free_pages(self) -> FreePages:
        """The free pages, front first: a live, read-only sequence."""

    @property
    def ref_count(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        int32 [num_pages]: references of each page, 0 = free. A live, read-only view.
        """

    def allocate(self, num_pages: SupportsIndex) -> list[int]:
        """
        Takes pages from the front of the free list, each with a count of 1.

        Raises InvalidArgumentError for a negative number, NoPageError when fewer are free.
        """

    def ref(self, page_indices: Iterable[int]) -> None:
        """
        Adds one reference for every listed page; a page listed twice counts twice.

        Raises InvalidArgumentError, having changed nothing, for a free or unknown page.
        """

    def unref(self, page_indices: Iterable[int]) -> None:
        """
        Drops one reference for every listed page; a page whose count falls to 0 is free.

        Raises InvalidArgumentError, having changed nothing, for a free or unknown page, or a count that would fall below 0.
        """

    def release_pages(self, page_indices: Iterable[int]) -> None:
        """The same as unref."""

    def is_cached(self, page: SupportsIndex) -> bool:
        """Whether a PrefixCache holds the page, so that no call writes it."""

    def set_reclaimer(self, reclaimer: Callable[[int], bool] | None) -> None:
        """
        Has a callable asked for pages when the pool falls short, as a prefix cache can give some up; None removes it.

        reclaimer(num_pages) either makes at least that many more pages free, by unref, and returns True; or changes nothing and returns False. The counts that it meets are without the references to pages that the call will copy, or that windows have left behind, and check_invariants does not hold: a page with a count of 1 that the reclaimer holds becomes free by its unref. It may not call a descriptor of this pool, nor allocate: those raise Error. What it raises comes out of the call that fell short, which then has changed nothing.
        """

    def check_invariants(self) -> None:
        """Raises Error naming the first violated invariant."""

    @property
    def num_heads(self) -> int:
        """KV heads."""

    @property
    def head_dim(self) -> int:
        """Elements of a key."""

    @property
    def head_dim_v(self) -> int:
        """Elements of a value."""

    @property
    def num_layers(self) -> int:
        """Layers that share the page table."""

    @property
    def kv_layout(self) -> str:
        """"NHD" or "HND"."""

    @property
    def dtype(self) -> Any:
        """The dtype as the caller gave it."""

    @property
    def device(self) -> Any:
        """The device as the caller gave it."""

    @property
    def key_cache(self) -> Any:
        """
        [num_pages, page_size, num_heads, head_dim] (NHD) or [num_pages, num_heads, page_size, head_dim] (HND), with num_layers in front where there are several. A live view; with from_tensors the caller's own object. bfloat16 and float8_e4m3fn as ml_dtypes where that is installed, else their bits as uint16 and uint8.
        """

    @property
    def value_cache(self) -> Any:
        """As key_cache, with head_dim_v."""

    @property
    def kv_scaling(self) -> str | None:
        """"fixed" or "per_token" for a cache of float8_e4m3fn, else None."""

    @property
    def pool(self) -> PagePool:
        """The pool that the manager's pages come from."""

    @property
    def bytes_per_page(self) -> int:
        """
        Bytes of keys and values that one page takes, over all layers, scales of tokens included.
        """

    def get_memory_tensors(self) -> tuple[Any, Any]:
        """
        (key_cache, value_cache). Not their scales: those of float8_e4m3fn with kv_scaling "per_token" are key_scales(layer) and value_scales(layer).
        """

    def __repr__(self) -> str: ...

    def append_kv(self, keys: Any, values: Any, flashinfer_data: FlashInferPackedData, append_indptr_cpu: Iterable[int], layer: SupportsIndex = 0) -> None:
        """
        Writes the last n_i = append_indptr_cpu[i + 1] - append_indptr_cpu[i] tokens of every row of flashinfer_data, which already counts them.

        keys [total_new_tokens, num_heads, head_dim] and values [.., head_dim_v], in the cache's dtype or float32; for float8_e4m3fn float32, float16 or bfloat16. Raises InvalidArgumentError, having written nothing, for tensors of another shape, dtype or device, more tokens than a row has, pages that are free, shared or not of this pool. Leaves the GIL.
        """

    def read_kv(self, page_indices: Iterable[int], first: SupportsIndex, count: SupportsIndex, layer: SupportsIndex = 0) -> tuple[Any, Any]:
        """
        New arrays with tokens [first, first + count) of the sequence with these pages: keys [count, num_heads, head_dim] and values [count, num_heads, head_dim_v], in the cache's dtype; of float8_e4m3fn as float32, their scales in them.
        """

    def write_kv(self, page_indices: Iterable[int], first: SupportsIndex, keys: Any, values: Any, layer: SupportsIndex = 0) -> None:
        """
        Writes tokens from `first` on of the sequence with these pages: keys [count, num_heads, head_dim] and values [count, num_heads, head_dim_v], of a dtype as append_kv takes.

        Raises InvalidArgumentError, having written nothing, for a range beyond the pages, a page to be written that is free, shared or listed twice, or tensors that do not fit.
        """

    def copy_pages(self, copies: Iterable[tuple[SupportsIndex, SupportsIndex]]) -> None:
        """
        Copies pages (source, target) in every layer, in order.

        Raises InvalidArgumentError for an unknown or free page.
        """

    def move_tokens(self, moves: Iterable[tuple[SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex]]) -> None:
        """
        Copies token slots (source page, source slot, target page, target slot) in every layer, in order.

        Raises InvalidArgumentError for an unknown page or slot, and a target that is free or shared.
        """

    def set_kv_scales(self, key_scales: float | Iterable[float], value_scales: float | Iterable[float], layer: SupportsIndex = 0) -> None:
        """
        Sets the scales of one layer, and of no other, of a float8_e4m3fn cache with kv_scaling "fixed", which are 1 until then: a number for all KV heads, or one for each. x is stored as x / scale and read as element * scale; the greatest magnitude over 448 makes use of the whole range.

        Raises InvalidArgumentError, having changed nothing, for another cache or count, a scale beyond 1.18e-38 to 7.59e35, and while pages are in use. On a device wait for what is enqueued first.
        """

    def key_scales(self, layer: SupportsIndex = 0) -> Any:
        """
        The scales of a layer's keys, float32: [num_heads], a copy (of numpy a read-only one); with kv_scaling "per_token" a live view, shaped as one layer of key_cache without its last dimension.

        Raises InvalidArgumentError for a cache without scales.
        """

    def value_scales(self, layer: SupportsIndex = 0) -> Any:
        """As key_scales, of the values."""

class FlashInferPackedData:
    """
    A batch as CSR arrays, the form that paged attention kernels read. Immutable.

    Made by CacheDescriptor.pack_for_flashinfer, or from arrays or lists in host memory (tensor.cpu()). Raises InvalidArgumentError unless kv_page_indptr starts at 0, never falls and ends at the number of indices, and kv_last_page_len is positive where a row has pages and 0 where it has none.

    Data that a descriptor packed is tied to its pool (pool_id): the pages must be live there. Copies are tied to it too; what comes out of a pickle is tied to none, as arrays of the caller's own are, and lies in host memory.
    """

    def __init__(self, kv_page_indices: Iterable[int], kv_page_indptr: Iterable[int], kv_last_page_len: Iterable[int], windows: Iterable[tuple[int, int, int, int]] | None = None, trees: Iterable[Iterable[int]] | None = None) -> None: ...

    @property
    def kv_page_indices(self) -> Any:
        """
        int32 [total_pages]: the pages of row 0, then of row 1, ... A read-only numpy view, or a torch tensor of its own.
        """

    @property
    def kv_page_indptr(self) -> Any:
        """
        int32 [batch_size + 1]: row i owns kv_page_indices[indptr[i]:indptr[i + 1]].
        """

    @property
    def kv_last_page_len(self) -> Any:
        """int32 [batch_size]: tokens on the row's last page, 0 without pages."""

    @property
    def batch_size(self) -> int:
        """Rows."""

    @property
    def pool_id(self) -> int:
        """
        PagePool.id of the pool whose descriptor packed this, or 0 for the caller's own arrays.
        """

    def kv_len(self, row: SupportsIndex, page_size: SupportsIndex) -> int:
        """
        The tokens of a row. Raises InvalidArgumentError for a row that is not there.
        """

    def __copy__(self) -> FlashInferPackedData: ...

    def __deepcopy__(self, memo: Any) -> FlashInferPackedData: ...

    def __reduce__(self) -> tuple[Any, ...]: ...

    def to_device(self, device: Any, non_blocking: bool = True) -> FlashInferPackedData:
        """
        A copy whose three arrays lie on the device: torch tensors, as FlashInfer's wrappers take them, or CuPy arrays.

        It keeps the host's copy, which plan and append_kv read. Raises UnsupportedError where this build has no such device, or where arrays would be CuPy's and CuPy is not loaded.
        """

    def __eq__(self, other: object, /) -> bool:
        """Whether the arrays, windows and trees hold the same."""

    def __hash__(self) -> int: ...

    def __repr__(self) -> str: ...

    @property
    def windows(self) -> list[tuple[int, int, int, int]]:
        """
        Of each row window, num_sink_tokens, num_dropped (tokens between the sinks and the rest) and first_query (the first slot that may ask); empty where no row has a window.
        """

    @property
    def trees(self) -> list[list[int]]:
        """
        Of each row the parents of the draft tokens in its last slots; empty where no row has a tree.
        """

class CacheDescriptor:
    """
    Sequences and the pages that hold them.

    Batch calls handle ids in order, as if one call were made for each, but all or nothing: a call that raises has changed nothing. A page with a count above 1 is never written: when a sequence whose last, partly filled page is shared grows, the page is replaced by a copy.

    seq_id_to_data: sequences to start with, taking over references that the caller holds, as adopt does. window, num_sink_tokens: the window of sequences to come, as set_window has it.
    """

    def __init__(self, cache_manager: PagedKVCacheManager | PagePool, seq_id_to_data: Mapping[int, seqattn._types.SequenceData] | None = None, *, window: SupportsIndex = 0, num_sink_tokens: SupportsIndex = 0) -> None: ...

    @property
    def cache_manager(self) -> PagedKVCacheManager | PagePool:
        """The manager, or the pool."""

    @property
    def page_size(self) -> int:
        """Tokens a page."""

    @property
    def seq_id_to_data(self) -> seqattn._types.SequenceMapping:
        """The sequences as a live mapping from id to SequenceData."""

    def allocate(self, seq_ids: Iterable[int], seq_new_lens: Iterable[int]) -> list[seqattn._types.PageCopy]:
        """
        Grows each sequence by that many tokens, starting those that are new, all or nothing.

        Returns the page copies that sharing called for: already made over a manager, the caller's to make over a bare pool; usually none. Raises InvalidArgumentError for lists of different sizes or a negative length, NoPageError for a full pool.
        """

    def try_allocate(self, seq_ids: Iterable[int], seq_new_lens: Iterable[int]) -> seqattn._types.Admission:
        """As allocate, with a full pool as a value instead of an exception."""

    def allocate_decoding(self, seq_ids: Iterable[int]) -> list[seqattn._types.PageCopy]:
        """Grows each sequence by one token. Raises UnknownSequenceError too."""

    def release(self, seq_ids: Iterable[int]) -> int:
        """Drops sequences; unknown ids are ignored. Returns how many there were."""

    def truncate(self, seq_id: SupportsIndex, num_tokens: SupportsIndex) -> None:
        """
        Drops the tokens from position num_tokens on, a pending tree with them, and the pages that held only them.

        Raises InvalidArgumentError too where the next token would see what was dropped.
        """

    def clear(self) -> None:
        """Releases every sequence."""

    def set_window(self, seq_id: SupportsIndex, window: SupportsIndex = 0, num_sink_tokens: SupportsIndex = 0) -> None:
        """
        Lets a sequence see its last window tokens, the query's own included, and its first num_sink_tokens; 0: all.

        Pages that hold nothing of that go back to the pool when the sequence grows. Raises UnknownSequenceError; InvalidArgumentError for a negative number, sinks without a window, or a window that would see what was dropped.
        """

    def window(self, seq_id: SupportsIndex | None = None) -> seqattn._types.SlidingWindow:
        """The window of a sequence, or of sequences to come."""

    def kept_from(self, seq_id: SupportsIndex) -> int:
        """
        The position from which on every token is held, one a slot; 0 where none was dropped.
        """

    def allocate_tree(self, seq_id: SupportsIndex, parents: Iterable[int], num_tokens: SupportsIndex = 0) -> list[seqattn._types.PageCopy]:
        """
        Grows the sequence by num_tokens tokens, then appends draft tokens as a pending tree.

        Draft token i is a child of parents[i] < i, or of the sequence's last token where that is -1. length does not count the tree. A draft token sees the sequence, its ancestors and itself. commit_tree, or truncate to the length, ends the tree; until then the sequence does not grow. Returns and raises as allocate does.
        """

    def commit_tree(self, seq_id: SupportsIndex, path: Iterable[int]) -> list[seqattn._types.TokenMove]:
        """
        Makes a path of the tree, from a child of the last token down, the next tokens; the rest is dropped.

        Returns the token moves: already made over a manager, the caller's to make, in order, over a bare pool.
        """

    def keep(self, seq_id: SupportsIndex, token_indices: Iterable[int]) -> list[seqattn._types.TokenMove]:
        """
        Keeps these of the slots held, in order, and gives up the rest; length stays.

        Raises InvalidArgumentError for indices that do not ascend in [0, num_kv_tokens), a pending tree, or a token that the window has left behind. Returns what commit_tree does.
        """

    def fork(self, parent: SupportsIndex, child: SupportsIndex, num_tokens: SupportsIndex | None = None) -> None:
        """
        Starts child as the first num_tokens tokens of parent, or all, sharing its pages.

        Raises UnknownSequenceError for the parent, InvalidArgumentError when the child exists or the parent is shorter.
        """

    @overload
    def attach(self, seq_id: SupportsIndex, page_indices: Iterable[int], num_tokens: SupportsIndex) -> None:
        """
        Starts a sequence over pages that live already, taking a reference to each.
        """

    @overload
    def attach(self, seq_id: SupportsIndex, details: seqattn._types.SequenceDetails) -> None:
        """
        The same for a sequence whose window has dropped tokens, or that keep has picked from, as another descriptor's details show it.
        """

    def adopt(self, seq_id: SupportsIndex, page_indices: Iterable[int], num_tokens: SupportsIndex) -> None:
        """
        Like attach, but takes over references that the caller already holds. A sequence that exists gets the new table; references to pages no longer listed go back to the caller.
        """

    def pack_for_flashinfer(self, seq_ids: Iterable[int]) -> FlashInferPackedData:
        """
        The batch as CSR arrays, rows in the order of the ids. Raises UnknownSequenceError.
        """

    def length(self, seq_id: SupportsIndex) -> int:
        """The next absolute position."""

    def num_kv_tokens(self, seq_id: SupportsIndex) -> int:
        """The token slots held."""

    def pages(self, seq_id: SupportsIndex) -> list[int]:
        """The pages, in order."""

    def sequence(self, seq_id: SupportsIndex) -> seqattn._types.SequenceData:
        """The pages and the tokens on the last of them."""

    def details(self, seq_id: SupportsIndex) -> seqattn._types.SequenceDetails:
        """As sequence, with all else that is known of it."""

    def seq_ids(self) -> list[int]:
        """The ids, in no particular order."""

    def contains(self, seq_id: SupportsIndex) -> bool:
        """Whether the descriptor holds this sequence."""

    def __contains__(self, seq_id: object) -> bool:
        """As contains, and false for what is no id at all."""

    def __iter__(self) -> Iterator[int]:
        """The ids of seq_ids(), as they are now."""

    def __len__(self) -> int: ...

    def stats(self) -> seqattn._types.Stats:
        """Counts of sequences, tokens and pages."""

    def check_invariants(self) -> None:
        """Raises Error naming the first violated invariant."""

    def __repr__(self) -> str: ...

class PrefixHandle:
    """
    What a match found: the pages of a prefix, pinned for as long as the handle lives, or to the end of its with block.
    """

    @property
    def num_tokens(self) -> int:
        """Tokens found; 0 once released."""

    @property
    def pages(self) -> list[int]:
        """The pages, in order; of the last one the match may use a part."""

    def release(self) -> None:
        """Unpins the pages. A sequence that was attached keeps them."""

    def __bool__(self) -> bool: ...

    def __enter__(self) -> PrefixHandle: ...

    def __exit__(self, *args: object) -> None: ...

    def __repr__(self) -> str: ...

class PrefixCache:
    """
    The KV pages of token prefixes, so that a sequence whose first tokens were computed before starts over their pages.

    A radix tree over token ids, its edges whole pages; what is found is found by comparing every token. Prefixes under different salts never meet. The cache is its pool's reclaimer: a call that needs pages takes them from it, in the same transaction, from the ends of prefixes: pages that neither sequences nor handles hold, first those past their ttl, then by lower priority, then the least recently used. Where those do not do, it gives up its share of ends that sequences hold, if pages that nobody holds lie in front.

    clock: a callable that returns seconds, for ttl; time.monotonic's by default. It may not call the cache or a descriptor. event_capacity: events kept until drain_events takes them. Raises InvalidArgumentError for a pool that has a reclaimer.
    """

    def __init__(self, cache_manager: PagedKVCacheManager | PagePool, *, clock: Callable[[], float] | None = None, event_capacity: SupportsIndex = 0) -> None: ...

    @property
    def cache_manager(self) -> PagedKVCacheManager | PagePool:
        """The manager, or the pool."""

    def match(self, tokens: Iterable[int], salt: str | bytes = '') -> PrefixHandle:
        """
        Finds the longest cached prefix of the tokens, pins it and counts as its use.

        At most len(tokens) - 1 tokens are found, so that one is left to compute. A match may end inside a page: the last page is then copied when the sequence grows.
        """

    def pin(self, tokens: Iterable[int], salt: str | bytes = '') -> PrefixHandle:
        """
        Pins the longest cached prefix that the tokens begin with, in whole pages and to the last of them, without being a use.
        """

    def attach(self, descriptor: CacheDescriptor, seq_id: SupportsIndex, handle: PrefixHandle) -> None:
        """
        Starts the sequence over what the handle found; then the handle may go.

        Raises InvalidArgumentError for a handle of another cache or one that was released, a descriptor of another pool, or a sequence that exists.
        """

    def insert(self, descriptor: CacheDescriptor, seq_id: SupportsIndex, tokens: Iterable[int], salt: str | bytes = '', *, priority: SupportsIndex = 0, ttl: float | None = None) -> int:
        """
        Gives the cache the whole pages of the sequence's first tokens, which are these, and whose keys and values have been written or enqueued, in every layer; returns how many pages are new to it.

        What is there already stays and counts as used. Pages of a lower priority are evicted first; before all others go those not used for ttl seconds (at least a nanosecond; None: no limit). Raises UnknownSequenceError; InvalidArgumentError for more tokens than the sequence has, tokens that were dropped, a page that is cached under other tokens or another salt.
        """

    def evict(self, num_pages: SupportsIndex) -> int:
        """
        Frees up to that many pages, in the order in which the pool would have them; returns how many.
        """

    def evict_expired(self) -> int:
        """Frees the pages past their ttl; returns how many."""

    def clear(self) -> None:
        """
        Drops every page; sequences keep theirs. Raises PinnedError while handles live.
        """

    def drain_events(self) -> list[seqattn._types.CacheEvent]:
        """
        Takes the events since the last call, oldest first. What this raises loses none.
        """

    def stats(self) -> seqattn._types.PrefixCacheStats:
        """Counts of pages, matches, tokens and evictions."""

    def check_invariants(self) -> None:
        """Raises Error naming the first violated invariant."""

    def __repr__(self) -> str: ...

class BatchAttention:
    """
    Attention of a ragged batch over a paged cache: prefill, chunked prefill, decode and any mixture.

    `plan` once a step; then, for each layer, `append_kv` and `run`. num_qo_heads: a multiple of the cache's num_heads; query head h reads KV head h // (num_qo_heads // num_heads). causal: query j of a row sees the keys up to its own position, kv_len - q_len + j. window_left: a query sees no more than that many keys before its own position, -1 = all. sm_scale: 1 / sqrt(head_dim) unless given. logits_soft_cap: logits become cap * tanh(logit / cap), 0 = no cap. num_threads: 0 = all. bfloat16_products: lets a CPU with AVX512_BF16 compute the products of a bfloat16 cache by its own dot products, where head_dim and head_dim_v are multiples of 32; they are faster and round the weights of the softmax and queries that come as float32 to bfloat16. kernel_name says what runs. max_sequences, max_q_tokens, max_q_len (of one sequence), max_pages: the largest batch, 0 = no limit; with max_q_tokens, tensors of tokens may have that many rows, of which the batch's come first.

    CUDA graphs: an object with max_sequences, max_q_tokens and max_pages (max_q_len too, where sequences bring few queries each) keeps its buffers, so that what is captured once serves every later plan. Call plan, append_kv and run once to warm up, then capture append_kv and run of all layers with tensors of max_q_tokens rows:

        with torch.cuda.graph(graph):
            attention.append_kv(keys, values)
            attention.run(q, out=out)

    A step is then: allocate, plan, fill keys, values and q in place, graph.replay(). plan itself is never captured. With torch tensors nothing in the capture waits, uses another stream or takes memory, but for outputs that are not given, which come from the graph's own pool. Keep this object as long as the graph.
    """

    def __init__(self, cache_manager: PagedKVCacheManager, num_qo_heads: SupportsIndex, *, causal: bool = True, window_left: SupportsIndex = -1, sm_scale: float | None = None, logits_soft_cap: float = 0.0, num_threads: SupportsIndex = 0, bfloat16_products: bool = False, max_sequences: SupportsIndex = 0, max_q_tokens: SupportsIndex = 0, max_q_len: SupportsIndex = 0, max_pages: SupportsIndex = 0) -> None: ...

    @property
    def cache_manager(self) -> PagedKVCacheManager:
        """The manager."""

    @property
    def kernel_name(self) -> str:
        """The path that was chosen, "cpu-avx3-float16"."""

    @property
    def num_q_tokens(self) -> int:
        """Queries of the present plan, 0 before the first."""

    def __repr__(self) -> str: ...

    def plan(self, flashinfer_data: FlashInferPackedData, qo_indptr: Iterable[int], mask: Any = None) -> None:
        """
        Validates the batch and prepares it for every layer.

        qo_indptr [batch_size + 1]: row i asks with queries qo_indptr[i] .. qo_indptr[i + 1], the last q_len positions of its kv_len keys: with causal a row may not have more queries than keys, unless it has no keys at all. mask: a list of one bool or uint8 [q_len, kv_len] array a row, or all of them in one flat array; 0 hides the key from the query, on top of causal and window_left. Good until a planned page is freed. Raises InvalidArgumentError, leaving the previous plan in place. Leaves the GIL.
        """

    def plan_sequences(self, sequences: CacheDescriptor, seq_ids: Iterable[int], qo_indptr: Iterable[int]) -> None:
        """
        plan(sequences.pack_for_flashinfer(seq_ids), qo_indptr), with the same outputs, bit by bit.

        Where a device's own kernel serves every row (docs/cuda.md), page tables stay on the device, and the call sends lengths and what is new in them; any other batch is packed. Changing a sequence afterwards does not change the plan. Raises UnknownSequenceError; InvalidArgumentError as plan does, and for a descriptor of another pool. Keeps the GIL: no sequence changes meanwhile.
        """

    def append_kv(self, keys: Any, values: Any, layer: SupportsIndex = 0) -> None:
        """
        Writes the planned batch's new tokens, as many as its queries.

        keys [total_q_tokens, num_heads, head_dim] and values [.., head_dim_v], in the cache's dtype or float32; for float8_e4m3fn float32, float16 or bfloat16. Raises InvalidArgumentError, having written nothing, without a plan, for tensors of another shape, dtype or device, pages that are free or shared. Leaves the GIL.
        """

    def run(self, q: Any, out: Any = None, return_lse: bool = False, sink_logits: Any = None, layer: SupportsIndex = 0, lse: Any = None) -> Any:
        """
        q [total_q_tokens, num_qo_heads, head_dim] -> out [.., head_dim_v], in q's dtype unless given.

        q and out, each: the cache's dtype or float32; over float8_e4m3fn float32, float16 or bfloat16. A CUDA device takes no q of float32, and gives out in q's dtype or float32. A query that sees no key gives 0 and an LSE of -inf (with sink_logits: 0 and the sink's logit). With max_q_tokens, rows behind the batch's are not written: those of a new out hold whatever its memory held.

        Returns out, or (out, lse) with return_lse or lse: float32 [total_q_tokens, num_qo_heads], the natural log of the sum of exp(logits). sink_logits: float32 [num_qo_heads], one logit a head that joins the softmax denominator. Raises InvalidArgumentError without a plan, for tensors of another shape, dtype or device, a read-only output. Leaves the GIL.
        """

    @property
    def num_qo_heads(self) -> int:
        """Query heads."""

    @property
    def causal(self) -> bool:
        """Whether a query sees no key behind its position."""

    @property
    def window_left(self) -> int:
        """Keys seen before the own position; -1: all."""

    @property
    def logits_soft_cap(self) -> float:
        """The cap of the logits; 0: none."""

    @property
    def num_threads(self) -> int:
        """Threads of the CPU backend; 0: all."""

    @property
    def bfloat16_products(self) -> bool:
        """Whether a CPU may use its dot products of bfloat16."""

    @property
    def sm_scale(self) -> float:
        """The factor of q . k."""

    @property
    def max_sequences(self) -> int:
        """Sequences of the largest batch; 0: no limit."""

    @property
    def max_q_tokens(self) -> int:
        """Its queries; 0: no limit."""

    @property
    def max_q_len(self) -> int:
        """The queries of one sequence; 0: no limit."""

    @property
    def max_pages(self) -> int:
        """Its pages; 0: no limit."""

def merge_states(out_a: Any, lse_a: Any, out_b: Any, lse_b: Any, out: Any = None, lse: Any = None) -> tuple[Any, Any]:
    """
    Merges attention over two disjoint sets of keys into attention over their union.

    out_a, out_b [tokens, heads, dim]; lse_a, lse_b [tokens, heads], float32. Returns (out, lse): those given, which may be the very arrays of a side, or new ones, out in out_a's dtype. A side with an LSE of -inf counts nothing. Raises InvalidArgumentError for tensors that do not agree. Leaves the GIL.
    """

@overload
def save_sequence(descriptor: CacheDescriptor, seq_id: SupportsIndex) -> bytes:
    """
    The state of a sequence, tokens and lengths, as bytes.

    They do not depend on page size, layout or device. Raises UnknownSequenceError, InvalidArgumentError for a descriptor over a bare pool.
    """

@overload
def save_sequence(descriptor: CacheDescriptor, seq_id: SupportsIndex, path: str | os.PathLike[str] | seqattn._types.BinaryWriter) -> None:
    """
    The same into a file.

    The file of a path is replaced as a whole: written under a temporary name in the same folder, brought to the disk and renamed. A call that raises leaves the old file, a crash the old one or the new one. (Where the folder cannot be synced, the last step, the error says that the new file is there, but a crash may bring the old one back.) A binary file object, or what else has write, gets the bytes in parts of about 4 MiB; what it raises comes out, with the first parts written. Raises FileError (an OSError) too.
    """

def restore_sequence(descriptor: CacheDescriptor, seq_id: SupportsIndex, state: bytes | bytearray | memoryview | str | os.PathLike[str] | seqattn._types.BinaryReader) -> seqattn._types.SequenceStateInfo:
    """
    Starts a sequence from what save_sequence made: bytes (or another buffer), the path of a regular file, or a binary file object.

    A file object, or what else has read, is read to the state's last byte and no further. When the call raises nothing has changed, but for pages that a prefix cache or another reclaimer gave up for it: those stay free. Bytes and files of a path are checked before it is asked, a file object is checked as it comes. The cache may have another page size, layout, dtype and device; with its own dtype the tokens are the same bits (of float8_e4m3fn where its kv_scaling is "per_token", or "fixed" with the same scales), else they are rounded by way of float32, to nearest even; float16 overflows to infinity, float8_e4m3fn saturates at 448 times a fixed scale. Raises InvalidArgumentError for a sequence that exists or another number of layers or heads, or another head dimension; SequenceStateError for what is no state, truncated or corrupted; NoPageError; FileError (an OSError).
    """

@overload
def sequence_state_info(state: bytes | bytearray | memoryview | str | os.PathLike[str]) -> seqattn._types.SequenceStateInfo:
    """What the header of a saved state says; the tokens are not looked at."""

@overload
def sequence_state_info(descriptor: CacheDescriptor, seq_id: SupportsIndex) -> seqattn._types.SequenceStateInfo:
    """What save_sequence would write."""

class HeadIDGenerator:
    """
    Ids for per-head sequences: head h of sequence s becomes s * num_kv_heads + h.

    Keep head ids in a descriptor of their own, apart from plain sequence ids.
    """

    def __init__(self, num_kv_heads: SupportsIndex) -> None: ...

    @property
    def num_kv_heads(self) -> int:
        """KV heads of a sequence."""

    def get_head_id(self, seq_id: SupportsIndex, head_idx: SupportsIndex) -> int:
        """
        Raises InvalidArgumentError unless 0 <= head_idx < num_kv_heads and the id fits 64 bits.
        """

    def __repr__(self) -> str: ...
