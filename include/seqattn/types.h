#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "seqattn/export.h"
#include "seqattn/list_view.h"

// The vocabulary shared by every header: ids, element types, devices and layouts.
namespace seqattn {

using PageId = std::int32_t;   // [0, num_pages)
using SeqId = std::int64_t;    // any value; the caller's choice
using TokenId = std::int32_t;  // any value; the model's vocabulary

using PageIds = ListView<PageId>;
using SeqIds = ListView<SeqId>;
using TokenIds = ListView<TokenId>;
using Lengths = ListView<std::int64_t>;  // in tokens

// "As many as there are", for counts of tokens.
inline constexpr std::int64_t kAll = -1;

// kFloat8E4M3 (4 bits of exponent, 3 of mantissa, no infinities: Micikevicius et al. 2022) is for
// caches alone, whose elements are stored divided by a scale.
enum class DType : std::uint8_t { kFloat32, kFloat16, kBFloat16, kFloat8E4M3 };

// Bytes of one element.
constexpr std::int64_t size_of(DType dtype) noexcept {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kFloat8E4M3 ? 1 : 2;
}
// Whether a cache of this type has scales, without which its elements mean nothing.
constexpr bool has_scales(DType dtype) noexcept { return dtype == DType::kFloat8E4M3; }

// Where the scales of a cache of 8-bit elements come from: x is stored as x / scale, and an element
// stands for its value times the scale. Caches of other types have none, and kFixed here.
enum class KVScaling : std::uint8_t {
  kFixed,    // one a layer, or one a KV head, which the caller knows; values beyond 448 times the
             // scale saturate
  kPerToken  // one a token and KV head, which append_kv derives: the greatest magnitude is 448
};

enum class DeviceType : std::uint8_t { kCPU, kCUDA };

struct Device {
  DeviceType type = DeviceType::kCPU;
  int index = 0;
  friend constexpr bool operator==(const Device&, const Device&) = default;
};
constexpr Device cpu() noexcept { return {}; }
constexpr Device cuda(int index = 0) noexcept { return {DeviceType::kCUDA, index}; }

// How one page lays out its slots: NHD is [page_size, num_heads, head_dim], HND is
// [num_heads, page_size, head_dim]. HND keeps the tokens of a head together and is faster on CPUs.
enum class KVLayout : std::uint8_t { kNHD, kHND };

// The stream that device work is ordered on: a `cudaStream_t`, or null for the device's default
// stream. A CPU has no streams: every call there is complete when it returns.
struct Stream {
  void* handle = nullptr;
};

// Copy all token slots of page `source` onto page `target`, in every layer.
struct PageCopy {
  PageId source = 0;
  PageId target = 0;
  friend constexpr bool operator==(const PageCopy&, const PageCopy&) = default;
};

// Which tokens of a sequence its later queries see: the last `window`, the query's own included,
// and beside them the first `num_sink_tokens` (attention sinks: Xiao et al. 2024). 0: all of them.
struct SlidingWindow {
  std::int64_t window = 0;
  std::int64_t num_sink_tokens = 0;
  friend constexpr bool operator==(const SlidingWindow&, const SlidingWindow&) = default;
};

// Copy one token slot onto another, in every layer.
struct TokenMove {
  PageId source_page = 0;
  int source_slot = 0;  // [0, page_size)
  PageId target_page = 0;
  int target_slot = 0;
  friend constexpr bool operator==(const TokenMove&, const TokenMove&) = default;
};

// "float16", "cuda:0", "HND", "per_token": the names that Python uses.
SEQATTN_EXPORT std::string_view to_string(DType dtype) noexcept;
SEQATTN_EXPORT std::string_view to_string(KVLayout layout) noexcept;
SEQATTN_EXPORT std::string_view to_string(KVScaling scaling) noexcept;
SEQATTN_EXPORT std::string to_string(Device device);

}  // namespace seqattn
