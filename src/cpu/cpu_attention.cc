#include "cpu_attention.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "attention_tile.h"
#include "attention_work.h"
#include "message.h"
#include "threads.h"
#include "token_copy.h"

namespace seqattn {
namespace {

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return result;
}

// SEQATTN_CPU_TARGET, empty where it is not set.
std::string_view wanted_target() {
  const char* const wanted = std::getenv("SEQATTN_CPU_TARGET");
  return wanted == nullptr ? std::string_view() : wanted;
}

std::int64_t choose_target() {
  const std::vector<std::int64_t> targets = tile_targets();
  const std::string_view wanted = wanted_target();
  if (wanted.empty()) return targets.front();
  std::string names;
  for (const std::int64_t target : targets) {
    const std::string name = lower(tile_target_name(target));
    if (name == lower(wanted)) return target;
    names += (names.empty() ? "" : ", ") + name;
  }
  throw InvalidArgumentError(
      concat("SEQATTN_CPU_TARGET is '", wanted, "'; this build and machine have: ", names));
}

// The unit that computes the products of such a shape, or null.
const BFloat16Unit* choose_unit(const AttentionShape& shape) {
  const auto fits = [](int dim) { return dim % static_cast<int>(kBFloat16Block) == 0; };
  if (!shape.bfloat16_products || shape.kv_dtype != DType::kBFloat16) return nullptr;
  if (!fits(shape.head_dim) || !fits(shape.head_dim_v) || !wanted_target().empty()) return nullptr;
  return bfloat16_unit();
}

// Floats that a thread keeps from one run to the next, aligned to two cache lines.
class Workspace {
 public:
  float* reserve(std::int64_t count) {
    if (count > capacity_) {
      memory_.reset();
      capacity_ = 0;
      memory_.reset(static_cast<float*>(::operator new(count * sizeof(float), kAlignment)));
      capacity_ = count;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{kAlignedFloats * sizeof(float)};
  struct Delete {
    void operator()(float* memory) const noexcept { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<float, Delete> memory_;
  std::int64_t capacity_ = 0;
};

class CpuAttention final : public AttentionKernel {
 public:
  explicit CpuAttention(const AttentionShape& shape)
      : CpuAttention(shape, choose_target(), choose_unit(shape)) {}

  std::string_view name() const noexcept override { return name_; }

  void plan(const AttentionPlan& plan, Stream) override {
    work_ = cut_work(shape_, plan.rows, usable_threads(shape_.num_threads));
    plan_ = &plan;
  }

  void append(std::span<const Plane> planes, std::span<const TensorView> tensors,
              std::span<const TokenRange> ranges, Stream) const override {
    write_tokens_cpu(planes, tensors, ranges, shape_.num_threads);
  }

  void run(std::span<const Plane> planes, const TensorView& q, const TensorView& out,
           const TensorView& lse, const TensorView& sink_logits, Stream) const override;

 private:
  CpuAttention(const AttentionShape& shape, std::int64_t target, const BFloat16Unit* unit)
      : shape_(shape),
        name_(concat("cpu-", lower(tile_target_name(target)), "-", to_string(shape.kv_dtype),
                     unit == nullptr ? "" : "-", unit == nullptr ? "" : unit->name)),
        unit_(unit),
        functions_(tile_functions(target, shape.kv_dtype)) {}

  // Chunk `chunk` of a tile whose states begin there.
  SoftmaxState state(float* states, const QueryTile& tile, int chunk) const {
    return {states + chunk * SoftmaxState::num_floats(tile.num_rows, shape_.head_dim_v),
            tile.num_rows};
  }
  void attend(const AttentionCall& call, const WorkItem& item, float* own, float* scratch,
              float* partials, std::vector<SoftmaxState>& states) const;
  void merge(const AttentionCall& call, const QueryTile& tile, float* partials) const;

  AttentionShape shape_;
  std::string name_;
  const BFloat16Unit* unit_;
  const TileFunctions& functions_;
  const AttentionPlan* plan_ = nullptr;
  AttentionWork work_;
};

// `own` holds the states of tiles that this item finishes, `partials` the others.
void CpuAttention::attend(const AttentionCall& call, const WorkItem& item, float* own,
                          float* scratch, float* partials,
                          std::vector<SoftmaxState>& states) const {
  const auto tiles = std::span(work_.tiles).subspan(item.first_tile, item.num_tiles);
  for (int i = 0; i < item.num_tiles; ++i) {
    states[i] = tiles[i].num_chunks > 1 ? state(partials + tiles[i].partials, tiles[i], item.chunk)
                                        : state(own, tiles[i], i);
  }
  functions_.attend(call, tiles, item.kv, scratch, std::span(states).first(tiles.size()));
  for (int i = 0; i < item.num_tiles; ++i) {
    if (tiles[i].num_chunks == 1) functions_.store(call, tiles[i], std::span(&states[i], 1));
  }
}

void CpuAttention::merge(const AttentionCall& call, const QueryTile& tile, float* partials) const {
  std::array<SoftmaxState, kMaxChunks> parts;
  for (int i = 0; i < tile.num_chunks; ++i) parts[i] = state(partials + tile.partials, tile, i);
  functions_.store(call, tile, std::span(parts).first(tile.num_chunks));
}

void CpuAttention::run(std::span<const Plane> planes, const TensorView& q, const TensorView& out,
                       const TensorView& lse, const TensorView& sink_logits, Stream) const {
  const AttentionCall call{shape_, *plan_, planes[0], planes[1], q, out, lse, sink_logits, unit_};
  const auto num_items = static_cast<std::int64_t>(work_.items.size());
  const auto num_split = static_cast<std::int64_t>(work_.split_tiles.size());
  const int num_threads =
      static_cast<int>(std::clamp<std::int64_t>(num_items, 1, usable_threads(shape_.num_threads)));

  // All memory comes before the threads: an exception could not leave them.
  thread_local Workspace workspace;
  const std::int64_t scratch_size =
      round_up(functions_.num_scratch_floats(shape_, work_.max_tiles), kAlignedFloats);
  const std::int64_t thread_size = scratch_size + work_.max_own_floats;
  float* const memory = workspace.reserve(num_threads * thread_size + work_.num_partial_floats);
  float* const partials = memory + num_threads * thread_size;
  std::vector<std::vector<SoftmaxState>> states(num_threads,
                                                std::vector<SoftmaxState>(work_.max_tiles));

#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    const int thread = omp_get_thread_num();
    float* const scratch = memory + thread * thread_size;
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < num_items; ++i) {
      attend(call, work_.items[i], scratch + scratch_size, scratch, partials, states[thread]);
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < num_split; ++i) {
      merge(call, work_.tiles[work_.split_tiles[i]], partials);
    }
  }
}

}  // namespace

std::vector<std::string> cpu_attention_targets() {
  std::vector<std::string> names;
  for (const std::int64_t target : tile_targets()) names.push_back(lower(tile_target_name(target)));
  return names;
}

std::unique_ptr<AttentionKernel> make_cpu_attention(const AttentionShape& shape,
                                                    const PlanCapacity&) {
  if (std::max(shape.head_dim, shape.head_dim_v) > kMaxHeadDim) {
    throw UnsupportedError(concat("head_dim ", shape.head_dim, ", head_dim_v ", shape.head_dim_v,
                                  ": attention on a CPU takes up to ", kMaxHeadDim));
  }
  return std::make_unique<CpuAttention>(shape);
}

}  // namespace seqattn
