#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <list>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "classes.h"
#include "collector.h"
#include "plain_types.h"

namespace seqattn::python {
namespace {

using namespace nb::literals;
using std::chrono::nanoseconds;
using std::chrono::steady_clock;

// Seconds as the library counts them; more than it can count are for ever.
nanoseconds to_nanoseconds(nb::handle seconds, const char* name) {
  const double value = PyFloat_AsDouble(seconds.ptr());
  if (value == -1.0 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    throw_type_error(concat(name, ": got ", class_name(seconds), "; expected seconds"));
  }
  require(!std::isnan(value), name, ": got NaN; expected seconds");
  constexpr double kMost = 9e9;  // 2^63 nanoseconds are a little more
  if (value >= kMost) return nanoseconds::max();
  return nanoseconds(static_cast<std::int64_t>(std::max(value, -kMost) * 1e9));
}

std::string to_salt(nb::handle salt) {
  if (nb::isinstance<nb::bytes>(salt)) {
    const nb::bytes bytes = nb::borrow<nb::bytes>(salt);
    return {bytes.c_str(), bytes.size()};
  }
  if (!nb::isinstance<nb::str>(salt)) {
    throw_type_error(concat("salt: got ", class_name(salt), "; expected a string or bytes"));
  }
  // Bytes that Python has read as surrogates are those bytes again; other surrogates are none.
  const nb::object bytes =
      nb::steal(PyUnicode_AsEncodedString(salt.ptr(), "utf-8", "surrogateescape"));
  if (bytes.is_valid()) return to_salt(bytes);
  if (!PyErr_ExceptionMatches(PyExc_UnicodeError)) nb::raise_python_error();
  PyErr_Clear();
  throw InvalidArgumentError(
      concat("salt: got ", nb::cast<std::string>(nb::steal<nb::str>(PyObject_ASCII(salt.ptr()))),
             ", which holds a surrogate and so has no UTF-8; expected text, or bytes"));
}

nb::object from_salt(const std::string& salt) {
  return nb::bytes(salt.data(), salt.size()).attr("decode")("utf-8", "surrogateescape");
}

CacheDescriptor& to_descriptor(nb::handle descriptor) {
  const Descriptor* given = nullptr;
  if (!nb::try_cast(descriptor, given, false) || given == nullptr) {
    throw_type_error(
        concat("descriptor: got ", class_name(descriptor), "; expected a CacheDescriptor"));
  }
  return given->sequences();
}

void init(Cache* self, nb::object cache_manager, const Any& clock, const Int& event_capacity) {
  const Manager* manager = nullptr;
  const Pool* pool = nullptr;
  PagePool* page_pool = nullptr;
  CallableReclaimer* reclaimer = nullptr;
  if (nb::try_cast(cache_manager, manager, false) && manager != nullptr) {
    page_pool = &manager->page_pool();
    reclaimer = &reclaimer_of(*manager);
  } else if (nb::try_cast(cache_manager, pool, false) && pool != nullptr) {
    page_pool = &pool->page_pool();
    reclaimer = &reclaimer_of(*pool);
  } else {
    throw_type_error(concat("cache_manager: got ", class_name(cache_manager),
                            "; expected a PagedKVCacheManager or a PagePool"));
  }
  PrefixCacheOptions options{.clock = {},
                             .event_capacity = to_int64(event_capacity, "event_capacity")};
  if (!clock.is_none()) {
    if (PyCallable_Check(clock.ptr()) == 0) {
      throw_type_error(concat("clock: got ", class_name(clock), "; expected a callable or None"));
    }
    options.clock = [self] {
      const nb::gil_scoped_acquire gil;
      if (!self->clock.is_valid()) return steady_clock::now();
      const nb::object held = self->clock;
      return steady_clock::time_point(
          to_nanoseconds(self->reclaimer->call(held), "the answer of clock"));
    };
  }
  reclaimer->require_idle();
  auto cache = std::make_unique<PrefixCache>(*page_pool, std::move(options));
  new (self) Cache{std::move(cache_manager), clock.is_none() ? nb::object() : nb::object(clock),
                   reclaimer, std::move(cache)};
}

nb::object match(nb::handle self, const Ints& tokens, const Any& salt, bool is_use) {
  PrefixCache& cache = nb::cast<const Cache&>(self).prefixes();
  const auto list = to_ints<TokenId>(tokens, "tokens");
  const std::string text = to_salt(salt);
  return nb::cast(
      Handle{nb::borrow(self), is_use ? cache.match(list, text) : cache.pin(list, text)});
}

std::int64_t insert(const Cache& self, const Any& descriptor, const Int& seq_id, const Ints& tokens,
                    const Any& salt, const Int& priority, const Any& ttl) {
  InsertOptions options{.priority = to_int(priority, "priority")};
  if (!ttl.is_none()) {
    options.ttl = to_nanoseconds(ttl, "ttl");
    require(options.ttl.count() >= 1, "ttl: got ", nb::repr(ttl).c_str(),
            " seconds; expected at least 1e-9, a nanosecond, or None for no limit");
  }
  CacheDescriptor& sequences = to_descriptor(descriptor);
  const std::int64_t id = to_seq_id(seq_id);
  const auto list = to_ints<TokenId>(tokens, "tokens");
  const std::string text = to_salt(salt);
  return self.prefixes().insert(sequences, id, list, text, options);
}

// The cache may then go, whatever becomes of the handle; but not in the middle of a call.
void let_go(Handle& self) {
  self.handle.release();
  if (self.owner.is_valid() && nb::cast<const Cache&>(self.owner).reclaimer->is_idle()) {
    self.owner.reset();
  }
}

void attach(const Cache& self, const Any& descriptor, const Int& seq_id, const Any& handle) {
  const Handle* given = nullptr;
  if (!nb::try_cast(handle, given, false) || given == nullptr) {
    throw_type_error(concat("handle: got ", class_name(handle), "; expected a PrefixHandle"));
  }
  self.prefixes().attach(to_descriptor(descriptor), to_seq_id(seq_id), given->handle);
}

// What one call takes out of the cache and cannot turn into objects waits for the next call.
nb::list drain_events(const Cache& self) {
  constexpr const char* kKinds[] = {"stored", "hit", "evicted", "cleared"};
  const nb::object type = type_of("CacheEvent");
  std::list<std::vector<CacheEvent>> taken(1);
  taken.back() = self.prefixes().drain_events();
  taken.splice(taken.begin(), self.undelivered);
  try {
    nb::list events;
    for (const std::vector<CacheEvent>& part : taken) {
      for (const CacheEvent& event : part) {
        events.append(type(kKinds[static_cast<int>(event.kind)], event.number,
                           from_salt(event.salt), event.block, event.parent, event.num_tokens,
                           event.tokens));
      }
    }
    return events;
  } catch (...) {
    self.undelivered.splice(self.undelivered.begin(), taken);
    throw;
  }
}

nb::object stats(const Cache& self) {
  const PrefixCacheStats s = self.prefixes().stats();
  return type_of("PrefixCacheStats")(s.num_pages, s.num_pinned_pages, s.num_nodes, s.num_salts,
                                     s.num_handles, s.num_matches, s.num_hits, s.num_tokens_asked,
                                     s.num_tokens_found, s.num_pages_stored, s.num_pages_evicted,
                                     s.num_events_lost);
}

void bind_handle(nb::module_& m) {
  nb::class_<Handle>(m, "PrefixHandle", nb::type_slots(traverse_slots<Handle>),
                     "What a match found: the pages of a prefix, pinned for as long as the handle "
                     "lives, or to the end of its with block.")
      .def_prop_ro(
          "num_tokens", [](const Handle& self) { return self.handle.num_tokens(); },
          "Tokens found; 0 once released.")
      .def_prop_ro(
          "pages",
          [](const Handle& self) {
            const auto pages = self.handle.pages();
            return std::vector<PageId>(pages.begin(), pages.end());
          },
          "The pages, in order; of the last one the match may use a part.")
      .def("release", &let_go, "Unpins the pages. A sequence that was attached keeps them.")
      .def("__bool__", [](const Handle& self) { return static_cast<bool>(self.handle); })
      .def(
          "__enter__", [](nb::handle self) { return nb::borrow(self); },
          nb::sig("def __enter__(self) -> PrefixHandle"))
      .def(
          "__exit__", [](Handle& self, const nb::args&) { let_go(self); },
          nb::sig("def __exit__(self, *args: object) -> None"))
      .def("__repr__", [](const Handle& self) {
        return concat("PrefixHandle(num_tokens=", self.handle.num_tokens(),
                      ", num_pages=", self.handle.pages().size(), ")");
      });
}

void bind_use(nb::class_<Cache>& cls) {
  cls.def(
         "match",
         [](nb::handle_t<Cache> self, const Ints& tokens, const Any& salt) {
           return match(self, tokens, salt, /*is_use=*/true);
         },
         "tokens"_a.none(), "salt"_a.none() = "",
         nb::sig("def match(self, tokens: collections.abc.Iterable[int], salt: str | bytes = '') "
                 "-> PrefixHandle"),
         "Finds the longest cached prefix of the tokens, pins it and counts as its use.\n\n"
         "At most len(tokens) - 1 tokens are found, so that one is left to compute. A match may "
         "end inside a page: the last page is then copied when the sequence grows.")
      .def(
          "pin",
          [](nb::handle_t<Cache> self, const Ints& tokens, const Any& salt) {
            return match(self, tokens, salt, /*is_use=*/false);
          },
          "tokens"_a.none(), "salt"_a.none() = "",
          nb::sig("def pin(self, tokens: collections.abc.Iterable[int], salt: str | bytes = '') -> "
                  "PrefixHandle"),
          "Pins the longest cached prefix that the tokens begin with, in whole pages and to the "
          "last of them, without being a use.")
      .def("attach", &attach, "descriptor"_a.none(), "seq_id"_a.none(), "handle"_a.none(),
           nb::sig("def attach(self, descriptor: CacheDescriptor, seq_id: typing.SupportsIndex, "
                   "handle: PrefixHandle) -> None"),
           "Starts the sequence over what the handle found; then the handle may go.\n\n"
           "Raises InvalidArgumentError for a handle of another cache or one that was released, a "
           "descriptor of another pool, or a sequence that exists.")
      .def("insert", &insert, "descriptor"_a.none(), "seq_id"_a.none(), "tokens"_a.none(),
           "salt"_a.none() = "", nb::kw_only(), "priority"_a.none() = 0, "ttl"_a = nb::none(),
           nb::sig("def insert(self, descriptor: CacheDescriptor, seq_id: typing.SupportsIndex, "
                   "tokens: collections.abc.Iterable[int], salt: str | bytes = '', *, priority: "
                   "typing.SupportsIndex = 0, ttl: float | None = None) -> int"),
           "Gives the cache the whole pages of the sequence's first tokens, which are these, and "
           "whose keys and values have been written or enqueued, in every layer; returns how many "
           "pages are new to it.\n\n"
           "What is there already stays and counts as used. Pages of a lower priority are evicted "
           "first; before all others go those not used for ttl seconds (at least a nanosecond; "
           "None: "
           "no limit). Raises "
           "UnknownSequenceError; InvalidArgumentError for more tokens than the sequence has, "
           "tokens that were dropped, a page that is cached under other tokens or another salt.");
}

void bind_eviction(nb::class_<Cache>& cls) {
  cls.def(
         "evict",
         [](const Cache& self, const Int& num_pages) {
           return self.prefixes().evict(to_int64(num_pages, "num_pages"));
         },
         "num_pages"_a.none(), nb::sig("def evict(self, num_pages: typing.SupportsIndex) -> int"),
         "Frees up to that many pages, in the order in which the pool would have them; returns how "
         "many.")
      .def(
          "evict_expired", [](const Cache& self) { return self.prefixes().evict_expired(); },
          "Frees the pages past their ttl; returns how many.")
      .def(
          "clear", [](const Cache& self) { self.prefixes().clear(); },
          "Drops every page; sequences keep theirs. Raises PinnedError while handles live.")
      .def("drain_events", &drain_events,
           nb::sig("def drain_events(self) -> list[seqattn._types.CacheEvent]"),
           "Takes the events since the last call, oldest first. What this raises loses none.")
      .def("stats", &stats, nb::sig("def stats(self) -> seqattn._types.PrefixCacheStats"),
           "Counts of pages, matches, tokens and evictions.")
      .def(
          "check_invariants", [](const Cache& self) { self.prefixes().check_invariants(); },
          "Raises Error naming the first violated invariant.")
      .def("__repr__", [](const Cache& self) { return self.prefixes().to_string(); });
}

}  // namespace

void bind_prefix_cache(nb::module_& m) {
  bind_handle(m);
  nb::class_<Cache> cls(
      m, "PrefixCache", nb::type_slots(traverse_and_clear_slots<Cache>),
      "The KV pages of token prefixes, so that a sequence whose first tokens were computed before "
      "starts over their pages.\n\n"
      "A radix tree over token ids, its edges whole pages; what is found is found by comparing "
      "every token. Prefixes under different salts never meet. The cache is its pool's reclaimer: "
      "a call that needs pages takes them from it, in the same transaction, from the ends of "
      "prefixes: pages that neither sequences nor handles hold, first those past their ttl, then "
      "by "
      "lower priority, then the least recently used. Where those do not do, it gives up its share "
      "of ends that sequences hold, if pages that nobody holds lie in front.\n\n"
      "clock: a callable that returns seconds, for ttl; time.monotonic's by default. It may not "
      "call the cache or a descriptor. event_capacity: events kept until drain_events takes them. "
      "Raises InvalidArgumentError for a pool that has a reclaimer.");
  cls.def("__init__", &init, "cache_manager"_a.none(), nb::kw_only(), "clock"_a = nb::none(),
          "event_capacity"_a.none() = 0,
          nb::sig("def __init__(self, cache_manager: PagedKVCacheManager | PagePool, *, clock: "
                  "collections.abc.Callable[[], float] | None = None, event_capacity: "
                  "typing.SupportsIndex = 0) -> None"))
      .def_prop_ro(
          "cache_manager", [](const Cache& self) { return self.owner; },
          nb::sig("def cache_manager(self) -> PagedKVCacheManager | PagePool"),
          "The manager, or the pool.");
  bind_use(cls);
  bind_eviction(cls);
}

}  // namespace seqattn::python
