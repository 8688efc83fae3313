#include "kernel_choice.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "cuda_check.h"
#include "message.h"
#include "seqattn/error.h"

namespace seqattn {
namespace {

std::string compiled() {
  std::string text;
  for (const Fa2Instance* instance : fa2_instances()) {
    if (instance->mask != AttentionMask::kCausal || instance->general) continue;
    text += concat(text.empty() ? "" : ", ", to_string(instance->dtype), " with head_dim ",
                   instance->head_dim);
  }
  return text;
}

// The line that adds what is missing, where FlashInfer has such a kernel.
std::string way_out(const AttentionShape& shape, DType dtype, AttentionMask mask, bool general) {
  const bool is_compilable =
      dtype != DType::kFloat32 &&
      (shape.head_dim == 64 || shape.head_dim == 128 || shape.head_dim == 256);
  if (!is_compilable)
    return "; its kernels are for float16 and bfloat16 with head_dim 64, 128, 256";
  const char* const name = mask == AttentionMask::kNone     ? "none"
                           : mask == AttentionMask::kCausal ? "causal"
                                                            : "custom";
  return concat(": add the line \"fa2 ", to_string(dtype), " ", shape.head_dim, " ", name,
                general ? " general" : " plain", "\" to src/cuda/instances.cmake for more");
}

const Fa2Instance* find_fa2(const AttentionShape& shape, DType dtype, AttentionMask mask,
                            bool general) {
  for (const Fa2Instance* instance : fa2_instances()) {
    if (instance->dtype == dtype && instance->head_dim == shape.head_dim &&
        instance->mask == mask && instance->general == general) {
      return instance;
    }
  }
  throw UnsupportedError(concat("attention of ", to_string(dtype), " with head_dim ",
                                shape.head_dim, " on a CUDA device; this build holds ", compiled(),
                                way_out(shape, dtype, mask, general)));
}

const Fa3Instance* find_fa3(const AttentionShape& shape, DType dtype, bool general) {
  if (!is_hopper(shape.device.index)) return nullptr;
  const auto instances = fa3_instances();
  const auto found =
      std::find_if(instances.begin(), instances.end(), [&](const Fa3Instance& instance) {
        return instance.dtype == dtype && instance.head_dim == shape.head_dim &&
               instance.causal == shape.causal && instance.general == general;
      });
  return found == instances.end() ? nullptr : &*found;
}

// Our own kernel takes sm_90a, pages of whole tiles and no more query heads a KV head than it has
// rows.
const decode::Instance* find_decode(const AttentionShape& shape, DType q_dtype, int query_rows) {
  if (shape.page_size % decode::kTileTokens != 0 || !is_hopper(shape.device.index)) return nullptr;
  if (shape.group_size() > query_rows) return nullptr;
  const auto instances = decode::instances();
  const auto found =
      std::find_if(instances.begin(), instances.end(), [&](const decode::Instance& instance) {
        return instance.q_dtype == q_dtype && instance.kv_dtype == shape.kv_dtype &&
               instance.head_dim == shape.head_dim && instance.query_rows == query_rows;
      });
  return found == instances.end() ? nullptr : &*found;
}

// Throws UnsupportedError.
KernelChoice choose(const AttentionShape& shape, DType q_dtype) {
  const bool general = shape.window_left >= 0 || shape.logits_soft_cap > 0;
  const AttentionMask mask = shape.causal ? AttentionMask::kCausal : AttentionMask::kNone;
  return {.q_dtype = q_dtype,
          .unmasked = find_fa2(shape, q_dtype, mask, general),
          .masked = find_fa2(shape, q_dtype, AttentionMask::kCustom, /*general=*/true),
          .fa3 = find_fa3(shape, q_dtype, general),
          .decode = find_decode(shape, q_dtype, decode::kFewQueryRows),
          .wide_decode = find_decode(shape, q_dtype, decode::kMaxQueryRows)};
}

}  // namespace

bool is_hopper(int device) {
  int major = 0, minor = 0;
  SEQATTN_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  SEQATTN_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return major == 9 && minor == 0;
}

std::vector<KernelChoice> choose_kernels(const AttentionShape& shape) {
  if (shape.head_dim != shape.head_dim_v) {
    throw UnsupportedError(concat("head_dim ", shape.head_dim, " and head_dim_v ", shape.head_dim_v,
                                  " on a CUDA device; its kernels take equal ones"));
  }
  // They take the maximum of logits before the scale, and -5e4 for one that is hidden.
  constexpr float kLeastScale = 1e-3f;
  if (!(shape.sm_scale >= kLeastScale)) {
    throw UnsupportedError(concat("sm_scale ", shape.sm_scale,
                                  " on a CUDA device; its kernels take ", kLeastScale, " or more"));
  }
  // Hidden logits are -5e4 times the cap then.
  if (shape.logits_soft_cap > 0 && shape.logits_soft_cap < kLeastScale) {
    throw UnsupportedError(concat("logits_soft_cap ", shape.logits_soft_cap,
                                  " on a CUDA device; its kernels take 0, for none, or ",
                                  kLeastScale, " and more"));
  }
  if (!has_scales(shape.kv_dtype)) return {choose(shape, shape.kv_dtype)};
  std::vector<KernelChoice> choices;
  std::string missing;
  for (const DType q_dtype : {DType::kBFloat16, DType::kFloat16}) {
    try {
      choices.push_back(choose(shape, q_dtype));
    } catch (const UnsupportedError& error) {
      missing = error.what();
    }
  }
  if (choices.empty()) throw UnsupportedError(missing);
  return choices;
}

void KernelChoice::prepare() const {
  check_cuda(unmasked->prepare(), "cudaFuncSetAttribute");
  check_cuda(masked->prepare(), "cudaFuncSetAttribute");
  if (fa3 != nullptr) check_cuda(fa3->prepare(), "cudaFuncSetAttribute");
  for (const decode::Instance* instance : {decode, wide_decode}) {
    if (instance != nullptr) check_cuda(instance->prepare(), "cudaFuncSetAttribute");
  }
}

std::string kernel_name(DType kv_dtype, bool uses_decode, bool uses_fa2, bool uses_fa3) {
  std::string paths;
  const auto add = [&](bool is_used, const char* path) {
    if (is_used) paths += concat(paths.empty() ? "" : "+", path);
  };
  add(uses_decode, "decode");
  add(uses_fa2, "fa2");
  add(uses_fa3, "fa3");
  return concat("cuda-", paths, "-", to_string(kv_dtype));
}

}  // namespace seqattn
