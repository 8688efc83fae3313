#include <array>
#include <tuple>
#include <utility>
#include <vector>

#include "random_descriptors.h"

namespace seqattn::testing {

void RandomDescriptors::pack() {
  using Lists = std::array<std::vector<std::int32_t>, 3>;
  using Windows = std::vector<std::array<std::int64_t, 4>>;
  using Packed = std::tuple<Lists, Windows, std::vector<std::vector<std::int32_t>>>;
  const std::vector<SeqId> ids = known_ids();
  compare(
      "pack_for_flashinfer",
      [&] {
        const auto packed = descriptor().pack_for_flashinfer(ids);
        const auto list = [](auto span) { return std::vector(span.begin(), span.end()); };
        Windows windows;
        for (const RowWindow& row : packed.columns().windows) {
          windows.push_back({row.window, row.num_sink_tokens, row.num_dropped, row.first_query});
        }
        return Packed{Lists{list(packed.kv_page_indices()), list(packed.kv_page_indptr()),
                            list(packed.kv_last_page_len())},
                      windows, packed.columns().trees};
      },
      [&](DescriptorModel& model) {
        Lists packed = {std::vector<std::int32_t>{}, {0}, {}};
        Windows windows;
        std::vector<std::vector<std::int32_t>> trees;
        bool has_windows = false, has_trees = false;
        for (const SeqId id : ids) {
          const auto& sequence = model.sequence(which_, id);
          packed[0].insert(packed[0].end(), sequence.pages.begin(), sequence.pages.end());
          packed[1].push_back(static_cast<std::int32_t>(packed[0].size()));
          packed[2].push_back(model.last_page_len(sequence));
          has_windows |= sequence.window.window > 0;
          windows.push_back({sequence.window.window, sequence.window.num_sink_tokens,
                             sequence.num_missing(), sequence.first_query()});
          trees.push_back(sequence.parents);
          has_trees |= !sequence.parents.empty();
        }
        if (!has_windows) windows.clear();
        if (!has_trees) trees.clear();
        return Packed{packed, windows, trees};
      });
}

void RandomDescriptors::look_up() {
  if (source_.one_in(8)) return clear();
  const SeqId id = any_id();
  compare(
      "stats", [&] { return value_of(descriptor().stats()); },
      [&](DescriptorModel& model) { return value_of(model.stats(which_)); });
  compare(
      "length", [&] { return std::pair(descriptor().length(id), descriptor().num_kv_tokens(id)); },
      [&](DescriptorModel& model) {
        const auto& sequence = model.sequence(which_, id);
        return std::pair(sequence.length, sequence.num_slots());
      });
}

}  // namespace seqattn::testing
