#include "sequence_state_format.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "message.h"
#include "scale_bytes.h"
#include "seqattn/error.h"

// In its inline form the library links nothing, and neither does whoever links the library.
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace seqattn {
namespace {

static_assert(XXH_VERSION_NUMBER >= 800, "XXH3 was settled in xxHash 0.8.0");
// Records hold elements as they lie in memory.
static_assert(std::endian::native == std::endian::little,
              "a saved state is little-endian: a big-endian build has to swap its elements");

// A byte above 127, a line end of each kind: whoever takes the file for text breaks this first.
constexpr std::array<unsigned char, 8> kMagic = {0x89, 'S', 'E', 'Q', 'K', 'V', '\r', '\n'};
constexpr std::uint32_t kVersion = 1;
// Large enough that launches on a device and barriers of threads do not count.
constexpr std::int64_t kRecordBytes = std::int64_t{1} << 22;
constexpr std::int64_t kMaxBytes = std::int64_t{1} << 62;
constexpr std::size_t kChecksumAt = kStateHeaderBytes - kChecksumBytes;

// The fields of a header, one after the other.
class Writer {
 public:
  explicit Writer(std::byte* to) : to_(to) {}
  template <class T>
  void put(T value) noexcept {
    std::memcpy(to_, &value, sizeof value);
    to_ += sizeof value;
  }

 private:
  std::byte* to_;
};

class Reader {
 public:
  explicit Reader(const std::byte* from) : from_(from) {}
  template <class T>
  T get() noexcept {
    T value;
    std::memcpy(&value, from_, sizeof value);
    from_ += sizeof value;
    return value;
  }

 private:
  const std::byte* from_;
};

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  throw SequenceStateError(concat(parts...));
}

// The numbers of a dtype in the file; those of the enum may change.
constexpr std::array kDTypes = {DType::kFloat32, DType::kFloat16, DType::kBFloat16,
                                DType::kFloat8E4M3};

std::uint32_t code_of(DType dtype) noexcept {
  return static_cast<std::uint32_t>(std::find(kDTypes.begin(), kDTypes.end(), dtype) -
                                    kDTypes.begin());
}

void check_begin(std::span<const std::byte> bytes, std::string_view name) {
  if (bytes.empty()) refuse(name, ": is empty; expected what save_sequence wrote");
  const std::size_t count = std::min(bytes.size(), kMagic.size());
  if (std::memcmp(bytes.data(), kMagic.data(), count) != 0) {
    refuse(name, ": does not begin as a saved sequence does; expected what save_sequence wrote");
  }
  if (bytes.size() < kStateHeaderBytes) {
    refuse(name, ": truncated: ends after ", bytes.size(), " bytes; expected a header of ",
           kStateHeaderBytes);
  }
}

// What a header may say, once its checksum is right; CacheDescriptor::attach checks the rest.
bool is_sound(const SequenceStateInfo& info) noexcept {
  return std::min({info.num_layers, info.num_heads, info.head_dim, info.head_dim_v}) >= 1 &&
         info.num_kv_tokens >= 0 && info.length >= info.num_kv_tokens && state_bytes(info) >= 0;
}

}  // namespace

StateRecords::StateRecords(const SequenceStateInfo& info) noexcept
    : key_bytes(std::int64_t{info.num_heads} * info.head_dim * size_of(info.dtype)),
      value_bytes(std::int64_t{info.num_heads} * info.head_dim_v * size_of(info.dtype)),
      scale_bytes(token_scale_bytes(info.dtype, info.num_heads)),
      most_tokens(std::max<std::int64_t>(kRecordBytes / token_bytes(), 1)) {}

