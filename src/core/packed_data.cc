#include "seqattn/packed_data.h"

#include <algorithm>
#include <utility>

#include "backend.h"
#include "draft_tree.h"
#include "index_buffers.h"
#include "message.h"
#include "sequence_slots.h"
#include "tensor_check.h"

namespace seqattn {
namespace {

void check_columns(const RowColumns& columns, std::size_t num_rows) {
  const auto check_size = [num_rows](const char* name, std::size_t size) {
    require(size == 0 || size == num_rows, name, ": got ", size, " entries; expected one for each ",
            "of ", num_rows, " rows, or none");
  };
  check_size("windows", columns.windows.size());
  check_size("trees", columns.trees.size());
  for (const RowWindow& row : columns.windows) {
    check_window({.window = row.window, .num_sink_tokens = row.num_sink_tokens});
    constexpr std::int64_t kMost = std::int64_t{1} << 62;
    require(std::min(row.num_dropped, row.first_query) >= 0 &&
                std::max(row.num_dropped, row.first_query) <= kMost,
            "windows: got num_dropped ", row.num_dropped, " and first_query ", row.first_query,
            "; expected 0 to 2^62");
  }
  for (const auto& parents : columns.trees) {
    if (!parents.empty()) check_tree(parents);
  }
}

}  // namespace

struct FlashInferPackedData::SharedArrays : Arrays {
  explicit SharedArrays(Arrays&& arrays) : Arrays(std::move(arrays)) {}
  ~SharedArrays() {
    if (buffers) buffers->give(std::move(indices));
  }
};

FlashInferPackedData::FlashInferPackedData() : FlashInferPackedData(Arrays{}) {}

FlashInferPackedData::FlashInferPackedData(Arrays arrays)
    : arrays_(std::make_shared<SharedArrays>(std::move(arrays))) {}

FlashInferPackedData::FlashInferPackedData(std::vector<std::int32_t> kv_page_indices,
                                           std::vector<std::int32_t> kv_page_indptr,
                                           std::vector<std::int32_t> kv_last_page_len,
                                           RowColumns columns)
    : FlashInferPackedData(Arrays{.indices = std::move(kv_page_indices),
                                  .indptr = std::move(kv_page_indptr),
                                  .last_page_len = std::move(kv_last_page_len),
                                  .columns = std::move(columns)}) {
  const std::vector<std::int32_t>&indices = arrays_->indices, &indptr = arrays_->indptr,
        &lengths = arrays_->last_page_len;
  check_indptr("kv_page_indptr", indptr, batch_size() + 1,
               static_cast<std::int64_t>(indices.size()));
  for (std::size_t row = 0; row < lengths.size(); ++row) {
    const bool has_pages = indptr[row + 1] > indptr[row];
    require(has_pages ? lengths[row] > 0 : lengths[row] == 0, "kv_last_page_len: got ",
            lengths[row], " for row ", row, " with ", indptr[row + 1] - indptr[row],
            " pages; expected ", has_pages ? "at least 1" : "0");
  }
  check_columns(arrays_->columns, lengths.size());
  // All sign bits first: a search branches at every page.
  std::int32_t signs = 0;
  for (const PageId page : indices) signs |= page;
  if (signs < 0) {
    const auto negative =
        std::find_if(indices.begin(), indices.end(), [](PageId page) { return page < 0; });
    require(false, "kv_page_indices: entry ", negative - indices.begin(),
            " is negative; expected page ids from 0 on");
  }
}

std::int64_t FlashInferPackedData::kv_len(std::int64_t row, int page_size) const {
  require(row >= 0 && row < batch_size(), "row: got ", row, "; expected 0 <= row < ", batch_size());
  const std::int64_t num_pages = arrays_->indptr[row + 1] - arrays_->indptr[row];
  return tokens_of(num_pages, arrays_->last_page_len[row], page_size);
}

FlashInferPackedData FlashInferPackedData::to_device(Device device) const {
  find_backend(device);
  return *this;
}

std::string FlashInferPackedData::to_string() const {
  return concat("FlashInferPackedData(batch_size=", batch_size(),
                ", total_pages=", arrays_->indices.size(), ")");
}

}  // namespace seqattn
