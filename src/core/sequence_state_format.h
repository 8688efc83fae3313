#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "seqattn/sequence_state.h"

// The bytes of a saved sequence (docs/sequence_state.md): a header, then records. Layer by layer, a
// record holds the keys of a run of tokens, [n, num_heads, head_dim], then their values, then a
// checksum. In front of elements of 8 bits are the scales of the keys and those of the values,
// [n, num_heads] floats each.
namespace seqattn {

inline constexpr std::size_t kStateHeaderBytes = 104;
inline constexpr std::size_t kChecksumBytes = 8;
using StateHeader = std::array<std::byte, kStateHeaderBytes>;

// How the tokens of a state are cut into records: a function of the header alone.
struct StateRecords {
  explicit StateRecords(const SequenceStateInfo& info) noexcept;

  std::int64_t key_bytes = 0;    // of a token
  std::int64_t value_bytes = 0;  // likewise
  std::int64_t scale_bytes = 0;  // of a token's key, and as many of its value
  std::int64_t most_tokens = 0;  // of a record; the last one of a layer may have fewer
  std::int64_t token_bytes() const noexcept { return key_bytes + value_bytes + 2 * scale_bytes; }
  std::int64_t max_bytes() const noexcept {  // of a record, checksum included
    return most_tokens * token_bytes() + static_cast<std::int64_t>(kChecksumBytes);
  }
};

// The bytes of the whole state, or -1 where they are more than 2^62. Asks nothing of `num_bytes`.
std::int64_t state_bytes(const SequenceStateInfo& info) noexcept;

StateHeader encode_state_header(const SequenceStateInfo& info) noexcept;

// `bytes` are the first of the state, as many as there were up to kStateHeaderBytes. Throws
// SequenceStateError, whose message opens with `name`.
SequenceStateInfo decode_state_header(std::span<const std::byte> bytes, std::string_view name);

// Each record's checksum is seeded with the one before it, the first one's with the header's, so
// that a record that is missing, moved or of another state does not fit. It lies behind the
// record's bytes: `payload` is what is in front of it.
std::uint64_t state_checksum(std::span<const std::byte> payload, std::uint64_t seed) noexcept;
std::uint64_t header_checksum(const StateHeader& header) noexcept;  // as the header has it

void store_checksum(std::uint64_t checksum, std::byte* to) noexcept;
std::uint64_t load_checksum(const std::byte* from) noexcept;

}  // namespace seqattn
