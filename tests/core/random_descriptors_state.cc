#include <algorithm>
#include <cstddef>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "random_descriptors.h"
#include "seqattn/error.h"
#include "seqattn/sequence_state.h"

namespace seqattn::testing {
namespace {

constexpr std::size_t kMostSaved = 8;

// Bytes as a socket has them: others may follow.
class Stream final : public seqattn::ByteSource {
 public:
  explicit Stream(std::span<const std::byte> bytes) : rest_(bytes) {}
  std::size_t read(std::span<std::byte> bytes) override {
    const std::size_t count = std::min(bytes.size(), rest_.size());
    std::copy_n(rest_.begin(), count, bytes.begin());
    rest_ = rest_.subspan(count);
    return count;
  }
  std::size_t num_left() const { return rest_.size(); }

 private:
  std::span<const std::byte> rest_;
};

auto value_of(const SequenceStateInfo& info) {
  return std::tuple(info.length, info.num_kv_tokens, info.window, info.dropped_to, info.num_dropped,
                    info.compacted_to);
}
auto value_of(const SequenceModel& sequence) {
  return std::tuple(sequence.length, sequence.num_slots(), sequence.window, sequence.dropped_to(),
                    sequence.num_missing(), sequence.floor);
}

}  // namespace

void RandomDescriptors::save() {
  SeqId id = known_id();
  for (const auto& [other, sequence] : table()) {  // gaps are what other page sizes are hard on
    if (sequence.dropped_to() > 0 && !source_.one_in(4)) id = other;
  }
  std::vector<std::byte> state;
  compare(
      "save_sequence",
      [&] {
        state = save_sequence(descriptor(), id);
        const SequenceStateInfo info = sequence_state_info(state);
        const bool is_foreseen = info == sequence_state_info(descriptor(), id) &&
                                 info.num_bytes == static_cast<std::int64_t>(state.size());
        return std::pair(value_of(info), is_foreseen);
      },
      [&](DescriptorModel& model) { return std::pair(value_of(model.save(which_, id)), true); });
  if (state.empty()) return;
  saved_.push_back({std::move(state), table().at(id), pool_.page_size()});
  if (saved_.size() > kMostSaved) saved_.pop_front();
}

void RandomDescriptors::restore() {
  if (saved_.empty()) return;
  const auto any_saved = [&]() -> const SavedSequence& {
    return saved_.at(static_cast<std::size_t>(source_.below(static_cast<int>(saved_.size()))));
  };
  const SavedSequence* choice = &any_saved();
  for (int i = 0; i < 4 && choice->page_size == pool_.page_size(); ++i) choice = &any_saved();
  const SavedSequence& saved = *choice;
  const SeqId id = new_id();
  if (source_.one_in(8)) return restore_wrong_bytes(id, saved);
  const bool streams = source_.one_in(3);
  const std::size_t num_before = table().size();
  compare(
      "restore_sequence",
      [&] {
        if (!streams) return value_of(restore_sequence(descriptor(), id, saved.state));
        std::vector<std::byte> bytes = saved.state;
        bytes.resize(bytes.size() + 9);
        Stream stream(bytes);
        const auto info = restore_sequence(descriptor(), id, stream);
        if (stream.num_left() != 9) differ("restore_sequence", "read what is not its own");
        return value_of(info);
      },
      [&](DescriptorModel& model) {
        model.restore(which_, id, saved.sequence);
        return value_of(saved.sequence);
      });
  if (table().size() == num_before) return;
  ++result_.num_restored;
  if (saved.page_size != pool_.page_size()) ++result_.num_restored_elsewhere;
}

// From memory, all of the bytes are looked at before a reclaimer is asked.
void RandomDescriptors::restore_wrong_bytes(SeqId id, const SavedSequence& saved) {
  std::vector<std::byte> state = saved.state;
  const bool streams = source_.one_in(3);
  const int high = source_.below(256);
  const auto at = static_cast<std::size_t>(high * 256 + source_.below(256));
  const int kind = source_.below(streams ? 2 : 3);
  if (kind == 0) state.at(at % state.size()) ^= std::byte{1} << source_.below(8);
  if (kind == 1) state.resize(at % state.size());
  if (kind == 2) state.resize(state.size() + 1);
  ++result_.num_wrong_states;
  compare(
      "restore_sequence of wrong bytes",
      [&] {
        try {
          Stream stream(state);
          streams ? restore_sequence(descriptor(), id, stream)
                  : restore_sequence(descriptor(), id, state);
        } catch (const NoPageError&) {
          throw SequenceStateError("pages lack too, and either may be said");
        }
      },
      [&](DescriptorModel& model) {
        model.check_restore(which_, id);
        throw SequenceStateError("the model refuses");
      },
      /*may_have_reclaimed=*/streams);
}

}  // namespace seqattn::testing
