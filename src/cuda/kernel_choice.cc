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
std::string way_out(const AttentionShape& shape, AttentionMask mask, bool general) {
  const bool is_compilable =
      shape.kv_dtype != DType::kFloat32 &&
      (shape.head_dim == 64 || shape.head_dim == 128 || shape.head_dim == 256);
  if (!is_compilable)
    return "; its kernels are for float16 and bfloat16 with head_dim 64, 128, 256";
  const char* const name = mask == AttentionMask::kNone     ? "none"
                           : mask == AttentionMask::kCausal ? "causal"
                                                            : "custom";
  return concat(": add the line \"fa2 ", to_string(shape.kv_dtype), " ", shape.head_dim, " ", name,
                general ? " general" : " plain", "\" to src/cuda/instances.cmake for more");
}

const Fa2Instance* find_fa2(const AttentionShape& shape, AttentionMask mask, bool general) {
  for (const Fa2Instance* instance : fa2_instances()) {
    if (instance->dtype == shape.kv_dtype && instance->head_dim == shape.head_dim &&
        instance->mask == mask && instance->general == general) {
      return instance;
    }
  }
  throw UnsupportedError(concat("attention of ", to_string(shape.kv_dtype), " with head_dim ",
                                shape.head_dim, " on a CUDA device; this build holds ", compiled(),
                                way_out(shape, mask, general)));
}

const Fa3Instance* find_fa3(const AttentionShape& shape, bool general) {
  if (!is_hopper(shape.device.index)) return nullptr;
  const auto instances = fa3_instances();
  const auto found =
      std::find_if(instances.begin(), instances.end(), [&](const Fa3Instance& instance) {
        return instance.dtype == shape.kv_dtype && instance.head_dim == shape.head_dim &&
               instance.causal == shape.causal && instance.general == general;
      });
  return found == instances.end() ? nullptr : &*found;
}

}  // namespace

bool is_hopper(int device) {
  int major = 0, minor = 0;
  SEQATTN_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  SEQATTN_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return major == 9 && minor == 0;
}

KernelChoice choose_kernels(const AttentionShape& shape) {
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
  const bool general = shape.window_left >= 0 || shape.logits_soft_cap > 0;
  return {.unmasked = find_fa2(shape, shape.causal ? AttentionMask::kCausal : AttentionMask::kNone,
                               general),
          .masked = find_fa2(shape, AttentionMask::kCustom, /*general=*/true),
          .fa3 = find_fa3(shape, general),
          .dtype = shape.kv_dtype};
}

void KernelChoice::prepare() const {
  check_cuda(unmasked->prepare(), "cudaFuncSetAttribute");
  check_cuda(masked->prepare(), "cudaFuncSetAttribute");
  if (fa3 != nullptr) check_cuda(fa3->prepare(), "cudaFuncSetAttribute");
}

std::string KernelChoice::name(bool uses_decode, bool uses_fa2, bool uses_fa3) const {
  std::string paths;
  const auto add = [&](bool is_used, const char* path) {
    if (is_used) paths += concat(paths.empty() ? "" : "+", path);
  };
  add(uses_decode, "decode");
  add(uses_fa2, "fa2");
  add(uses_fa3, "fa3");
  return concat("cuda-", paths, "-", to_string(dtype));
}

}  // namespace seqattn
