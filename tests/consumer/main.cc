// Two decode steps through an installed seqattn. All values are equal, so attention returns that
// value: the program finds out whether headers, library and backends arrived, not whether attention
// is right.
#include <cstdio>
#include <vector>

#include "seqattn/seqattn.h"

int main() {
  using namespace seqattn;
  constexpr int kHeads = 2, kQueryHeads = 4, kHeadDim = 8;
  PagedKVCacheManager manager({.num_pages = 8,
                               .page_size = 4,
                               .num_heads = kHeads,
                               .head_dim = kHeadDim,
                               .dtype = DType::kFloat32});
  CacheDescriptor sequences(manager);
  BatchAttention attention(manager, {.num_qo_heads = kQueryHeads});

  std::vector<float> kv(kHeads * kHeadDim, 0.5f), q(kQueryHeads * kHeadDim, 1.0f), out(q.size());
  const TensorView keys = TensorView::contiguous(kv.data(), DType::kFloat32, {1, kHeads, kHeadDim});
  for (int step = 0; step < 2; ++step) {
    sequences.allocate({7}, {1});
    attention.plan(sequences.pack_for_flashinfer({7}), std::vector<int>{0, 1});
    attention.append_kv(keys, keys);
    attention.run(TensorView::contiguous(q.data(), DType::kFloat32, {1, kQueryHeads, kHeadDim}),
                  TensorView::contiguous(out.data(), DType::kFloat32, {1, kQueryHeads, kHeadDim}));
  }
  for (const float x : out) {
    if (!(x > 0.499f && x < 0.501f)) {
      std::fprintf(stderr, "expected 0.5 everywhere, got %g\n", static_cast<double>(x));
      return 1;
    }
  }
  try {
    manager.pool().allocate(100);
  } catch (const NoPageError& error) {  // typed across the border of a shared library too
    std::printf("%s: %s\n", std::string(attention.kernel_name()).c_str(), error.what());
    return 0;
  }
  return 1;
}
