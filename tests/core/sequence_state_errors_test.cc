#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "descriptor_state.h"
#include "error_text.h"
#include "random_source.h"
#include "saved_cache.h"
#include "seqattn/error.h"
#include "seqattn/sequence_state.h"
#include "sequence_state_format.h"

// What restore_sequence refuses, each time with descriptor, pool and the other sequences as they
// were.
namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::seqattn::testing::SavedCache;
using ::seqattn::testing::state_of;
using ::testing::HasSubstr;

using State = std::vector<std::byte>;

constexpr KVCacheConfig kConfig{.num_pages = 12,
                                .page_size = 4,
                                .num_heads = 2,
                                .head_dim = 4,
                                .head_dim_v = 3,
                                .num_layers = 3,
                                .dtype = DType::kFloat16};

class SequenceStateErrors : public ::testing::Test {
 protected:
  SequenceStateErrors() {
    cache_.add(random_, 1, 6);
    cache_.descriptor.fork(1, 2, 5);
    cache_.manager.unref(cache_.manager.allocate(3));  // the free list is no longer in order
    state_ = save_sequence(cache_.descriptor, 1);
  }

  template <class Exception = SequenceStateError, class Restore>
  std::string refusal(const Restore& restore) {
    const auto before = state_of(cache_.descriptor);
    const auto held = cache_.bits(1);
    std::string message = error_of<Exception>(restore);
    EXPECT_EQ(state_of(cache_.descriptor), before);
    EXPECT_EQ(cache_.bits(1), held);
    cache_.descriptor.check_invariants();
    return message;
  }

  // A header, and behind it the records of state_, with the checksums that follow from it.
  State with_records(State header) const {
    const std::size_t record = (state_.size() - kStateHeaderBytes) / 3;
    std::uint64_t seed = load_checksum(&header[kStateHeaderBytes - kChecksumBytes]);
    for (int layer = 0; layer < 3; ++layer) {
      const std::size_t at = header.size();
      header.insert(header.end(), &state_[at], &state_[at] + record);
      seed = state_checksum({&header[at], record - kChecksumBytes}, seed);
      store_checksum(seed, &header[at + record - kChecksumBytes]);
    }
    return header;
  }

  template <class Exception = SequenceStateError>
  std::string refusal_of(const State& state) {
    return refusal<Exception>([&] { restore_sequence(cache_.descriptor, 9, state); });
  }

  std::mt19937_64 random_ = testing::random_source(4101);
  SavedCache cache_{kConfig};
  State state_;
};

TEST_F(SequenceStateErrors, EveryTruncation) {
  for (std::size_t size = 0; size < state_.size(); ++size) {
    const auto message = refusal_of({state_.begin(), state_.begin() + static_cast<long>(size)});
    EXPECT_THAT(message, HasSubstr(size == 0 ? "is empty" : "truncated: ends after ")) << size;
    if (HasFailure()) break;
  }
  EXPECT_EQ(refusal_of({state_.begin(), state_.end() - 1}),
            "sequence state: truncated: ends after " + std::to_string(state_.size() - 1) +
                " bytes; expected " + std::to_string(state_.size()));
}

TEST_F(SequenceStateErrors, EveryChangedByte) {
  for (std::size_t i = 0; i < state_.size(); ++i) {
    for (const int change : {0x01, 0x80, static_cast<int>(random_() % 255) + 1}) {
      State changed = state_;
      changed[i] ^= static_cast<std::byte>(change);
      refusal_of(changed);
    }
    if (HasFailure()) break;
  }
  State changed = state_;
  changed[kStateHeaderBytes + 4] ^= std::byte{1};
  EXPECT_THAT(refusal_of(changed), HasSubstr("sequence state: corrupted: bytes 104 to "));
}

TEST_F(SequenceStateErrors, RecordsThatAreSwappedOrOfAnotherState) {
  const std::size_t record = (state_.size() - kStateHeaderBytes) / 3;
  State swapped = state_;
  std::swap_ranges(swapped.begin() + kStateHeaderBytes,
                   swapped.begin() + kStateHeaderBytes + record,
                   swapped.begin() + kStateHeaderBytes + record);
  EXPECT_THAT(refusal_of(swapped), HasSubstr("corrupted"));
  cache_.add(random_, 3, 6);
  State other = save_sequence(cache_.descriptor, 3);
  cache_.descriptor.release({3});
  std::copy(state_.end() - static_cast<long>(record), state_.end(),
            other.end() - static_cast<long>(record));
  EXPECT_THAT(refusal_of(other), HasSubstr("corrupted"));
}

TEST_F(SequenceStateErrors, BytesThatFollow) {
  State longer = state_;
  longer.push_back(std::byte{0});
  EXPECT_THAT(refusal_of(longer), HasSubstr("goes on behind its"));
}

