#include "descriptor_state.h"

#include <ostream>

namespace seqattn::testing {
namespace {

template <class T>
void print_list(std::ostream& out, const char* name, const std::vector<T>& values) {
  out << name << " [";
  for (std::size_t i = 0; i < values.size(); ++i) out << (i == 0 ? "" : " ") << values[i];
  out << "]";
}

}  // namespace

PoolState state_of(const PagePool& pool) {
  const auto counts = pool.ref_counts();
  PoolState state{.free_pages = pool.free_pages(),
                  .ref_counts = {counts.begin(), counts.end()},
                  .generations = {}};
  for (PageId page = 0; page < pool.num_pages(); ++page) {
    state.generations.push_back(pool.generation(page));
  }
  return state;
}

DescriptorState state_of(const CacheDescriptor& descriptor) {
  DescriptorState state{.pool = state_of(descriptor.pool()), .sequences = {}};
  for (const SeqId seq_id : descriptor.seq_ids()) {
    const SequenceData& data = descriptor.sequence(seq_id);
    state.sequences[seq_id] = {.pages = data.kv_page_indices,
                               .last_page_len = data.last_page_len,
                               .length = data.length,
                               .window = data.window,
                               .dropped_to = data.dropped_to,
                               .num_dropped = data.num_dropped,
                               .compacted_to = data.compacted_to,
                               .tree_parents = data.tree_parents};
  }
  return state;
}

std::ostream& operator<<(std::ostream& out, const PoolState& state) {
  print_list(out, "free", state.free_pages);
  print_list(out, " counts", state.ref_counts);
  print_list(out, " generations", state.generations);
  return out;
}

std::ostream& operator<<(std::ostream& out, const DescriptorState& state) {
  out << state.pool;
  for (const auto& [seq_id, sequence] : state.sequences) {
    out << "\n  sequence " << seq_id << ": length " << sequence.length << ", last_page_len "
        << sequence.last_page_len << ", window " << sequence.window.window << " + "
        << sequence.window.num_sink_tokens << " sinks, dropped to " << sequence.dropped_to
        << ", compacted to " << sequence.compacted_to;
    print_list(out, ", tree", sequence.tree_parents);
    print_list(out, ", pages", sequence.pages);
  }
  return out;
}

}  // namespace seqattn::testing
