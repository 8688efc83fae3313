#include <limits>
#include <utility>
#include <vector>

#include "index_buffers.h"
#include "message.h"
#include "seqattn/cache_descriptor.h"
#include "sequence_slots.h"

// What a descriptor shows of its sequences: tables, packed batches, statistics, invariants.
namespace seqattn {
namespace {

std::int64_t num_slots(const SequenceData& data, int page_size) noexcept {
  const SequenceSlots slots = slots_of(data, page_size);
  return slots.held + slots.drafts;
}

// One a row.
void pack_windows(const std::vector<const SequenceData*>& rows, int page_size,
                  std::vector<RowWindow>& windows) {
  windows.reserve(rows.size());
  for (const SequenceData* row : rows) {
    windows.push_back({.window = row->window.window,
                       .num_sink_tokens = row->window.num_sink_tokens,
                       .num_dropped = row->num_dropped,
                       .first_query = first_query_slot(*row, slots_of(*row, page_size))});
  }
}

}  // namespace

bool CacheDescriptor::contains(SeqId seq_id) const noexcept {
  return sequences_.find(seq_id) != sequences_.end();
}

std::vector<SeqId> CacheDescriptor::seq_ids() const {
  std::vector<SeqId> ids;
  ids.reserve(sequences_.size());
  for (const auto& [seq_id, data] : sequences_) ids.push_back(seq_id);
  return ids;
}

SlidingWindow CacheDescriptor::window(SeqId seq_id) const { return sequence(seq_id).window; }

const SequenceData& CacheDescriptor::sequence(SeqId seq_id) const {
  const auto entry = sequences_.find(seq_id);
  if (entry == sequences_.end()) throw UnknownSequenceError(seq_id);
  return entry->second;
}

std::int64_t CacheDescriptor::length(SeqId seq_id) const { return sequence(seq_id).length; }

std::int64_t CacheDescriptor::num_kv_tokens(SeqId seq_id) const {
  return num_slots(sequence(seq_id), pool_->page_size());
}

std::span<const PageId> CacheDescriptor::pages(SeqId seq_id) const {
  return sequence(seq_id).kv_page_indices;
}

FlashInferPackedData CacheDescriptor::pack_for_flashinfer(SeqIds seq_ids) const {
  FlashInferPackedData::Arrays packed;
  packed.pool_id = pool_->id();
  packed.pool_epoch = pool_->epoch();
  packed.indptr.reserve(seq_ids.size() + 1);
  packed.last_page_len.reserve(seq_ids.size());
  std::vector<const SequenceData*> rows;
  rows.reserve(seq_ids.size());
  bool has_windows = false, has_trees = false;
  std::size_t total = 0;
  for (const SeqId seq_id : seq_ids) {
    const SequenceData& data = sequence(seq_id);
    total += data.kv_page_indices.size();
    require(total <= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()),
            "seq_ids: got a batch of ", total, " pages and more; expected fewer than 2^31");
    rows.push_back(&data);
    has_windows |= data.window.window > 0;
    has_trees |= !data.tree_parents.empty();
    packed.indptr.push_back(static_cast<std::int32_t>(total));
    packed.last_page_len.push_back(data.last_page_len);
  }
  packed.indices = packed_buffers_->take(total);
  packed.buffers = packed_buffers_;
  for (const SequenceData* row : rows) {
    const auto& pages = row->kv_page_indices;
    packed.indices.insert(packed.indices.end(), pages.begin(), pages.end());
  }
  if (has_windows) pack_windows(rows, pool_->page_size(), packed.columns.windows);
  if (has_trees) {
    packed.columns.trees.reserve(rows.size());
    for (const SequenceData* row : rows) packed.columns.trees.push_back(row->tree_parents);
  }
#ifndef NDEBUG
  packed.generations.reserve(total);
  for (const PageId page : packed.indices) packed.generations.push_back(pool_->generation(page));
#endif
  return FlashInferPackedData(std::move(packed));
}

Stats CacheDescriptor::stats() const {
  Stats stats{.num_sequences = num_sequences(), .num_free_pages = pool_->available_pages_count()};
  std::vector<bool> seen(static_cast<std::size_t>(pool_->num_pages()));
  const auto counts = pool_->ref_counts();
  for (const auto& [seq_id, data] : sequences_) {
    const SequenceSlots slots = slots_of(data, pool_->page_size());
    stats.num_tokens += slots.held + slots.drafts;
    stats.num_draft_tokens += slots.drafts;
    stats.num_dropped_tokens += slots.missing;
    stats.num_page_references += static_cast<std::int64_t>(data.kv_page_indices.size());
    for (const PageId id : data.kv_page_indices) {
      const auto page = static_cast<std::size_t>(id);
      if (seen[page]) continue;
      seen[page] = true;
      ++stats.num_pages;
      if (counts[page] > 1) ++stats.num_shared_pages;
    }
  }
  return stats;
}

void CacheDescriptor::check_invariants() const {
  const auto check = [](bool condition, const auto&... parts) {
    if (!condition) throw Error(concat("CacheDescriptor: ", parts...));
  };
  pool_->check_invariants();
  const int page_size = pool_->page_size();
  std::vector<std::int32_t> holders(static_cast<std::size_t>(pool_->num_pages()));
  for (const auto& [seq_id, data] : sequences_) {
    try {
      check_sequence(data, page_size);
    } catch (const InvalidArgumentError& error) {
      throw Error(concat("CacheDescriptor: sequence ", seq_id, ": ", error.what()));
    }
    for (const PageId page : data.kv_page_indices) {
      check(page >= 0 && page < pool_->num_pages(), "sequence ", seq_id, " holds page ", page,
            " of ", pool_->num_pages());
      ++holders[static_cast<std::size_t>(page)];
    }
  }
  const auto counts = pool_->ref_counts();
  for (std::size_t page = 0; page < holders.size(); ++page) {
    check(holders[page] <= counts[page], "page ", page, " has ", counts[page], " references for ",
          holders[page], " holders");
  }
}

std::string CacheDescriptor::to_string() const {
  std::int64_t num_tokens = 0;
  for (const auto& [seq_id, data] : sequences_) num_tokens += num_slots(data, pool_->page_size());
  return concat("CacheDescriptor(num_sequences=", num_sequences(), ", num_tokens=", num_tokens,
                ", page_size=", pool_->page_size(),
                window_.window == 0 ? ""
                                    : concat(", window=", window_.window,
                                             ", num_sink_tokens=", window_.num_sink_tokens),
                ", available=", pool_->available_pages_count(), ")");
}

}  // namespace seqattn
