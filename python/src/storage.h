#pragma once

#include <memory>

#include "arrays.h"
#include "classes.h"

// The tensors that hold a manager's cache.
namespace seqattn::python {

// Makes the manager of the config. Storage on a device is torch's where the framework is, so that
// its allocator counts it; else it is our own.
void make_storage(Manager& self, const KVCacheConfig& config);

// A manager over the caller's tensors: one, or a list of one a layer.
// Scales, where they are not None, likewise.
std::unique_ptr<Manager> from_tensors(const Any& keys, const Any& values, const Any& kv_layout,
                                      const Any& key_scales, const Any& value_scales);

// All layers of the keys, or of the values.
nb::object key_cache(const Manager& self);
nb::object value_cache(const Manager& self);

}  // namespace seqattn::python
