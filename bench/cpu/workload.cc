#include "workload.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>

#include "element.h"
#include "reference_attention.h"

namespace seqattn::bench {
namespace {

constexpr std::size_t kMemoryPage = 4096;
// The reader prefetches two pieces ahead, which have to fit the second-level cache.
constexpr std::size_t kPlainPiece = std::size_t{1} << 15;

std::size_t layer_bytes(const CpuCase& spec) {
  return static_cast<std::size_t>(spec.kv_bytes()) / 2;  // keys, or values
}

// Normally distributed, drawn from a table: real draws would take longer than the benchmark.
void fill(DType dtype, const std::vector<float>& table, std::mt19937_64& random, Bytes& bytes) {
  const auto size = static_cast<std::size_t>(size_of(dtype));
  std::uint64_t bits = 0;
  for (std::size_t i = 0; i < bytes.size() / size; ++i) {
    if (i % 4 == 0) bits = random();
    ref::encode(dtype, table[bits & 0xffff], bytes.data() + i * size);
    bits >>= 16;
  }
}

std::vector<float> normal_table(std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<float> table(1 << 16);
  for (float& value : table) value = normal(random);
  return table;
}

std::vector<std::int32_t> steps(int count, std::int64_t step) {
  std::vector<std::int32_t> indptr;
  for (int i = 0; i <= count; ++i) indptr.push_back(static_cast<std::int32_t>(i * step));
  return indptr;
}

std::vector<double> doubles(DType dtype, const Bytes& bytes, std::int64_t first,
                            std::int64_t count) {
  std::vector<double> result(static_cast<std::size_t>(count));
  const std::int64_t size = size_of(dtype);
  for (std::int64_t i = 0; i < count; ++i) {
    result[static_cast<std::size_t>(i)] = ref::decode(dtype, bytes.data() + (first + i) * size);
  }
  return result;
}

}  // namespace

Bytes::Bytes(std::size_t size) : size_(size) {
  const std::size_t rounded = (size + kMemoryPage - 1) / kMemoryPage * kMemoryPage;
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kMemoryPage, rounded)));
  if (!memory_) throw std::bad_alloc();
}

void Bytes::Free::operator()(std::byte* memory) const noexcept { std::free(memory); }

Inputs::Inputs(const CpuCase& spec, std::mt19937_64& random)
    : keys(layer_bytes(spec)),
      values(layer_bytes(spec)),
      queries(
          static_cast<std::size_t>(spec.batch * spec.q_len * spec.num_qo_heads * spec.head_dim)) {
  const std::vector<float> table = normal_table(random);
  fill(spec.kv_dtype, table, random, keys);
  fill(spec.kv_dtype, table, random, values);
  for (float& value : queries) value = table[random() & 0xffff];
}

Inputs to_half(const Inputs& inputs) {
  const auto convert = [](const Bytes& from) {
    Bytes to(from.size());
    for (std::size_t i = 0; i < from.size(); i += 2) {
      ref::encode(DType::kFloat16, ref::decode(DType::kBFloat16, from.data() + i), to.data() + i);
    }
    return to;
  };
  return {convert(inputs.keys), convert(inputs.values), inputs.queries};
}

int num_layers(const CpuCase& spec) {
  return static_cast<int>(std::ceil(512.0 * (1 << 20) / spec.kv_bytes()));
}

double largest_error(const CpuCase& spec, const Inputs& inputs, const std::vector<float>& out) {
  const std::int64_t token = std::int64_t{spec.num_kv_heads} * spec.head_dim;
  const std::int64_t query = std::int64_t{spec.num_qo_heads} * spec.head_dim;
  double error = 0;
  for (const int sequence : {0, spec.batch - 1}) {
    for (const std::int64_t q : {std::int64_t{0}, spec.q_len / 2, spec.q_len - 1}) {
      ref::Row row;
      row.num_qo_heads = spec.num_qo_heads;
      row.num_kv_heads = spec.num_kv_heads;
      row.head_dim = row.head_dim_v = spec.head_dim;
      row.q_len = 1;
      row.kv_len = spec.kv_len - spec.q_len + q + 1;
      const std::int64_t first = sequence * spec.kv_len * token;
      row.k = doubles(spec.kv_dtype, inputs.keys, first, row.kv_len * token);
      row.v = doubles(spec.kv_dtype, inputs.values, first, row.kv_len * token);
      const std::int64_t at = (sequence * spec.q_len + q) * query;
      row.q.assign(inputs.queries.begin() + at, inputs.queries.begin() + at + query);
      const auto expected =
          ref::attention(row, {.sm_scale = 1 / std::sqrt(static_cast<double>(spec.head_dim))});
      for (std::int64_t i = 0; i < query; ++i) {
        const double difference = std::fabs(out[static_cast<std::size_t>(at + i)] -
                                            expected.out[static_cast<std::size_t>(i)]);
        if (!(difference <= error)) error = difference;  // NaN, too
      }
      if (spec.is_decode()) break;
    }
    if (spec.batch == 1) break;
  }
  return error;
}

