// Pools beyond what 32 bits count: 64-bit offsets in append, read, copies and attention.
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "gpu_case.h"
#include "gpu_support.h"
#include "random_source.h"
#include "seqattn/seqattn.h"

namespace seqattn::testing {
namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

// One layer of 20 GiB of keys and as much of values: 1.07e10 elements each, over 2^33.
TEST(CudaLargePool, IsUsedToItsFarEnd) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  std::size_t free_bytes = 0, total = 0;
  check(cudaMemGetInfo(&free_bytes, &total));
  if (free_bytes < 44 * static_cast<std::size_t>(kGiB)) {
    GTEST_SKIP() << "44 GiB of device memory are needed, " << free_bytes / kGiB << " are free";
  }
  auto random = random_source(6100);
  AttentionCase c = long_query_case(DType::kBFloat16);
  // Short queries, long ones, and an empty row; whole prompts, so that append writes all keys.
  c.rows = {{40, 40}, {300, 300}, {1, 1}, {0, 0}, {17, 17}};
  const std::int64_t page_elements = std::int64_t{c.page_size} * c.num_kv_heads * c.head_dim;
  const std::int64_t num_pages = 20 * kGiB / (page_elements * 2);
  PagedKVCacheManager manager(c.cache_config(num_pages, cuda(0)));
  manager.allocate(num_pages);

  // Pages by turns from the last of the pool, from just above 2^31 elements and 2^32, from the
  // first.
  std::vector<std::int32_t> indices, indptr{0}, last_page_len, qo_indptr{0};
  std::int32_t next = 0;
  const std::array<std::int64_t, 4> starts{num_pages - 1, (std::int64_t{1} << 31) / page_elements,
                                           (std::int64_t{1} << 32) / page_elements, 0};
  for (const RowLengths& row : c.rows) {
    for (std::int64_t token = 0; token < row.kv_len; token += c.page_size, ++next) {
      const std::int64_t start = starts[static_cast<std::size_t>(next % 4)];
      const std::int64_t step = start == num_pages - 1 ? -(next / 4) : next / 4;
      indices.push_back(static_cast<std::int32_t>(start + step));
    }
    indptr.push_back(next);
    last_page_len.push_back(
        row.kv_len == 0 ? 0 : static_cast<std::int32_t>((row.kv_len - 1) % c.page_size + 1));
    qo_indptr.push_back(qo_indptr.back() + static_cast<std::int32_t>(row.q_len));
  }
  const FlashInferPackedData packed(indices, indptr, last_page_len);
  const auto rows = random_rows(c, random);
  std::vector<double> k, v;
  for (const ref::Row& row : rows) {
    k.insert(k.end(), row.k.begin(), row.k.end());
    v.insert(v.end(), row.v.begin(), row.v.end());
  }
  const std::int64_t tokens = qo_indptr.back();
  Tensor keys(cuda(0), DType::kBFloat16, {tokens, c.num_kv_heads, c.head_dim});
  Tensor values(cuda(0), DType::kBFloat16, {tokens, c.num_kv_heads, c.head_dim});
  keys.write(k);
  values.write(v);
  BatchAttention attention(manager, c.options());
  attention.plan(packed, qo_indptr);
  attention.append_kv(keys.view(), values.view());
  const CallTensors tensors(c, rows, cuda(0));
  attention.run(tensors.q.view(), tensors.out.view(), tensors.run_options());
  expect_reference(c, rows, tensors);

  // Reads, and copies from the far end to the near one and back.
  const auto read = [&](std::vector<PageId> pages) {
    const auto count = static_cast<std::int64_t>(pages.size()) * c.page_size;
    const Tensor read_k(cuda(0), DType::kBFloat16, {count, c.num_kv_heads, c.head_dim});
    const Tensor read_v(cuda(0), DType::kBFloat16, {count, c.num_kv_heads, c.head_dim});
    manager.read_kv(pages, 0, count, read_k.view(), read_v.view());
    return std::pair(read_k.read(), read_v.read());
  };
  const std::vector<PageId> of_row_1(indices.begin() + indptr[1], indices.begin() + indptr[1] + 18);
  const auto [got_k, got_v] = read(of_row_1);
  const auto size = static_cast<std::ptrdiff_t>(got_k.size());
  EXPECT_EQ(got_k, std::vector<double>(rows[1].k.begin(), rows[1].k.begin() + size));
  EXPECT_EQ(got_v, std::vector<double>(rows[1].v.begin(), rows[1].v.begin() + size));
  const auto far = static_cast<PageId>(num_pages - 1000), near = PageId{1000};
  manager.copy_pages(std::array{PageCopy{indices[0], near}, PageCopy{near, far}});
  EXPECT_EQ(read({far}), read({indices[0]}));
}

}  // namespace
}  // namespace seqattn::testing
