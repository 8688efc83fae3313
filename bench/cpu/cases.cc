#include "cases.h"

#include <array>
#include <string_view>

namespace seqattn::bench {
namespace {

std::string short_length(std::int64_t n) {
  return n % 1024 == 0 ? std::to_string(n / 1024) + "k" : std::to_string(n);
}

std::string_view short_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "f32";
    case DType::kFloat16:
      return "f16";
    case DType::kBFloat16:
      return "bf16";
    case DType::kFloat8E4M3:
      return "e4m3";
  }
  return "";
}

// The shapes of a 7B model with grouped queries, and of a very small one.
struct Heads {
  int num_qo_heads, num_kv_heads, head_dim;
};
constexpr std::array<Heads, 2> kModels = {{{32, 8, 128}, {9, 3, 64}}};
// Other head dimensions, decode alone.
constexpr std::array<Heads, 2> kOthers = {{{32, 8, 96}, {16, 4, 256}}};

CpuCase make(const Heads& heads, DType dtype, KVLayout layout, int batch, std::int64_t q_len,
             std::int64_t kv_len) {
  return {
      heads.num_qo_heads, heads.num_kv_heads, heads.head_dim, dtype, layout, batch, q_len, kv_len};
}

}  // namespace

std::string CpuCase::name() const {
  const std::string shape = std::to_string(num_qo_heads) + "," + std::to_string(num_kv_heads) +
                            "," + std::to_string(head_dim) + "/" +
                            std::string(short_name(kv_dtype)) + "/" +
                            (layout == KVLayout::kHND ? "HND" : "NHD") + "/";
  if (is_decode()) return "decode/" + shape + std::to_string(batch) + "x" + short_length(kv_len);
  return "prefill/" + shape + std::to_string(q_len) + "@" + short_length(kv_len);
}

double CpuCase::kv_bytes() const {
  return 2.0 * batch * static_cast<double>(kv_len) * num_kv_heads * head_dim *
         static_cast<double>(size_of(kv_dtype));
}

double CpuCase::flops() const {
  const double seen = static_cast<double>(q_len) *
                      (static_cast<double>(kv_len) - (static_cast<double>(q_len) - 1) / 2);
  return 4.0 * batch * num_qo_heads * head_dim * seen;
}

std::int64_t CpuCase::num_pages() const { return batch * (kv_len / kPageSize); }

std::vector<CpuCase> all_cpu_cases() {
  std::vector<CpuCase> cases;
  const auto half = DType::kFloat16;
  for (const KVLayout layout : {KVLayout::kHND, KVLayout::kNHD}) {
    for (const int batch : {1, 8}) {
      for (const std::int64_t kv_len : {1024, 4096, 32768}) {
        cases.push_back(make(kModels[0], half, layout, batch, 1, kv_len));
      }
    }
  }
  for (const KVLayout layout : {KVLayout::kHND, KVLayout::kNHD}) {
    for (const int batch : {1, 8}) {
      if (layout == KVLayout::kNHD && batch > 1) continue;
      for (const std::int64_t kv_len : {1024, 4096, 32768}) {
        cases.push_back(make(kModels[1], half, layout, batch, 1, kv_len));
      }
    }
  }
  for (const Heads& other : kOthers) {
    cases.push_back(make(other, half, KVLayout::kHND, 1, 1, 4096));
  }
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    for (const std::int64_t kv_len : {1024, 4096, 32768}) {
      cases.push_back(make(kModels[0], dtype, KVLayout::kHND, 1, 1, kv_len));
    }
  }
  struct Queries {
    std::int64_t q_len, kv_len;
  };
  for (const Heads& model : kModels) {
    for (const DType dtype : {half, DType::kBFloat16}) {
      for (const auto& [q_len, kv_len] :
           {Queries{512, 1024}, Queries{512, 4096}, Queries{2048, 4096}, Queries{512, 32768},
            Queries{2048, 32768}}) {
        if (kv_len == 32768 && dtype != half) continue;
        if (q_len * kv_len > 2048 * 4096 * 4 && model.num_qo_heads > 9) continue;  // ten minutes
        cases.push_back(make(model, dtype, KVLayout::kNHD, 1, q_len, kv_len));
      }
    }
  }
  return cases;
}

std::vector<CpuCase> context_cases() {
  std::vector<CpuCase> cases;
  for (std::int64_t kv_len = 1024; kv_len <= 131072; kv_len *= 2) {
    cases.push_back(make(kModels[0], DType::kFloat16, KVLayout::kHND, 1, 1, kv_len));
  }
  return cases;
}

std::vector<CpuCase> batch_cases() {
  std::vector<CpuCase> cases;
  for (int batch = 1; batch <= 256; batch *= 2) {
    cases.push_back(make(kModels[0], DType::kFloat16, KVLayout::kHND, batch, 1, 1024));
  }
  return cases;
}

}  // namespace seqattn::bench
