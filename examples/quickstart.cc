// seqattn in one sitting: three sequences are prefilled and decoded, one of them is forked, and
// both branches go on. Every output is compared with naive attention in double precision.
//
//   ids and lengths -> CacheDescriptor -> page tables -> BatchAttention: plan, append_kv, run

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iterator>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "reference_attention.h"
#include "seqattn/half.h"
#include "seqattn/seqattn.h"

namespace {

using namespace seqattn;

constexpr int kNumHeads = 32;
constexpr int kHeadDim = 128;
constexpr int kTokenSize = kNumHeads * kHeadDim;

using Tokens = std::vector<float>;  // [count, kNumHeads, kHeadDim]

Tokens random_tokens(int count) {
  static std::mt19937 source(2024);
  std::uniform_real_distribution<float> uniform(-1, 1);
  Tokens tokens(static_cast<std::size_t>(count * kTokenSize));
  for (float& x : tokens) x = uniform(source);
  return tokens;
}

TensorView view(Tokens& tokens) {
  const auto count = static_cast<std::int64_t>(tokens.size()) / kTokenSize;
  return TensorView::contiguous(tokens.data(), DType::kFloat32, {count, kNumHeads, kHeadDim});
}

// How far float32 may be from the oracle with q, k and v in [-1, 1], u being the unit roundoff. A
// sum of n terms is off by up to n u times the sum of their magnitudes. A logit's terms add up to
// sqrt(head_dim) at most, so it is off by head_dim sqrt(head_dim) u, and a softmax weight
// relatively by twice that; numerator and denominator of the output are sums over kv_len keys; 16 u
// covers exp and the single roundings.
double tolerance(std::int64_t kv_len) {
  constexpr double kUnitRoundoff = std::numeric_limits<float>::epsilon() / 2;
  const double logit_error = kHeadDim * std::sqrt(static_cast<double>(kHeadDim));
  return (2 * logit_error + 2 * static_cast<double>(kv_len) + 16) * kUnitRoundoff;
}

// A model with one layer and no weights: random queries, keys and values.
class Quickstart {
 public:
  int run();

 private:
  void attend(const std::vector<SeqId>& seq_ids, const std::vector<int>& num_new);
  void compare(ref::Row& row, const float* keys, const float* values, const float* q,
               const float* out, int num_new);
  void print_page_tables(const char* title) const;

