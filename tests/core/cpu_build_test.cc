#include <gtest/gtest.h>

#include <array>

#include "error_text.h"
#include "seqattn/error.h"
#include "seqattn/packed_data.h"
#include "seqattn/paged_kv_cache_manager.h"

// A build without CUDA says so wherever a CUDA device comes up.
namespace seqattn {
namespace {

using ::seqattn::testing::error_of;

constexpr KVCacheConfig kOnCuda{
    .num_pages = 1, .page_size = 1, .num_heads = 1, .head_dim = 1, .device = cuda(1)};
constexpr char kMessage[] =
    "device cuda:1: this build of seqattn serves cpu only; build it with -DSEQATTN_CUDA=ON (pip "
    "install . -C cmake.define.SEQATTN_CUDA=ON)";

TEST(CpuBuild, RefusesManagersOnCuda) {
  EXPECT_EQ(error_of<UnsupportedError>([] { PagedKVCacheManager manager(kOnCuda); }), kMessage);
  float element = 0;
  const std::array views{
      TensorView::contiguous(static_cast<void*>(&element), DType::kFloat16, {1, 1, 1, 1}, cuda(1))};
  EXPECT_EQ(
      error_of<UnsupportedError>([&] { PagedKVCacheManager::from_tensors(views, views, kOnCuda); }),
      kMessage);
}

TEST(CpuBuild, RefusesPackedDataForCuda) {
  EXPECT_EQ(error_of<UnsupportedError>([] { FlashInferPackedData().to_device(cuda(1)); }),
            kMessage);
}

}  // namespace
}  // namespace seqattn
