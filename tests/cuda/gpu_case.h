#pragma once

#include <cstddef>
#include <random>
#include <string>
#include <vector>

#include "attention_case.h"
#include "conformance.h"
#include "paged_batch.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/paged_kv_cache_manager.h"

// Attention on a GPU in the words of the attention suite: a case, random rows, a paged cache full
// of NaN where no row has a token, the oracle.
namespace seqattn::testing {

// What kernels on a device serve: 8 query heads on 2 KV heads, pages of 16, one 16-bit type
// throughout, rows for each of the small tiles, some of them split.
AttentionCase gpu_case(DType dtype, int head_dim = 128);

// The same over a cache of 8 bits, with queries and outputs of such a type.
AttentionCase float8_gpu_case(KVScaling scaling, DType q_dtype, int head_dim = 128);

// Rows of 32 query heads that FA3 takes on Hopper, and FA2 elsewhere.
AttentionCase long_query_case(DType dtype, int head_dim = 128);

struct GpuResult {
  CallTensors tensors;
  std::string kernel;  // kernel_name() of the plan
};

// Plans the batch and runs it once.
GpuResult attend_on_gpu(const AttentionCase& c, const std::vector<ref::Row>& rows,
                        const PagedBatch& batch);

// Random rows in a paged cache full of traps, one run, the oracle; answers kernel_name().
std::string check_on_gpu(const AttentionCase& c, std::mt19937_64& random);

// kernel_name() of a batch of rows that decode serves on Hopper, and FA2 elsewhere.
std::string decode_kernel_name(const AttentionCase& c);

// Starts a sequence of so many tokens, whose keys and values are normals, in the manager's one
// layer.
void start_with_normals(const AttentionCase& c, PagedKVCacheManager& manager,
                        CacheDescriptor& sequences, SeqId id, std::int64_t kv_len,
                        std::mt19937_64& random);

// The bytes of each row's out and lse.
std::vector<std::vector<std::byte>> bytes_by_row(const std::vector<ref::Row>& rows,
                                                 const CallTensors& tensors);

}  // namespace seqattn::testing
