#include "seqattn/packed_data.h"

#include <algorithm>
#include <utility>

#include "backend.h"
#include "message.h"
#include "tensor_check.h"

namespace seqattn {

FlashInferPackedData::FlashInferPackedData() : indptr_{0} {}

FlashInferPackedData::FlashInferPackedData(std::vector<std::int32_t> kv_page_indices,
                                           std::vector<std::int32_t> kv_page_indptr,
                                           std::vector<std::int32_t> kv_last_page_len)
    : indices_(std::move(kv_page_indices)),
      indptr_(std::move(kv_page_indptr)),
      last_page_len_(std::move(kv_last_page_len)) {
  check_indptr("kv_page_indptr", indptr_, batch_size() + 1,
               static_cast<std::int64_t>(indices_.size()));
  for (std::size_t row = 0; row < last_page_len_.size(); ++row) {
    const bool has_pages = indptr_[row + 1] > indptr_[row];
    require(has_pages ? last_page_len_[row] > 0 : last_page_len_[row] == 0,
            "kv_last_page_len: got ", last_page_len_[row], " for row ", row, " with ",
            indptr_[row + 1] - indptr_[row], " pages; expected ", has_pages ? "at least 1" : "0");
  }
  // All sign bits first: a search branches at every page.
  std::int32_t signs = 0;
  for (const PageId page : indices_) signs |= page;
  if (signs < 0) {
    const auto negative =
        std::find_if(indices_.begin(), indices_.end(), [](PageId page) { return page < 0; });
    require(false, "kv_page_indices: entry ", negative - indices_.begin(),
            " is negative; expected page ids from 0 on");
  }
}

std::int64_t FlashInferPackedData::kv_len(std::int64_t row, int page_size) const {
  require(row >= 0 && row < batch_size(), "row: got ", row, "; expected 0 <= row < ", batch_size());
  const std::int64_t num_pages = indptr_[row + 1] - indptr_[row];
  return num_pages == 0 ? 0 : (num_pages - 1) * page_size + last_page_len_[row];
}

FlashInferPackedData FlashInferPackedData::to_device(Device device) const {
  find_backend(device);
  return *this;
}

std::string FlashInferPackedData::to_string() const {
  return concat("FlashInferPackedData(batch_size=", batch_size(), ", total_pages=", indices_.size(),
                ")");
}

}  // namespace seqattn
