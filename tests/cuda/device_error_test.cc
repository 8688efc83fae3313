// Errors of the device: they carry the call and the device's words, and what can go on goes on.
#include <gmock/gmock.h>

#include <array>
#include <cstdio>
#include <memory>
#include <string>

#include "error_text.h"
#include "gpu_support.h"
#include "seqattn/seqattn.h"
#include "tensor.h"

namespace seqattn::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CudaErrors : public GpuTest {};

TEST_F(CudaErrors, OfAnAllocationThatIsTooLargeNameCallAndReason) {
  // 32 MiB a page for the keys alone: a tebibyte.
  const KVCacheConfig config{
      .num_pages = 1 << 15, .page_size = 1024, .num_heads = 64, .head_dim = 256, .device = cuda(0)};
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(error_of<BackendError>([&] { PagedKVCacheManager manager(config); }),
                AllOf(HasSubstr("cudaMalloc"), HasSubstr("out of memory")));
  }
  // Nothing is left behind for the next call to trip over.
  PagedKVCacheManager manager({.num_pages = 4, .num_heads = 1, .head_dim = 64, .device = cuda(0)});
  const Tensor k(cuda(0), DType::kFloat16, {3, 1, 64}), v(cuda(0), DType::kFloat16, {3, 1, 64});
  EXPECT_NO_THROW(manager.read_kv({0}, 0, 3, k.view(), v.view()));
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(k.read(), std::vector<double>(3 * 64));
}

TEST_F(CudaErrors, OfADeviceThatIsNotThereSayHowManyThereAre) {
  int count = 0;
  check(cudaGetDeviceCount(&count));
  for (const int index : {count, -1, 1000}) {
    EXPECT_THAT(error_of<UnsupportedError>([&] {
                  PagedKVCacheManager manager(
                      {.num_pages = 1, .num_heads = 1, .head_dim = 64, .device = cuda(index)});
                }),
                AllOf(HasSubstr("cuda:" + std::to_string(index)),
                      HasSubstr(std::to_string(count) + " CUDA device")));
  }
}

// In a process of its own, for an illegal address leaves none that works: a cache over memory
// that does not exist.
void meet_an_illegal_address() {
  void* const nowhere = reinterpret_cast<void*>(std::uintptr_t{1} << 44);
  const auto cache = TensorView::contiguous(nowhere, DType::kFloat16, {4, 16, 1, 64}, cuda(0));
  const auto manager = PagedKVCacheManager::from_tensors(
      std::span(&cache, 1), std::span(&cache, 1),
      {.num_pages = 4, .num_heads = 1, .head_dim = 64, .device = cuda(0)});
  const Tensor k(cuda(0), DType::kFloat16, {3, 1, 64}), v(cuda(0), DType::kFloat16, {3, 1, 64});
  manager->read_kv({0}, 0, 3, k.view(), v.view());
  cudaDeviceSynchronize();
  std::string text;
  for (int i = 0; i < 2; ++i) {
    try {
      manager->read_kv({0}, 0, 3, k.view(), v.view());
      text += "nothing thrown|";
    } catch (const BackendError& error) {
      text += std::string(error.what()) + "|";
    }
  }
  std::fprintf(stderr, "%s\n", text.c_str());
  std::_Exit(3);
}

TEST_F(CudaErrors, ThatStayAreReportedAsSuch) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(meet_an_illegal_address(), ::testing::ExitedWithCode(3),
              "illegal memory access.*compute-sanitizer.*illegal memory access.*failed before");
}

}  // namespace
}  // namespace seqattn::testing