  // 1024 pages of 16 tokens. HND keeps the tokens of a head together, which CPUs like.
  PagedKVCacheManager manager_{{.num_pages = 1024,
                                .page_size = 16,
                                .num_heads = kNumHeads,
                                .head_dim = kHeadDim,
                                .dtype = DType::kFloat16,
                                .kv_layout = KVLayout::kHND}};
  CacheDescriptor sequences_{manager_};
  BatchAttention attention_{manager_, {.num_qo_heads = kNumHeads}};
  std::map<SeqId, ref::Row> rows_;  // the oracle's own record of every sequence, without pages
  double largest_error_ = 0;
  double worst_ratio_ = 0;  // of an error to its tolerance
};

int Quickstart::run() {
  // Prefill. Say how much each sequence grows; its pages are found and listed for you.
  sequences_.allocate({1, 2, 3}, {100, 150, 80});
  attend({1, 2, 3}, {100, 150, 80});
  print_page_tables("prefill of sequences 1, 2 and 3");

  // Decode: one more token for each. A step is the same three calls.
  for (int i = 0; i < 4; ++i) {
    sequences_.allocate_decoding({1, 2, 3});
    attend({1, 2, 3}, {1, 1, 1});
  }
  print_page_tables("4 decode steps later");

  // Fork: sequence 4 starts as all that sequence 1 is. Nothing is copied, the pages are shared.
  sequences_.fork(1, 4);
  rows_[4] = rows_[1];
  print_page_tables("sequence 4 forked from 1");

  // Copy on write: their last page is partly filled, so the first to grow gets a copy of it.
  for (int i = 0; i < 12; ++i) {
    for (const PageCopy& copy : sequences_.allocate_decoding({1, 4}))
      std::printf("\npage %d was copied to page %d before writing\n", copy.source, copy.target);
    attend({1, 4}, {1, 1});
  }
  print_page_tables("12 decode steps of 1 and 4 later");

  sequences_.release({1, 2, 3, 4});
  std::printf("\nreleased: %lld of 1024 pages are free\n",
              static_cast<long long>(manager_.available_pages_count()));
  std::printf("kernel %s, largest error %.2g, %.2g of the tolerance\n",
              std::string(attention_.kernel_name()).c_str(), largest_error_, worst_ratio_);
  return worst_ratio_ <= 1 ? 0 : 1;
}

// The new tokens go into the pages; then their queries attend to all that stands there.
void Quickstart::attend(const std::vector<SeqId>& seq_ids, const std::vector<int>& num_new) {
  // The batch is ragged: row i has the tokens indptr[i] .. indptr[i + 1].
  std::vector<std::int32_t> indptr = {0};
  for (const int n : num_new) indptr.push_back(indptr.back() + n);
  Tokens keys = random_tokens(indptr.back());
  Tokens values = random_tokens(indptr.back());
  Tokens q = random_tokens(indptr.back());
  Tokens out(q.size(), std::numeric_limits<float>::quiet_NaN());

  attention_.plan(sequences_.pack_for_flashinfer(seq_ids), indptr);
  attention_.append_kv(view(keys), view(values));  // float32 in, float16 in the cache
  attention_.run(view(q), view(out));

  for (std::size_t i = 0; i < seq_ids.size(); ++i) {
    const std::ptrdiff_t first = std::ptrdiff_t{indptr[i]} * kTokenSize;
    compare(rows_[seq_ids[i]], keys.data() + first, values.data() + first, q.data() + first,
            out.data() + first, num_new[i]);
  }
}

// Lets the oracle see a sequence's new tokens, and holds the output against what it says.
void Quickstart::compare(ref::Row& row, const float* keys, const float* values, const float* q,
                         const float* out, int num_new) {
  const auto as_cached = [](float x) -> double { return from_float16(to_float16(x)); };
  const int size = num_new * kTokenSize;
  std::transform(keys, keys + size, std::back_inserter(row.k), as_cached);
  std::transform(values, values + size, std::back_inserter(row.v), as_cached);
  row.q.assign(q, q + size);
  row.num_qo_heads = row.num_kv_heads = kNumHeads;
  row.head_dim = row.head_dim_v = kHeadDim;
  row.q_len = num_new;
  row.kv_len += num_new;
  const double sm_scale = 1 / std::sqrt(static_cast<double>(kHeadDim));
  for (const double expected : ref::attention(row, {.sm_scale = sm_scale}).out) {
    double error = std::abs(*out++ - expected);
    if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
    largest_error_ = std::max(largest_error_, error);
    worst_ratio_ = std::max(worst_ratio_, error / tolerance(row.kv_len));
  }
}

void Quickstart::print_page_tables(const char* title) const {
  const Stats stats = sequences_.stats();
  std::printf("\n%s: %lld pages in use, %lld of them shared\n", title,
              static_cast<long long>(stats.num_pages),
              static_cast<long long>(stats.num_shared_pages));
  for (const auto& [seq_id, row] : rows_) {
    std::printf("  sequence %lld, %lld tokens, pages", static_cast<long long>(seq_id),
                static_cast<long long>(sequences_.length(seq_id)));
    for (const PageId page : sequences_.pages(seq_id)) std::printf(" %d", page);
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) {
    const bool is_help = argc == 2 && argv[1] == std::string("--help");
    std::fprintf(is_help ? stdout : stderr, "usage: quickstart (it takes no arguments)\n");
    return is_help ? 0 : 2;
  }
  try {
    return Quickstart().run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quickstart: %s\n", error.what());
    return 1;
  }
}