TEST_F(SequenceStateErrors, NoBytes) {
  EXPECT_THAT(refusal_of({}), HasSubstr("is empty; expected what save_sequence wrote"));
}

TEST_F(SequenceStateErrors, ForeignBytes) {
  for (const std::size_t size : {1, 8, 104, 5000}) {
    State noise(size);
    for (std::byte& byte : noise) byte = static_cast<std::byte>(random_());
    noise[0] = std::byte{0x7f};
    EXPECT_THAT(refusal_of(noise), HasSubstr("does not begin as a saved sequence does"));
    EXPECT_THAT(error_of<SequenceStateError>([&] { sequence_state_info(noise); }),
                HasSubstr("does not begin"));
  }
  State newer = state_;
  newer[8] = std::byte{2};
  EXPECT_THAT(refusal_of(newer), HasSubstr("got version 2 of the format; expected 1"));
}

// A header with the right checksum and sizes that cannot be, or that would need all of the memory.
TEST_F(SequenceStateErrors, HeadersThatMakeNoSense) {
  const SequenceStateInfo good = sequence_state_info(state_);
  const auto with = [&](const auto& change) {
    SequenceStateInfo info = good;
    change(info);
    const StateHeader header = encode_state_header(info);
    return State(header.begin(), header.end());
  };
  constexpr std::int64_t kHuge = std::int64_t{1} << 62;
  using Info = SequenceStateInfo;
  for (const State& state :
       {with([](Info& info) { info.num_layers = 0; }),
        with([](Info& info) { info.num_heads = -1; }), with([](Info& info) { info.head_dim = 0; }),
        with([](Info& info) { info.head_dim_v = -5; }),
        with([](Info& info) { info.num_kv_tokens = info.length = -1; }),
        with([](Info& info) { info.num_kv_tokens = info.length = kHuge; }),
        with([](Info& info) { ++info.num_kv_tokens; }),
        with([](Info& info) { info.num_layers = info.num_heads = info.head_dim = 0x7fffffff; })}) {
    EXPECT_THAT(refusal_of(state), HasSubstr("describes no sequence that this build knows"));
  }
  // Windows and compactions that cannot be.
  for (const State& state :
       {with([](Info& info) { info.window.window = -1; }),
        with([](Info& info) { info.window.num_sink_tokens = 2; }),
        with([](Info& info) { info.dropped_to = info.num_dropped = 3; }),
        with([](Info& info) { info.num_dropped = -3; }),
        with([](Info& info) { info.compacted_to = 99; }),
        with([](Info& info) { info.num_in_front = 1; }), with([](Info& info) {
          info.length = info.window.window = kHuge;
          info.dropped_to = std::numeric_limits<std::int64_t>::max();
          info.num_dropped = kHuge - info.num_kv_tokens;
        }),
        with([](Info& info) {
          info.length = info.compacted_to = info.num_kv_tokens + 9;
          info.num_dropped = -3;
        }),
        with([](Info& info) { info.length += 5; }), with([](Info& info) {
          info.length += 5;
          info.compacted_to = 4;
        }),
        with([](Info& info) { info.length = std::numeric_limits<std::int64_t>::max(); })}) {
    EXPECT_THAT(refusal_of(with_records(state)), HasSubstr("describes no sequence that can be"));
  }
  // Plausible, and larger than the pool.
  const auto message = refusal_of<NoPageError>(
      with([](Info& info) { info.num_kv_tokens = info.length = std::int64_t{1} << 50; }));
  EXPECT_THAT(message, HasSubstr("Need 281474976710656 pages"));
}

TEST_F(SequenceStateErrors, AnotherShape) {
  const auto refused_by = [&](KVCacheConfig config) {
    SavedCache other(config);
    const auto message = error_of([&] { restore_sequence(other.descriptor, 1, state_); });
    EXPECT_EQ(other.descriptor.num_sequences(), 0);
    EXPECT_EQ(other.manager.available_pages_count(), config.num_pages);
    return message;
  };
  KVCacheConfig config = kConfig;
  config.num_layers = 2;
  EXPECT_EQ(refused_by(config),
            "sequence state: got a sequence of num_layers 3; expected 2, that of the cache");
  config = kConfig;
  config.num_heads = 4;
  EXPECT_THAT(refused_by(config), HasSubstr("num_heads 2; expected 4"));
  config = kConfig;
  config.head_dim = 3;
  EXPECT_THAT(refused_by(config), HasSubstr("head_dim 4; expected 3"));
  config = kConfig;
  config.head_dim_v = 4;
  EXPECT_THAT(refused_by(config), HasSubstr("head_dim_v 3; expected 4"));
}

TEST_F(SequenceStateErrors, ASequenceThatExistsAndOneThatDoesNot) {
  EXPECT_THAT(
      refusal<InvalidArgumentError>([&] { restore_sequence(cache_.descriptor, 2, state_); }),
      HasSubstr("sequence 2 exists"));
  EXPECT_THAT(refusal<UnknownSequenceError>([&] { save_sequence(cache_.descriptor, 5); }),
              HasSubstr("5"));
}

