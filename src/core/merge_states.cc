#include <array>
#include <span>

#include "apart_check.h"
#include "backend.h"
#include "message.h"
#include "seqattn/batch_attention.h"
#include "tensor_check.h"

namespace seqattn {
void merge_states(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                  const TensorView& lse_b, const TensorView& out, const TensorView& lse,
                  Stream stream) {
  require(out_a.rank == 3, "out_a: got ", out_a.to_string(), "; expected [tokens, heads, dim]");
  const std::span<const std::int64_t> shape(out_a.shape.data(), 3);
  const auto check_out = [&](const char* name, const TensorView& tensor, bool output) {
    check_tensor(tensor, {.name = name,
                          .shape = shape,
                          .dtype = kAnyUnscaled,
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

  const std::array outs{NamedTensor{"out_a", out_a}, NamedTensor{"out_b", out_b}};
  const std::array lses{NamedTensor{"lse_a", lse_a}, NamedTensor{"lse_b", lse_b}};
  check_apart({"out", out}, lses, outs);
  check_apart({"lse", lse}, outs, lses);
  check_apart({"lse", lse}, std::array{NamedTensor{"out", out}});
  Backend& backend = find_backend(out_a.device);
  if (out.num_elements() == 0 && lse_a.num_elements() == 0) return;
  backend.merge_states(out_a, lse_a, out_b, lse_b, out, lse, stream);
}

}  // namespace seqattn