SeqattnSide::SeqattnSide(const CpuCase& spec, const Inputs& inputs, std::mt19937_64& random)
    : spec_(spec), inputs_(inputs) {
  const std::int64_t heads = spec.num_kv_heads, dim = spec.head_dim;
  const std::vector<std::int64_t> shape =
      spec.layout == KVLayout::kHND
          ? std::vector<std::int64_t>{spec.num_pages(), heads, kPageSize, dim}
          : std::vector<std::int64_t>{spec.num_pages(), kPageSize, heads, dim};
  std::vector<TensorView> keys, values;
  for (int layer = 0; layer < num_layers(spec); ++layer) {
    for (auto* storage : {&keys_, &values_}) storage->emplace_back(layer_bytes(spec));
    keys.push_back(TensorView::contiguous(keys_.back().data(), spec.kv_dtype, shape));
    values.push_back(TensorView::contiguous(values_.back().data(), spec.kv_dtype, shape));
  }
  manager_ = PagedKVCacheManager::from_tensors(keys, values,
                                               {.num_pages = spec.num_pages(),
                                                .page_size = kPageSize,
                                                .num_heads = spec.num_kv_heads,
                                                .head_dim = spec.head_dim,
                                                .num_layers = num_layers(spec),
                                                .dtype = spec.kv_dtype,
                                                .kv_layout = spec.layout});
  pages_ = manager_->allocate(spec.num_pages());
  std::shuffle(pages_.begin(), pages_.end(), random);
  packed_ = FlashInferPackedData(pages_, steps(spec.batch, spec.kv_len / kPageSize),
                                 std::vector<std::int32_t>(spec.batch, kPageSize));
  const std::vector<std::int64_t> tokens{spec.batch * spec.kv_len, heads, dim};
  for (int layer = 0; layer < num_layers(spec); ++layer) {
    manager_->append_kv(TensorView::contiguous(inputs.keys.data(), spec.kv_dtype, tokens),
                        TensorView::contiguous(inputs.values.data(), spec.kv_dtype, tokens),
                        packed_, steps(spec.batch, spec.kv_len), layer);
  }
}

void SeqattnSide::use_threads(int num_threads) {
  for (const bool rounded : {false, true}) {
    auto& attention = rounded ? rounded_attention_ : attention_;
    attention = std::make_unique<BatchAttention>(
        *manager_, AttentionOptions{.num_qo_heads = spec_.num_qo_heads,
                                    .num_threads = num_threads,
                                    .bfloat16_products = rounded});
    attention->plan(packed_, steps(spec_.batch, spec_.q_len));
  }
}

bool SeqattnSide::has_bfloat16_products() const {
  return attention_->kernel_name() != rounded_attention_->kernel_name();
}

void SeqattnSide::run(int layer, std::vector<float>& out, bool rounded) const {
  const std::vector<std::int64_t> shape{spec_.batch * spec_.q_len, spec_.num_qo_heads,
                                        spec_.head_dim};
  const BatchAttention& attention = rounded ? *rounded_attention_ : *attention_;
  attention.run(TensorView::contiguous(inputs_.queries.data(), DType::kFloat32, shape),
                TensorView::contiguous(out.data(), DType::kFloat32, shape), {}, layer);
}

Reader SeqattnSide::plain_reader(int layer, int num_threads) const {
  std::vector<const std::byte*> pieces;
  const std::size_t piece = std::min(kPlainPiece, keys_[layer].size());
  for (const Bytes* bytes : {&keys_[layer], &values_[layer]}) {
    for (std::size_t at = 0; at + piece <= bytes->size(); at += piece) {
      pieces.push_back(bytes->data() + at);
    }
  }
  return {pieces, piece, num_threads};
}

Reader SeqattnSide::gather_reader(int layer, int num_threads) const {
  // What lies side by side: a page of one head, or of all.
  const std::size_t page = keys_[layer].size() / pages_.size();
  const std::size_t piece = spec_.layout == KVLayout::kHND ? page / spec_.num_kv_heads : page;
  std::vector<const std::byte*> pieces;
  for (const PageId id : pages_) {
    for (std::size_t at = 0; at < page; at += piece) {
      for (const Bytes* bytes : {&keys_[layer], &values_[layer]}) {
        pieces.push_back(bytes->data() + id * page + at);
      }
    }
  }
  return {pieces, piece, num_threads};
}

}  // namespace seqattn::bench
