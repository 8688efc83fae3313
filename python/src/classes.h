#pragma once

#include <nanobind/nanobind.h>

#include <list>
#include <memory>
#include <shared_mutex>
#include <vector>

#include "arrays.h"
#include "device_arrays.h"
#include "reclaimer.h"
#include "seqattn/batch_attention.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/packed_data.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "seqattn/prefix_cache.h"

// The library's classes with what Python adds: the framework of the arrays that come back, and the
// objects that must live as long. Members are destroyed last to first: owners come before what
// points at them.
namespace seqattn::python {

struct Pool {
  nb::object manager;                            // the Manager whose pool this is; else not set
  std::unique_ptr<CallableReclaimer> reclaimer;  // of a pool of its own, like `own`
  std::unique_ptr<PagePool> own;
  PagePool* pool;
  PagePool& page_pool() const { return *pool; }
};

struct Manager {
  Framework framework = Framework::kNumpy;
  nb::object dtype, device;     // as the caller gave them
  nb::object keys, values;      // what holds the cache where that is the caller's or torch's; else
                                // not set
  std::vector<Import> imports;  // the same, as the manager points at it
  std::unique_ptr<CallableReclaimer> reclaimer = std::make_unique<CallableReclaimer>();
  std::unique_ptr<PagedKVCacheManager> manager;
  PagePool& page_pool() const { return manager->pool(); }
  Device place() const { return manager->config().device; }
  Stream stream() const { return current_stream(framework, place()); }
};

struct PackedData {
  FlashInferPackedData data;
  Framework framework = Framework::kNumpy;
  nb::object indices = {}, indptr = {}, last_page_len = {};  // on the device; not set for a CPU
};

struct Descriptor {
  nb::object owner;  // the Manager or the Pool
  Framework framework = Framework::kNumpy;
  std::unique_ptr<CacheDescriptor> descriptor;
  CallableReclaimer* reclaimer = nullptr;  // of the pool
  // For every call but those of the garbage collector.
  CacheDescriptor& sequences() const {
    reclaimer->require_idle();
    return *descriptor;
  }
  Stream stream() const {
    const PagedKVCacheManager* const manager = descriptor->manager();
    return manager == nullptr ? Stream{} : current_stream(framework, manager->config().device);
  }
};

struct Cache {
  nb::object owner;                        // the Manager or the Pool
  nb::object clock;                        // not set without one
  CallableReclaimer* reclaimer = nullptr;  // of the pool
  std::unique_ptr<PrefixCache> cache;
  // Taken out of the cache, but not handed over.
  mutable std::list<std::vector<CacheEvent>> undelivered = {};
  // For every call but those of the garbage collector.
  PrefixCache& prefixes() const {
    reclaimer->require_idle();
    return *cache;
  }
};

struct Handle {
  nb::object owner;  // the Cache
  PrefixHandle handle;
};

struct Attention {
  nb::object owner;  // the Manager
  Framework framework = Framework::kNumpy;
  std::unique_ptr<BatchAttention> attention;
  // Calls leave the GIL, so Python threads can meet here: many runs, or one plan.
  mutable std::shared_mutex mutex;
};

// The reclaimer of a pool, wherever it lives.
inline CallableReclaimer& reclaimer_of(const Manager& self) { return *self.reclaimer; }
inline CallableReclaimer& reclaimer_of(const Pool& self) {
  return self.reclaimer ? *self.reclaimer : *nb::cast<Manager&>(self.manager).reclaimer;
}

// Each adds its classes to the module.
void bind_pool(nb::module_& m);
void bind_manager(nb::module_& m);
void bind_packed_data(nb::module_& m);
void bind_descriptor(nb::module_& m);
void bind_prefix_cache(nb::module_& m);
void bind_attention(nb::module_& m);
void bind_sequence_state(nb::module_& m);

// What a descriptor can be asked; bind_descriptor has the rest.
void bind_descriptor_views(nb::class_<Descriptor>& cls);

// Throws TypeError for what is none.
const PackedData& to_packed_data(nb::handle flashinfer_data);

// A list of PageCopy (seqattn/_types.py), and a list of those or of plain pairs.
nb::list from_page_copies(const std::vector<PageCopy>& copies);
std::vector<PageCopy> to_page_copies(nb::handle copies);
nb::list from_token_moves(const std::vector<TokenMove>& moves);
std::vector<TokenMove> to_token_moves(nb::handle moves);

}  // namespace seqattn::python
