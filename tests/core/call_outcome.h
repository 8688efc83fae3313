#pragma once

#include <array>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"

namespace seqattn::testing {

enum class Thrown { kNothing, kInvalidArgument, kUnknownSequence, kNoPage, kSequenceState };

struct NoValue {
  friend bool operator==(NoValue, NoValue) = default;
};

// What a call gave: a value, or an exception and the numbers that it carries.
template <class T>
struct Outcome {
  Thrown thrown = Thrown::kNothing;
  std::array<std::int64_t, 2> details = {};
  T value = {};
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

template <class Call>
auto outcome_of(const Call& call) {
  using Result = std::invoke_result_t<const Call&>;
  using Value = std::conditional_t<std::is_void_v<Result>, NoValue, Result>;
  Outcome<Value> outcome;
  try {
    if constexpr (std::is_void_v<Result>) {
      call();
    } else {
      outcome.value = call();
    }
  } catch (const UnknownSequenceError& error) {
    outcome.thrown = Thrown::kUnknownSequence;
    outcome.details = {error.seq_id(), 0};
  } catch (const NoPageError& error) {
    outcome.thrown = Thrown::kNoPage;
    outcome.details = {error.needed(), error.available()};
  } catch (const SequenceStateError&) {
    outcome.thrown = Thrown::kSequenceState;
  } catch (const InvalidArgumentError&) {
    outcome.thrown = Thrown::kInvalidArgument;
  }
  return outcome;
}

// An Admission as something that compares.
inline auto value_of(const Admission& a) {
  return std::tuple(a.ok, a.needed, a.available, a.copies);
}
inline auto value_of(const Stats& s) {
  return std::tuple(s.num_sequences, s.num_tokens, s.num_page_references, s.num_pages,
                    s.num_shared_pages, s.num_free_pages, s.num_draft_tokens, s.num_dropped_tokens);
}

}  // namespace seqattn::testing
