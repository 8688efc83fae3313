// Storage on a GPU: appends and reads of every type, stride and alignment, and where they put
// tokens; page copies; the caller's own tensors.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gpu_support.h"
#include "random_source.h"
#include "seqattn/seqattn.h"
#include "tensor.h"

namespace seqattn::testing {
namespace {

struct StorageCase {
  std::string name;
  DType dtype = DType::kFloat16;
  DType input = DType::kFloat16, input_v = DType::kFloat16;  // of appended keys and values
  int head_dim = 128;
  int head_dim_v = 128;
  int num_heads = 3;
  int page_size = 16;
  int most_tokens = 100;  // of a row
  KVLayout layout = KVLayout::kNHD;
  bool with_gaps = false;  // tensors whose strides are not multiples of 16 bytes
};

class CudaStorage : public ::testing::TestWithParam<StorageCase> {
 protected:
  static constexpr int kLayers = 2;
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
    const StorageCase& c = GetParam();
    manager = std::make_unique<PagedKVCacheManager>(
        KVCacheConfig{.num_pages = (300 + c.most_tokens) / c.page_size + 20,
                      .page_size = c.page_size,
                      .num_heads = c.num_heads,
                      .head_dim = c.head_dim,
                      .head_dim_v = c.head_dim_v,
                      .num_layers = kLayers,
                      .dtype = c.dtype,
                      .device = cuda(0),
                      .kv_layout = c.layout});
    sequences = std::make_unique<CacheDescriptor>(*manager);
  }
  Tensor tensor(DType dtype, std::int64_t tokens, int dim) const {
    return {cuda(0),
            dtype,
            {tokens, num_heads, dim},
            GetParam().with_gaps ? with_gaps(num_heads, dim) : Layout{}};
  }
  std::vector<double> random_values(DType dtype, std::int64_t tokens, int dim) {
    std::normal_distribution<double> normal;
    std::vector<double> values(static_cast<std::size_t>(tokens * num_heads * dim));
    for (double& x : values) x = rounded(dtype, normal(random));
    return values;
  }
  // The elements of one token as the bytes of the cache hold them.
  std::vector<double> slot(const std::vector<std::byte>& cache, int dim, PageId page,
                           std::int64_t token) const {
    const KVCacheConfig& config = manager->config();
    std::vector<double> elements;
    for (std::int64_t head = 0; head < num_heads; ++head) {
      const std::int64_t place = config.kv_layout == KVLayout::kNHD
                                     ? token * num_heads + head
                                     : head * config.page_size + token;
      const std::int64_t first = (std::int64_t{page} * config.page_size * num_heads + place) * dim;
      for (std::int64_t d = 0; d < dim; ++d) {
        elements.push_back(decode(config.dtype, cache.data() + (first + d) * 2));
      }
    }
    return elements;
  }
  static std::vector<std::byte> bytes_of(const TensorView& cache) {
    return copy_to_host(cuda(0), cache.data, cache.num_elements() * size_of(cache.dtype));
  }