TEST_F(SequenceStateErrors, APoolWithoutStorage) {
  PagePool pool(8, 4);
  CacheDescriptor descriptor(pool);
  descriptor.allocate({1}, {3});
  EXPECT_THAT(error_of([&] { save_sequence(descriptor, 1); }), HasSubstr("over a bare pool"));
  EXPECT_THAT(error_of([&] { restore_sequence(descriptor, 2, state_); }),
              HasSubstr("restore_sequence: the descriptor is over a bare pool"));
  EXPECT_EQ(descriptor.num_sequences(), 1);
}

TEST_F(SequenceStateErrors, AFullPool) {
  const auto pages = cache_.manager.allocate(cache_.manager.available_pages_count() - 1);
  EXPECT_THAT(refusal_of<NoPageError>(state_), HasSubstr("Need 2 pages but only 1 available"));
  cache_.manager.unref({pages.back()});
  restore_sequence(cache_.descriptor, 9, state_);
  EXPECT_EQ(cache_.bits(9), cache_.bits(1));
}

TEST_F(SequenceStateErrors, AFullPoolAsksItsReclaimer) {
  struct Giver final : Reclaimer {
    Giver(PagePool& p, std::vector<PageId> held) : pool(p), pages(std::move(held)) {}
    bool reclaim(std::int64_t) override {
      pool.unref(std::exchange(pages, {}));
      return true;
    }
    PagePool& pool;
    std::vector<PageId> pages;
  };
  PagePool& pool = cache_.manager.pool();
  Giver giver(pool, pool.allocate(pool.available_pages_count()));
  pool.set_reclaimer(&giver);
  restore_sequence(cache_.descriptor, 9, state_);
  pool.set_reclaimer(nullptr);
  EXPECT_EQ(cache_.bits(9), cache_.bits(1));
  cache_.descriptor.check_invariants();
}

// Whatever a source or a sink throws, at any point, comes out, and nothing is left of the call.
TEST_F(SequenceStateErrors, WrongBytesTakeNothingFromAReclaimer) {
  struct Counting : Reclaimer {
    bool reclaim(std::int64_t) override {
      ++num_calls;
      return false;
    }
    int num_calls = 0;
  } reclaimer;
  SavedCache full({.num_pages = 4,
                   .page_size = 4,
                   .num_heads = cache_.manager.config().num_heads,
                   .head_dim = cache_.manager.config().head_dim,
                   .head_dim_v = cache_.manager.config().head_dim_v,
                   .num_layers = cache_.manager.config().num_layers,
                   .dtype = cache_.manager.config().dtype});
  full.descriptor.allocate({9}, {16});
  full.manager.pool().set_reclaimer(&reclaimer);
  State changed = state_;
  changed.back() ^= std::byte{1};
  EXPECT_THROW(restore_sequence(full.descriptor, 1, changed), SequenceStateError);
  changed = state_;
  changed.push_back(std::byte{0});
  EXPECT_THROW(restore_sequence(full.descriptor, 1, changed), SequenceStateError);
  EXPECT_EQ(reclaimer.num_calls, 0);
  full.manager.pool().set_reclaimer(nullptr);
}

TEST_F(SequenceStateErrors, OfSourceAndSink) {
  struct Breaks final : ByteSource, ByteSink {
    Breaks(const State& s, std::size_t n) : state(s), good_calls(n) {}
    std::size_t read(std::span<std::byte> bytes) override {
      if (good_calls-- == 0) throw std::runtime_error("the line is dead");
      std::memcpy(bytes.data(), &state[at], bytes.size());
      at += bytes.size();
      return bytes.size();
    }
    void write(std::span<const std::byte>) override {
      if (good_calls-- == 0) throw std::runtime_error("the line is dead");
    }
    std::string name() const override { return "line 3"; }
    const State& state;
    std::size_t at = 0, good_calls;
  };
  for (std::size_t calls = 0; calls < 4; ++calls) {  // a header and three layers
    Breaks line(state_, calls);
    EXPECT_EQ(refusal<std::runtime_error>([&] { restore_sequence(cache_.descriptor, 9, line); }),
              "the line is dead");
    Breaks out(state_, calls);
    EXPECT_EQ(refusal<std::runtime_error>([&] { save_sequence(cache_.descriptor, 1, out); }),
              "the line is dead");
  }
  State changed = state_;
  changed.back() ^= std::byte{1};
  Breaks line(changed, 9);
  EXPECT_THAT(refusal([&] { restore_sequence(cache_.descriptor, 9, line); }),
              ::testing::StartsWith("line 3: corrupted"));
}

}  // namespace
}  // namespace seqattn
