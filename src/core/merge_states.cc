#include <array>
#include <span>

#include "backend.h"
#include "message.h"
#include "seqattn/batch_attention.h"
#include "tensor_check.h"

namespace seqattn {
namespace {

struct Named {
  const char* name;
  const TensorView& tensor;
};

bool is_same(const TensorView& a, const TensorView& b) noexcept {
  if (a.data != b.data || a.dtype != b.dtype || a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; ++i) {
    if (a.shape[i] > 1 && a.strides[i] != b.strides[i]) return false;
  }
  return true;
}

// An output may be the very input that it replaces, element for element; any other meeting would
// overwrite what is still to be read.
void check_apart(const Named& output, std::span<const Named> twins, std::span<const Named> others) {
  const auto refuse = [&](const Named& other) {
    throw InvalidArgumentError(concat(output.name, ": shares memory with ", other.name,
                                      "; expected an output of its own, or in place of an input"));
  };
  for (const Named& twin : twins) {
    if (ranges_meet(output.tensor, twin.tensor) && !is_same(output.tensor, twin.tensor)) {
      refuse(twin);
    }
  }
  for (const Named& other : others) {
    if (ranges_meet(output.tensor, other.tensor)) refuse(other);
  }
}

}  // namespace

void merge_states(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                  const TensorView& lse_b, const TensorView& out, const TensorView& lse,
                  Stream stream) {
  require(out_a.rank == 3, "out_a: got ", out_a.to_string(), "; expected [tokens, heads, dim]");
  const std::span<const std::int64_t> shape(out_a.shape.data(), 3);
  const auto check_out = [&](const char* name, const TensorView& tensor, bool output) {
    check_tensor(tensor, {.name = name,
                          .shape = shape,
                          .dtype = tensor.dtype,
                          .device = out_a.device,
                          .output = output});
  };
  const auto check_lse = [&](const char* name, const TensorView& tensor, bool output) {
    check_tensor(tensor, {.name = name,
                          .shape = shape.first(2),
                          .dtype = DType::kFloat32,
                          .device = out_a.device,
                          .output = output});
  };
  check_out("out_a", out_a, false);
  check_lse("lse_a", lse_a, false);
  check_out("out_b", out_b, false);
  check_lse("lse_b", lse_b, false);
  check_out("out", out, true);
  if (lse) check_lse("lse", lse, true);

  const std::array outs{Named{"out_a", out_a}, Named{"out_b", out_b}};
  const std::array lses{Named{"lse_a", lse_a}, Named{"lse_b", lse_b}};
  check_apart({"out", out}, outs, lses);
  if (lse) {
    check_apart({"lse", lse}, lses, outs);
    require(!ranges_meet(lse, out), "lse: shares memory with out; expected an output of its own");
  }
  Backend& backend = find_backend(out_a.device);
  if (out.num_elements() == 0 && lse_a.num_elements() == 0) return;
  backend.merge_states(out_a, lse_a, out_b, lse_b, out, lse, stream);
}

}  // namespace seqattn