  const int num_heads = GetParam().num_heads;
  std::mt19937_64 random = random_source(5700);
  std::unique_ptr<PagedKVCacheManager> manager;
  std::unique_ptr<CacheDescriptor> sequences;
};

TEST_P(CudaStorage, KeepsWhatIsAppendedAndNothingElse) {
  const StorageCase& c = GetParam();
  // Appends of several rows, some of no tokens, that begin in the middle of pages.
  const std::int32_t most = c.most_tokens, total = 14 + most;
  sequences->allocate({1, 2, 3, 4}, {30, 5, 0, 64});
  sequences->allocate({1, 2, 3, 4}, {13, 0, 1, most});
  const auto packed = sequences->pack_for_flashinfer({1, 2, 3, 4});
  const std::vector<std::int32_t> indptr{0, 13, 13, 14, total};
  const std::vector<std::int64_t> ends{43, 5, 1, 64 + most};
  Tensor keys = tensor(c.input, total, c.head_dim);
  Tensor values = tensor(c.input_v, total, c.head_dim_v);
  const auto k = random_values(c.input, total, c.head_dim);
  const auto v = random_values(c.input_v, total, c.head_dim_v);
  keys.write(k);
  values.write(v);
  manager->append_kv(keys.view(), values.view(), packed, indptr, 1);

  const auto check_side = [&](const TensorView& cache, const std::vector<double>& written, int dim,
                              const char* what) {
    const auto bytes = bytes_of(cache);
    const std::size_t per_token = static_cast<std::size_t>(num_heads) * dim;
    std::vector<std::byte> rest = bytes;
    for (std::size_t row = 0; row < 4; ++row) {
      const auto pages = sequences->pages(static_cast<SeqId>(row) + 1);
      for (std::int32_t t = indptr[row]; t < indptr[row + 1]; ++t) {
        const std::int64_t position = ends[row] - (indptr[row + 1] - t);
        const auto got = slot(bytes, dim, pages[static_cast<std::size_t>(position / c.page_size)],
                              position % c.page_size);
        for (std::size_t i = 0; i < per_token; ++i) {
          const double want =
              rounded(c.dtype, written[static_cast<std::size_t>(t) * per_token + i]);
          ASSERT_EQ(got[i], want) << what << " of row " << row << ", position " << position;
        }
      }
    }
    std::int64_t used = 0;
    for (const std::byte b : rest) used += b != std::byte{};
    EXPECT_LE(used, static_cast<std::int64_t>(total * per_token * 2)) << "writes elsewhere";
  };
  check_side(manager->key_cache(1), k, c.head_dim, "keys");
  check_side(manager->value_cache(1), v, c.head_dim_v, "values");
  for (const auto& bytes : {bytes_of(manager->key_cache(0)), bytes_of(manager->value_cache(0))}) {
    EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](std::byte b) {
      return b == std::byte{};
    })) << "another layer was written";
  }

  // And reads it, any part of it, in either type, keys and values each.
  const auto pages = sequences->pages(4);
  const DType other = DType::kFloat32;
  for (const auto& [k_dtype, v_dtype] :
       {std::pair{c.dtype, c.dtype}, {other, other}, {c.dtype, other}, {other, c.dtype}}) {
    for (const auto& [first, count] : {std::pair{64, most}, {100, 1}, {70, 0}, {81, 33}}) {
      const Tensor read_k = tensor(k_dtype, count, c.head_dim);
      const Tensor read_v = tensor(v_dtype, count, c.head_dim_v);
      manager->read_kv(pages, first, count, read_k.view(), read_v.view(), 1);
      const auto part = [&](const std::vector<double>& all, int dim) {
        std::vector<double> some;
        const std::size_t width = static_cast<std::size_t>(num_heads) * dim;
        const std::size_t begin = static_cast<std::size_t>(14 + first - 64) * width;
        for (std::size_t i = 0; i < static_cast<std::size_t>(count) * width; ++i) {
          some.push_back(rounded(c.dtype, all[begin + i]));
        }
        return some;
      };
      EXPECT_EQ(read_k.read(), part(k, c.head_dim)) << first << ", " << count;
      EXPECT_EQ(read_v.read(), part(v, c.head_dim_v)) << first << ", " << count;
      EXPECT_TRUE(read_k.gaps_are_untouched() && read_v.gaps_are_untouched());
    }
  }
}

std::vector<StorageCase> storage_cases() {
  std::vector<StorageCase> list;
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const KVLayout layout : {KVLayout::kNHD, KVLayout::kHND}) {
      for (const bool gaps : {false, true}) {
        StorageCase c;
        c.dtype = dtype, c.layout = layout, c.with_gaps = gaps;
        const auto add = [&](const std::string& inputs, const std::string& what) {
          c.name = std::string(to_string(dtype)) + "_" + std::string(to_string(layout)) + "_" +
                   inputs + (gaps ? "_gaps_" : "_packed_") + what;
          list.push_back(c);
        };
        for (const DType input : {dtype, DType::kFloat32}) {
          const std::string name(to_string(input));
          c.input = c.input_v = input;
          c.page_size = 16, c.head_dim = c.head_dim_v = 128;
          add(name, "128");
          c.num_heads = 19;  // more than a block takes: sixteen, eight or one by how they are moved
          add(name, "128_19_heads");
          c.num_heads = 1, c.head_dim = c.head_dim_v = 8;  // blocks as deep as can be
          add(name, "8_1_head");
          c.num_heads = 3, c.head_dim = c.head_dim_v = 256;  // with gaps, more parts than threads
          add(name, "256");
          c.head_dim = 72, c.head_dim_v = 40;
          add(name, "72_40");
          c.most_tokens = 20001;  // of which a thread takes several
          add(name, "72_40_20001_tokens");
          c.most_tokens = 100;
          c.page_size = 5;
          add(name, "72_40_page5");
          c.page_size = 1;
          add(name, "72_40_page1");
        }
        c.page_size = 16;
        c.input = dtype, c.input_v = DType::kFloat32;
        add("keys_alike", "72_40");
        c.input = DType::kFloat32, c.input_v = dtype;
        add("values_alike", "72_40");
      }
    }
  }
  return list;
}

INSTANTIATE_TEST_SUITE_P(, CudaStorage, ::testing::ValuesIn(storage_cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace seqattn::testing
