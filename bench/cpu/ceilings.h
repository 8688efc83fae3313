#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// What the machine can do: reading memory, and multiplying in registers.
namespace seqattn::bench {

// Pieces of memory, and threads that read all of them.
class Reader {
 public:
  Reader(std::vector<const std::byte*> pieces, std::size_t piece_bytes, int num_threads)
      : pieces_(std::move(pieces)), piece_bytes_(piece_bytes), num_threads_(num_threads) {}
  // While it reads a piece it prefetches the one that comes two later. Returns a sum, so that
  // nothing is left out.
  std::uint32_t operator()() const;
  double num_bytes() const {
    return static_cast<double>(pieces_.size()) * static_cast<double>(piece_bytes_);
  }

 private:
  std::vector<const std::byte*> pieces_;
  std::size_t piece_bytes_;
  int num_threads_;
};

// Fused multiply-adds of floats, independent of each other; returns how many floating-point
// operations that were, two for each.
double multiply_floats(int num_threads);

// The same of pairs of bfloat16, summed up in floats (AVX512_BF16's VDPBF16PS); 0 on a CPU that has
// no such instruction.
double multiply_bfloat16(int num_threads);

}  // namespace seqattn::bench
