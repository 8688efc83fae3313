// Caches of 8-bit elements on a GPU: the bytes and scales of a CPU, whatever is done to sequences,
// and attention beside the oracle.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "gpu_case.h"
#include "gpu_support.h"
#include "random_source.h"
#include "seqattn/seqattn.h"
#include "tensor.h"

namespace seqattn::testing {
namespace {

constexpr int kHeads = 3, kLayers = 2;
constexpr KVScaling kScalings[] = {KVScaling::kFixed, KVScaling::kPerToken};

// One cache of a device with its sequences.
struct Cache {
  Cache(KVCacheConfig config, Device device)
      : manager((config.device = device, config)), sequences(manager) {
    if (config.kv_scaling == KVScaling::kPerToken) return;
    std::vector<float> key_scales;
    for (int head = 0; head < manager.config().num_heads; ++head) {
      key_scales.push_back(std::array{0.01f, 0.02f, 0.3f}[static_cast<std::size_t>(head % 3)]);
    }
    for (int layer = 0; layer < kLayers; ++layer) {
      manager.set_kv_scales(key_scales, {0.015f}, layer);
    }
  }
  // All bytes and scales of all layers.
  std::vector<std::vector<std::byte>> contents() {
    std::vector<std::vector<std::byte>> all;
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const TensorView& view : {manager.key_cache(layer), manager.value_cache(layer),
                                     manager.key_scales(layer), manager.value_scales(layer)}) {
        all.push_back(copy_to_host(manager.config().device, view.data,
                                   view.num_elements() * size_of(view.dtype)));
      }
    }
    return all;
  }
  PagedKVCacheManager manager;
  CacheDescriptor sequences;
};

struct Float8Storage {
  std::string name;
  KVScaling scaling = KVScaling::kFixed;
  KVLayout layout = KVLayout::kNHD;
  DType input = DType::kBFloat16, input_v = DType::kBFloat16;  // of appended keys and values
  int num_heads = kHeads, head_dim = 128, head_dim_v = 128, page_size = 16;
  int most_tokens = 64;  // of a row
  bool with_gaps = false;
};

class CudaFloat8Storage : public ::testing::TestWithParam<Float8Storage> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  }
  static KVCacheConfig config() {
    const Float8Storage& c = GetParam();
    return {.num_pages = (272 + 2 * c.most_tokens) / c.page_size + 20,
            .page_size = c.page_size,
            .num_heads = c.num_heads,
            .head_dim = c.head_dim,
            .head_dim_v = c.head_dim_v,
            .num_layers = kLayers,
            .dtype = DType::kFloat8E4M3,
            .kv_layout = c.layout,
            .kv_scaling = c.scaling};
  }
  // What appends get: some of it saturates, some is not finite, some heads have no finite number or
  // are of zeros.
  std::vector<double> random_values(std::int64_t tokens, int dim) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    std::normal_distribution<double> normal;
    std::vector<double> values(static_cast<std::size_t>(tokens * num_heads * dim));
    for (double& x : values) x = 2 * normal(random) * std::exp(normal(random));
    for (std::size_t i = 0; i < 50; ++i) {
      values[random() % values.size()] =
          std::array{kInfinity, -kInfinity, std::nan(""), 6e4, 1e-7}[random() % 5];
    }
    const std::array whole_heads{0.0, std::nan(""), -kInfinity};
    for (std::size_t i = 0; i < whole_heads.size(); ++i) {
      std::fill_n(values.begin() + static_cast<int>(i + 1) * num_heads * dim, dim, whole_heads[i]);
    }
    return values;
  }
  Tensor tensor(Device device, DType dtype, std::int64_t tokens, int dim) const {
    return {device,
            dtype,
            {tokens, num_heads, dim},
            GetParam().with_gaps ? with_gaps(num_heads, dim) : Layout{}};
  }
  void append(std::span<Cache* const> caches, const std::vector<SeqId>& ids,
              const std::vector<std::int32_t>& indptr) {
    const Float8Storage& c = GetParam();
    const std::int64_t tokens = indptr.back();
    for (int layer = 0; layer < kLayers; ++layer) {
      const auto k = random_values(tokens, c.head_dim), v = random_values(tokens, c.head_dim_v);
      for (Cache* const cache : caches) {
        const Device device = cache->manager.config().device;
        Tensor keys = tensor(device, c.input, tokens, c.head_dim);
        Tensor values = tensor(device, c.input_v, tokens, c.head_dim_v);
        keys.write(k);
        values.write(v);
        cache->manager.append_kv(keys.view(), values.view(),
                                 cache->sequences.pack_for_flashinfer(ids), indptr, layer);
      }
    }
  }
  const int num_heads = GetParam().num_heads;
  std::mt19937_64 random = random_source(6100);
};