std::int64_t state_bytes(const SequenceStateInfo& info) noexcept {
  // In 128 bits: four factors below 2^31, or two of them and a number of tokens, fit one by one.
  using Wide = __int128;
  const Wide elements = (Wide{info.head_dim} + info.head_dim_v) * size_of(info.dtype);
  const Wide token = info.num_heads * elements + 2 * token_scale_bytes(info.dtype, info.num_heads);
  if (token * info.num_layers > kMaxBytes) return -1;
  if (info.num_kv_tokens > kMaxBytes / (token * info.num_layers)) return -1;
  const StateRecords records(info);
  const std::int64_t a_layer =
      info.num_kv_tokens / records.most_tokens + (info.num_kv_tokens % records.most_tokens != 0);
  const Wide bytes = token * info.num_layers * info.num_kv_tokens +
                     Wide{a_layer} * info.num_layers * kChecksumBytes + kStateHeaderBytes;
  return bytes > kMaxBytes ? -1 : static_cast<std::int64_t>(bytes);
}

StateHeader encode_state_header(const SequenceStateInfo& info) noexcept {
  StateHeader header{};
  Writer out(header.data());
  out.put(kMagic);
  out.put(kVersion);
  out.put(code_of(info.dtype));
  out.put(static_cast<std::uint32_t>(info.num_layers));
  out.put(static_cast<std::uint32_t>(info.num_heads));
  out.put(static_cast<std::uint32_t>(info.head_dim));
  out.put(static_cast<std::uint32_t>(info.head_dim_v));
  out.put(info.length);
  out.put(info.num_kv_tokens);
  out.put(info.window.window);
  out.put(info.window.num_sink_tokens);
  out.put(info.dropped_to);
  out.put(info.num_dropped);
  out.put(info.compacted_to);
  out.put(info.num_in_front);
  store_checksum(state_checksum(std::span(header).first(kChecksumAt), 0), &header[kChecksumAt]);
  return header;
}

SequenceStateInfo decode_state_header(std::span<const std::byte> bytes, std::string_view name) {
  check_begin(bytes, name);
  Reader in(bytes.data() + kMagic.size());
  if (const auto version = in.get<std::uint32_t>(); version != kVersion) {
    refuse(name, ": got version ", version, " of the format; expected ", kVersion,
           ", the one that this build reads");
  }
  const auto checksum = load_checksum(&bytes[kChecksumAt]);
  if (checksum != state_checksum(bytes.first(kChecksumAt), 0)) {
    refuse(name, ": corrupted: the header does not have its checksum");
  }
  SequenceStateInfo info;
  const auto dtype = in.get<std::uint32_t>();
  for (int* const number : {&info.num_layers, &info.num_heads, &info.head_dim, &info.head_dim_v}) {
    *number = static_cast<int>(in.get<std::uint32_t>());
  }
  info.length = in.get<std::int64_t>();
  info.num_kv_tokens = in.get<std::int64_t>();
  info.window.window = in.get<std::int64_t>();
  info.window.num_sink_tokens = in.get<std::int64_t>();
  info.dropped_to = in.get<std::int64_t>();
  info.num_dropped = in.get<std::int64_t>();
  info.compacted_to = in.get<std::int64_t>();
  info.num_in_front = in.get<std::int64_t>();
  if (dtype < kDTypes.size()) info.dtype = kDTypes[dtype];
  if (dtype >= kDTypes.size() || !is_sound(info)) {
    refuse(name, ": the header describes no sequence that this build knows");
  }
  info.num_bytes = state_bytes(info);
  return info;
}

std::uint64_t state_checksum(std::span<const std::byte> payload, std::uint64_t seed) noexcept {
  return XXH3_64bits_withSeed(payload.data(), payload.size(), seed);
}

std::uint64_t header_checksum(const StateHeader& header) noexcept {
  return load_checksum(&header[kChecksumAt]);
}

void store_checksum(std::uint64_t checksum, std::byte* to) noexcept {
  std::memcpy(to, &checksum, sizeof checksum);
}

std::uint64_t load_checksum(const std::byte* from) noexcept {
  std::uint64_t checksum = 0;
  std::memcpy(&checksum, from, sizeof checksum);
  return checksum;
}

}  // namespace seqattn
