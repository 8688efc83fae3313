#include "seqattn/cache_descriptor.h"

#include <span>
#include <utility>

#include "grow_transaction.h"
#include "index_buffers.h"
#include "message.h"
#include "pool_transaction.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "sequence_slots.h"

namespace seqattn {
namespace {

// Throws InvalidArgumentError unless these pages are what that many tokens take.
SequenceData make_sequence(PageIds pages, std::int64_t num_tokens, int page_size,
                           SlidingWindow window) {
  require(num_tokens >= 0, "num_tokens: got ", num_tokens, "; expected at least 0");
  const std::int64_t num_pages = pages_for(num_tokens, page_size);
  require(static_cast<std::int64_t>(pages.size()) == num_pages, "pages: got ", pages.size(),
          " for ", num_tokens, " tokens in pages of ", page_size, "; expected ", num_pages);
  return {.kv_page_indices = {pages.begin(), pages.end()},
          .last_page_len = last_page_len_for(num_tokens, page_size),
          .length = num_tokens,
          .window = window};
}

std::vector<PageCopy> finish(GrowTransaction& growth, const PagePool& pool, Stream stream) {
  if (!growth.prepare(stream)) {
    throw NoPageError(growth.needed(), growth.available(), pool.reclaimer() != nullptr);
  }
  growth.commit();
  return growth.take_copies();
}

}  // namespace

CacheDescriptor::CacheDescriptor(PagedKVCacheManager& manager, SlidingWindow window)
    : CacheDescriptor(manager.pool(), window) {
  manager_ = &manager;
}

CacheDescriptor::CacheDescriptor(PagePool& pool, SlidingWindow window)
    : pool_(&pool), window_(window), packed_buffers_(std::make_shared<IndexBuffers>()) {
  check_window(window);
}

CacheDescriptor::~CacheDescriptor() {
  for (const auto& [seq_id, data] : sequences_) {
    try {
      pool_->drop(data.kv_page_indices);
    } catch (...) {
      // The caller has dropped references that were not its own, and there may be no memory to say
      // so. A destructor can tell nobody; the pages of the other sequences still go back.
    }
  }
}

std::vector<PageCopy> CacheDescriptor::allocate(SeqIds seq_ids, Lengths seq_new_lens,
                                                Stream stream) {
  auto growth = GrowTransaction::by_lengths(*this, seq_ids, seq_new_lens);
  return finish(growth, *pool_, stream);
}

std::vector<PageCopy> CacheDescriptor::allocate_decoding(SeqIds seq_ids, Stream stream) {
  auto growth = GrowTransaction::by_one_token(*this, seq_ids);
  return finish(growth, *pool_, stream);
}

Admission CacheDescriptor::try_allocate(SeqIds seq_ids, Lengths seq_new_lens, Stream stream) {
  auto growth = GrowTransaction::by_lengths(*this, seq_ids, seq_new_lens);
  const bool ok = growth.prepare(stream);
  if (ok) growth.commit();
  return {ok, growth.needed(), growth.available(), growth.take_copies()};
}

std::int64_t CacheDescriptor::release(SeqIds seq_ids) {
  // Out of the map first, so that a repeated id is found once; back into it when a page turns out
  // to be free already.
  found_.clear();
  std::vector<decltype(sequences_)::node_type> released;
  released.reserve(seq_ids.size());
  PoolTransaction transaction(*pool_);
  try {
    for (const SeqId seq_id : seq_ids) {
      auto node = sequences_.extract(seq_id);
      if (node.empty()) continue;
      released.push_back(std::move(node));
      transaction.drop(released.back().mapped().kv_page_indices);
    }
  } catch (...) {
    for (auto& node : released) sequences_.insert(std::move(node));
    throw;
  }
  transaction.commit();
  return static_cast<std::int64_t>(released.size());
}

void CacheDescriptor::clear() { release(seq_ids()); }

void CacheDescriptor::share(SeqId seq_id, SequenceData&& data, const char* call) {
  const auto [entry, is_new] = sequences_.try_emplace(seq_id, std::move(data));
  require(is_new, "sequence ", seq_id, " exists; expected a new id: release it first");
  entry->second.table_version = next_table_version();
  try {
    pool_->ref(entry->second.kv_page_indices, call);
  } catch (...) {
    sequences_.erase(entry);  // new: no growth has found it
    throw;
  }
}

void CacheDescriptor::fork(SeqId parent, SeqId child, std::int64_t num_tokens) {
  const SequenceData& data = sequence(parent);
  if (num_tokens == kAll) num_tokens = data.length;
  const int page_size = pool_->page_size();
  check_can_end_at(data, num_tokens, parent);
  const CutSequence cut = cut_at(data, num_tokens, page_size);
  const auto pages = data.kv_page_indices.begin();
  share(child,
        {.kv_page_indices = {pages, pages + pages_for(cut.num_slots, page_size)},
         .last_page_len = last_page_len_for(cut.num_slots, page_size),
         .length = num_tokens,
         .window = data.window,
         .dropped_to = cut.dropped_to,
         .num_dropped = cut.num_dropped,
         .num_in_front = cut.num_in_front,
         .compacted_to = data.compacted_to},
        "fork");
}

void CacheDescriptor::attach(SeqId seq_id, PageIds pages, std::int64_t num_tokens) {
  share(seq_id, make_sequence(pages, num_tokens, pool_->page_size(), window_), "attach");
}

void CacheDescriptor::attach(SeqId seq_id, const SequenceData& data) {
  check_sequence(data, pool_->page_size());
  share(seq_id, SequenceData(data), "attach");
}

void CacheDescriptor::adopt(SeqId seq_id, PageIds pages, std::int64_t num_tokens) {
  const auto present = sequences_.find(seq_id);
  SequenceData data = make_sequence(pages, num_tokens, pool_->page_size(),
                                    present == sequences_.end() ? window_ : present->second.window);
  std::unordered_map<PageId, std::int64_t> holders;  // of the listed pages, in this descriptor
  for (const PageId page : pages) ++holders[page];
  for (const auto& [other_id, other] : sequences_) {
    if (other_id == seq_id) continue;
    for (const PageId page : other.kv_page_indices) {
      if (const auto entry = holders.find(page); entry != holders.end()) ++entry->second;
    }
  }
  for (const PageId page : pages) {
    require(pool_->contains(page), "adopt: got page ", page, "; expected 0 <= page < ",
            pool_->num_pages());
    const std::int32_t count = pool_->ref_count(page);
    require(count > 0, "adopt: page ", page, " is free; expected a page in use");
    const std::int64_t needed = holders[page] + (pool_->is_cached(page) ? 1 : 0);
    require(needed <= count, "adopt: page ", page, " has ", count, " references for ", needed,
            " holders", pool_->is_cached(page) ? ", a prefix cache among them" : "",
            "; expected one for each: call ref first, or attach");
  }
  data.table_version = next_table_version();
  sequences_.insert_or_assign(seq_id, std::move(data));
  pool_->handled_by_callers_ = true;
}

SequenceData& CacheDescriptor::find(SeqId seq_id) {
  const auto entry = sequences_.find(seq_id);
  if (entry == sequences_.end()) throw UnknownSequenceError(seq_id);
  return entry->second;
}

void CacheDescriptor::truncate(SeqId seq_id, std::int64_t num_tokens) {
  SequenceData& data = find(seq_id);
  const int page_size = pool_->page_size();
  check_can_end_at(data, num_tokens, seq_id);
  const CutSequence cut = cut_at(data, num_tokens, page_size);
  auto& pages = data.kv_page_indices;
  const std::int64_t num_pages = pages_for(cut.num_slots, page_size);
  pool_->drop(std::span(pages).subspan(static_cast<std::size_t>(num_pages)));
  if (num_pages < static_cast<std::int64_t>(pages.size())) {
    data.table_version = next_table_version();
  }
  pages.erase(pages.begin() + num_pages, pages.end());
  data.last_page_len = last_page_len_for(cut.num_slots, page_size);
  data.length = num_tokens;
  data.dropped_to = cut.dropped_to;
  data.num_dropped = cut.num_dropped;
  data.num_in_front = cut.num_in_front;
  data.tree_parents.clear();
}

void CacheDescriptor::set_window(SeqId seq_id, SlidingWindow window) {
  SequenceData& data = find(seq_id);
  check_window(window);
  check_window_is_held(data, window);
  data.window = window;
}

}  // namespace seqattn
