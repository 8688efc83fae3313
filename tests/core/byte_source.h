#pragma once

#include <cstdint>
#include <span>

namespace seqattn::testing {

// Choices read from bytes, random ones or a fuzzer's; all 0 once the bytes are used up.
class ByteSource {
 public:
  explicit ByteSource(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  bool empty() const { return bytes_.empty(); }

  // In [0, n), for n up to 256.
  int below(int n) {
    if (bytes_.empty()) return 0;
    const int byte = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return byte % n;
  }
  bool one_in(int n) { return below(n) == n - 1; }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace seqattn::testing
