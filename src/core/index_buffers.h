#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

namespace seqattn {

// The memory of packed batches that are gone, for those to come. A batch of some size grows a
// little each step; left to malloc, each would be mapped afresh, and the page faults of new memory
// take several times as long as packing. Any thread may call.
class IndexBuffers {
 public:
  // An empty array with room for that many. Throws std::bad_alloc.
  std::vector<std::int32_t> take(std::size_t count) {
    std::vector<std::int32_t> buffer = take_free();
    if (buffer.capacity() >= count) return buffer;
    buffer = {};
    buffer.reserve(count + count / kGrowth);
    return buffer;
  }

  void give(std::vector<std::int32_t>&& buffer) noexcept {
    buffer.clear();
    const std::lock_guard lock(mutex_);
    if (num_free_ < free_.size()) free_[num_free_++] = std::move(buffer);
  }

 private:
  static constexpr std::size_t kGrowth = 8;  // an eighth more than asked for

  std::vector<std::int32_t> take_free() noexcept {
    const std::lock_guard lock(mutex_);
    return num_free_ == 0 ? std::vector<std::int32_t>() : std::move(free_[--num_free_]);
  }

  std::mutex mutex_;
  // A caller holds a batch, its plan the one before, or the same.
  std::array<std::vector<std::int32_t>, 4> free_;
  std::size_t num_free_ = 0;
};

}  // namespace seqattn
