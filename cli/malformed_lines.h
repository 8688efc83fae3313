#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <utility>

#include "counted.h"

namespace seqattn::cli {

// Names the malformed lines of a trace, each by its number: the first few with what is wrong, the
// others together in a last line, as ranges.
class MalformedLines {
 public:
  MalformedLines(std::string trace, std::ostream& out) : trace_(std::move(trace)), out_(out) {}

  // Lines come in ascending order.
  void add(std::int64_t line, const std::string& what) {
    if (count_++ < kMostInFull) {
      out_ << trace_ << ':' << line << ": " << what << '\n';
    } else if (last_ > 0 && line == last_ + 1) {
      last_ = line;
    } else {
      end_range();
      first_ = last_ = line;
    }
  }

  // Writes the last line, where there is one.
  void finish() {
    end_range();
    if (count_ <= kMostInFull) return;
    out_ << trace_ << ": " << counted(count_ - kMostInFull, "more malformed line") << ": "
         << ranges_ << '\n';
  }

  std::int64_t count() const { return count_; }

 private:
  static constexpr std::int64_t kMostInFull = 20;

  void end_range() {
    if (last_ == 0) return;
    if (!ranges_.empty()) ranges_ += ", ";
    ranges_ += std::to_string(first_);
    if (last_ > first_) ranges_ += '-' + std::to_string(last_);
    last_ = 0;
  }

  std::string trace_;
  std::ostream& out_;
  std::int64_t count_ = 0;
  std::int64_t first_ = 0, last_ = 0;  // the range that may go on; 0: none
  std::string ranges_;                 // those before it
};

}  // namespace seqattn::cli