TEST_P(CudaFloat8Storage, IsThatOfACpu) {
  const Float8Storage& c = GetParam();
  Cache host(config(), cpu()), device(config(), cuda(0));
  const std::array both{&host, &device};
  for (Cache* const cache : both) {
    cache->sequences.allocate({1, 2, 3}, {30, 5, c.most_tokens});
  }
  append(both, {1, 2, 3}, {0, 30, 35, 35 + c.most_tokens});
  EXPECT_TRUE(device.contents() == host.contents()) << "prefill";
  for (Cache* const cache : both) {
    cache->sequences.fork(1, 4, 25);
    cache->sequences.allocate_decoding({1, 2, 3, 4});  // copies a page
  }
  append(both, {1, 2, 3, 4}, {0, 1, 2, 3, 4});
  EXPECT_TRUE(device.contents() == host.contents()) << "decode";
  for (Cache* const cache : both) {
    cache->sequences.fork(3, 5);
    cache->sequences.keep(5, {0, 2, 3, 5, 17, 33, 40, 64});
    cache->sequences.truncate(4, 20);
  }
  EXPECT_TRUE(device.contents() == host.contents()) << "keep";

  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    std::vector<std::vector<std::byte>> read;
    for (Cache* const cache : both) {
      const Device here = cache->manager.config().device;
      const Tensor keys = tensor(here, dtype, 40, c.head_dim);
      const Tensor values = tensor(here, dtype, 40, c.head_dim_v);
      cache->manager.read_kv(cache->sequences.pages(3), 7, 40, keys.view(), values.view(), 1);
      for (const Tensor* const side : {&keys, &values}) {
        // As numbers: NaN has more than one form.
        std::vector<std::byte>& bytes = read.emplace_back();
        for (const double x : side->read()) {
          const double one = std::isnan(x) ? 12345 : x;
          const auto* const begin = reinterpret_cast<const std::byte*>(&one);
          bytes.insert(bytes.end(), begin, begin + sizeof(one));
        }
      }
    }
    EXPECT_TRUE(read[0] == read[2] && read[1] == read[3]) << to_string(dtype);
  }

  for (const SeqId id : {1, 3, 5}) {
    const auto state = save_sequence(device.sequences, id);
    EXPECT_TRUE(state == save_sequence(host.sequences, id));
    restore_sequence(device.sequences, 100 + id, state);
    EXPECT_TRUE(save_sequence(device.sequences, 100 + id) == state);
    restore_sequence(host.sequences, 100 + id, state);
  }
  EXPECT_TRUE(device.contents() == host.contents()) << "restore";
}

