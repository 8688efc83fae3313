#include "gpu_case.h"

#include <gtest/gtest.h>

#include "gpu_support.h"
#include "seqattn/batch_attention.h"

namespace seqattn::testing {

AttentionCase gpu_case(DType dtype, int head_dim) {
  AttentionCase c;
  c.name = std::string(to_string(dtype)) + "_" + std::to_string(head_dim);
  c.num_qo_heads = 8;
  c.num_kv_heads = 2;
  c.head_dim = head_dim;
  c.page_size = 16;
  c.kv_dtype = c.q_dtype = c.out_dtype = dtype;
  c.rows = {{1, 1},  {1, 700}, {3, 33}, {1, 2500}, {16, 16},
            {0, 20}, {40, 90}, {0, 0},  {9, 1500}, {30, 300}};
  return c;
}

AttentionCase float8_gpu_case(KVScaling scaling, DType q_dtype, int head_dim) {
  AttentionCase c = gpu_case(q_dtype, head_dim);
  c.kv_dtype = DType::kFloat8E4M3;
  c.kv_scaling = scaling;
  c.name = std::string(to_string(scaling)) + "_" + c.name;
  return c;
}

AttentionCase long_query_case(DType dtype, int head_dim) {
  AttentionCase c = gpu_case(dtype, head_dim);
  c.num_qo_heads = 32;
  c.num_kv_heads = 8;
  c.rows = {{200, 260}, {129, 129}, {1, 90}, {0, 0}, {40, 77}, {0, 5}};
  return c;
}

GpuResult attend_on_gpu(const AttentionCase& c, const std::vector<ref::Row>& rows,
                        const PagedBatch& batch) {
  GpuResult result{CallTensors(c, rows, cuda(0)), ""};
  BatchAttention attention(batch.manager(), c.options());
  const auto mask = mask_of(rows);
  attention.plan(batch.packed(), qo_indptr_of(rows), {.mask = mask});
  attention.run(result.tensors.q.read_only_view(), result.tensors.out.view(),
                result.tensors.run_options());
  check(cudaDeviceSynchronize());
  result.kernel = attention.kernel_name();
  return result;
}

std::string check_on_gpu(const AttentionCase& c, std::mt19937_64& random) {
  const auto rows = random_rows(c, random);
  const PagedBatch batch(c, rows, cuda(0), random, {.unused = Unused::kMixed});
  const auto keys = batch.key_bytes(), values = batch.value_bytes();
  const GpuResult result = attend_on_gpu(c, rows, batch);
  expect_reference(c, rows, result.tensors);
  EXPECT_TRUE(keys == batch.key_bytes() && values == batch.value_bytes()) << "caches are inputs";
  return result.kernel;
}

std::string decode_kernel_name(const AttentionCase& c) {
  std::string name = is_hopper() ? "cuda-decode-" : "cuda-fa2-";
  name += to_string(c.kv_dtype);
  return name;
}

void start_with_normals(const AttentionCase& c, PagedKVCacheManager& manager,
                        CacheDescriptor& sequences, SeqId id, std::int64_t kv_len,
                        std::mt19937_64& random) {
  sequences.allocate({id}, {kv_len});
  const std::vector<std::int64_t> tokens{kv_len, c.num_kv_heads, c.head_dim};
  Tensor keys(cuda(0), c.q_dtype, tokens), values(cuda(0), c.q_dtype, tokens);
  fill_with_normals(keys, random);
  fill_with_normals(values, random);
  manager.append_kv(keys.view(), values.view(), sequences.pack_for_flashinfer({id}),
                    {0, static_cast<std::int32_t>(kv_len)});
}

std::vector<std::vector<std::byte>> bytes_by_row(const std::vector<ref::Row>& rows,
                                                 const CallTensors& tensors) {
  std::vector<std::vector<std::byte>> parts(rows.size());
  const auto tokens = static_cast<std::size_t>(tensors.out.view().shape[0]);
  for (const auto& bytes : {tensors.out.bytes(), tensors.lse.bytes()}) {
    const std::size_t per_token = tokens == 0 ? 0 : bytes.size() / tokens;
    std::size_t begin = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::size_t end = begin + static_cast<std::size_t>(rows[i].q_len) * per_token;
      parts[i].insert(parts[i].end(), bytes.data() + begin, bytes.data() + end);
      begin = end;
    }
  }
  return parts;
}

}  // namespace seqattn::testing