std::vector<Float8Storage> storages() {
  std::vector<Float8Storage> list;
  for (const KVScaling scaling : kScalings) {
    for (const KVLayout layout : {KVLayout::kNHD, KVLayout::kHND}) {
      for (const bool gaps : {false, true}) {
        for (const DType input : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
          Float8Storage c;
          c.scaling = scaling, c.layout = layout, c.with_gaps = gaps;
          c.input = c.input_v = input;
          const auto add = [&](const std::string& what) {
            c.name = std::string(to_string(scaling)) + "_" + std::string(to_string(layout)) + "_" +
                     std::string(to_string(input)) + (gaps ? "_gaps_" : "_packed_") + what;
            list.push_back(c);
          };
          add("128");
          c.num_heads = 19;  // of which a block takes sixteen
          add("128_19_heads");
          c.num_heads = kHeads;
          c.head_dim = 72, c.head_dim_v = 40, c.page_size = 5;
          add("72_40_page5");
          c.input_v = input == DType::kFloat32 ? DType::kBFloat16 : DType::kFloat32;
          add("72_40_page5_values_of_" + std::string(to_string(c.input_v)));
          c.input_v = input;
          c.most_tokens = 20001;  // of which a thread takes several
          if (input == DType::kBFloat16) add("72_40_page5_20001_tokens");
          c.most_tokens = 64;
          c.head_dim = 576, c.head_dim_v = 512, c.page_size = 1;
          add("576_512_page1");
        }
      }
    }
  }
  return list;
}

INSTANTIATE_TEST_SUITE_P(, CudaFloat8Storage, ::testing::ValuesIn(storages()),
                         [](const auto& test) { return test.param.name; });

class CudaFloat8 : public ::testing::TestWithParam<AttentionCase> {};

TEST_P(CudaFloat8, AgreesWithTheOracle) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(6200);
  const AttentionCase& c = GetParam();
  const bool has_gaps = c.name.find("Gaps") != std::string::npos;
  check_case(c, cuda(0), random, {.unused = Unused::kMixed, .with_gaps = has_gaps},
             has_gaps ? TensorLayout::kWithGaps : TensorLayout::kPacked);
}

std::vector<AttentionCase> cases() {
  std::vector<AttentionCase> list;
  for (const KVScaling scaling : kScalings) {
    for (const DType q_dtype : {DType::kFloat16, DType::kBFloat16}) {
      const auto add = [&](AttentionCase c, const std::string& name, auto change) {
        change(c);
        c.name = name + "_" + c.name;
        list.push_back(c);
      };
      // Of our own kernel alone, where there is one.
      const auto decode = [](AttentionCase& c) {
        c.rows = {{1, 1}, {1, 700}, {2, 33}, {1, 2500}, {2, 2}, {0, 20}, {1, 90}, {1, 5000}};
      };
      for (const int head_dim : {64, 128, 256}) {
        const AttentionCase base = float8_gpu_case(scaling, q_dtype, head_dim);
        add(base, "Mixed", [](AttentionCase&) {});
        add(base, "Decode", decode);
        add(base, "DecodeGapsHnd", [&](AttentionCase& c) {
          decode(c);
          c.kv_layout = KVLayout::kHND;
        });
        add(base, "DecodeOptions", [&](AttentionCase& c) {
          decode(c);
          c.window_left = 1000, c.logits_soft_cap = 3, c.sinks = true;
          c.out_dtype = DType::kFloat32;
        });
        AttentionCase longer = long_query_case(q_dtype, head_dim);
        longer.kv_dtype = DType::kFloat8E4M3, longer.kv_scaling = scaling;
        longer.name = base.name;
        add(longer, "Long", [](AttentionCase&) {});
      }
      const AttentionCase base = float8_gpu_case(scaling, q_dtype);
      add(base, "Mask", [](AttentionCase& c) { c.mask_density = 0.6; });
      add(base, "AllKeys", [](AttentionCase& c) { c.causal = false; });
      for (const int page_size : {5, 32, 48}) {
        add(base, "Page" + std::to_string(page_size),
            [page_size](AttentionCase& c) { c.page_size = page_size; });
        add(base, "DecodePage" + std::to_string(page_size), [&](AttentionCase& c) {
          decode(c);
          c.page_size = page_size;
        });
      }
      for (const int group : {1, 3, 7, 8, 16}) {
        add(base, "Group" + std::to_string(group), [group](AttentionCase& c) {
          c.num_qo_heads = 2 * group;
          c.rows = {{1, 700}, {1, 16}, {0, 5}, {1, 3000}};
        });
      }
    }
  }
  return list;
}

INSTANTIATE_TEST_SUITE_P(, CudaFloat8, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

// Queries of bfloat16 become float16 in our own kernel, which has less range.
TEST(CudaFloat8Queries, MayBeLargerThanFloat16) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(6201);
  for (const double size : {1e6, 1e-9}) {
    AttentionCase c = float8_gpu_case(KVScaling::kFixed, DType::kBFloat16);
    c.rows = {{1, 700}, {2, 33}};
    c.sm_scale = std::max(0.1 / size, 1e-3);
    c.logits_soft_cap = 5;
    auto rows = random_rows(c, random);
    for (ref::Row& row : rows) {
      for (double& x : row.q) x = rounded(c.q_dtype, x * size);
    }
    const PagedBatch batch(c, rows, cuda(0), random);
    expect_reference(c, rows, attend_on_gpu(c, rows, batch).tensors);
  }
}

// A token of no value adds nothing, however much of the weight is its own: the others, whose values
// are small, keep their precision.
TEST(CudaFloat8Values, OfZerosLeaveOthersTheirPrecision) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(6203);
  AttentionCase c = float8_gpu_case(KVScaling::kPerToken, DType::kBFloat16);
  c.rows = {{1, 300}, {1, 40}};
  auto rows = random_rows(c, random);
  for (ref::Row& row : rows) {
    for (std::size_t i = 0; i < row.v.size(); ++i) {
      const bool is_first = i < static_cast<std::size_t>(c.num_kv_heads * c.head_dim);
      row.v[i] = is_first ? 0 : row.v[i] * 0x1p-14;
    }
    c.store(row.v, c.dim_v(), /*of_values=*/true);
  }
  const PagedBatch batch(c, rows, cuda(0), random);
  expect_reference(c, rows, attend_on_gpu(c, rows, batch).tensors);
}

TEST(CudaFloat8Types, AreThoseOfTheDocumentation) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(6202);
  AttentionCase c = float8_gpu_case(KVScaling::kFixed, DType::kBFloat16);
  c.rows = {{1, 30}};
  const auto rows = random_rows(c, random);
  const PagedBatch batch(c, rows, cuda(0), random);
  const GpuResult result = attend_on_gpu(c, rows, batch);
  EXPECT_EQ(result.kernel, is_hopper() ? "cuda-decode-float8_e4m3fn" : "cuda-fa2-float8_e4m3fn");
  AttentionCase floats = c;
  floats.q_dtype = DType::kFloat32;
  EXPECT_THROW(attend_on_gpu(floats, rows, batch), UnsupportedError);
  AttentionCase mixed = c;
  mixed.out_dtype = DType::kFloat16;
  EXPECT_THROW(attend_on_gpu(mixed, rows, batch), UnsupportedError);
}

// Pages are not widened in a captured graph.
TEST(CudaFloat8Capacity, IsOfRowsThatOurOwnKernelTakes) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  AttentionCase c = float8_gpu_case(KVScaling::kPerToken, DType::kBFloat16);
  PagedKVCacheManager manager(c.cache_config(20, cuda(0)));
  PlanCapacity capacity{.max_sequences = 2, .max_q_tokens = 8, .max_pages = 20};
  capacity.max_q_len = 5;  // 20 query rows
  EXPECT_THROW(BatchAttention(manager, c.options(), capacity), UnsupportedError);
  capacity.max_q_len = 0;
  if (!is_hopper()) {
    EXPECT_THROW(BatchAttention(manager, c.options(), capacity), UnsupportedError);
    return;
  }
  BatchAttention attention(manager, c.options(), capacity);
  CacheDescriptor sequences(manager);
  sequences.allocate({1}, {40});
  const auto packed = sequences.pack_for_flashinfer({1});
  attention.plan(packed, {0, 4});
  EXPECT_THROW(attention.plan(packed, {0, 5}), UnsupportedError);
}

}  // namespace
}  // namespace seqattn::testing
