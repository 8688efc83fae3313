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

namespace seqattn {
namespace {

constexpr std::int64_t kAlignedFloats = 32;  // two cache lines: threads share none

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return result;
}

std::int64_t choose_target() {
  const std::vector<std::int64_t> targets = tile_targets();
  const char* wanted = std::getenv("SEQATTN_CPU_TARGET");
  if (wanted == nullptr || *wanted == '\0') return targets.front();
  std::string names;
  for (const std::int64_t target : targets) {
    const std::string name = lower(tile_target_name(target));
    if (name == lower(wanted)) return target;
    names += (names.empty() ? "" : ", ") + name;
  }
  throw InvalidArgumentError(
      concat("SEQATTN_CPU_TARGET is '", wanted, "'; this build and machine have: ", names));
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
  explicit CpuAttention(const AttentionShape& shape) : CpuAttention(shape, choose_target()) {}

  std::string_view name() const noexcept override { return name_; }

  void plan(const AttentionPlan& plan, Stream) override {
    work_ = cut_work(shape_, plan.rows);
    plan_ = &plan;
  }

  void run(std::span<const Plane> planes, const TensorView& q, const TensorView& out,
           const TensorView& lse, const TensorView& sink_logits, Stream) const override;

 private:
  CpuAttention(const AttentionShape& shape, std::int64_t target)
      : shape_(shape),
        name_(concat("cpu-", lower(tile_target_name(target)), "-", to_string(shape.kv_dtype))),
        functions_(tile_functions(target, shape.kv_dtype)) {}

  std::int64_t state_floats(int rows) const {
    return round_up(SoftmaxState::num_floats(rows, shape_.head_dim_v), kAlignedFloats);
  }
  void merge_tile(const AttentionCall& call, const QueryTile& tile, float* partials) const;

  AttentionShape shape_;
  std::string name_;
  const TileFunctions& functions_;
  const AttentionPlan* plan_ = nullptr;
  AttentionWork work_;
};

void CpuAttention::merge_tile(const AttentionCall& call, const QueryTile& tile,
                              float* partials) const {
  const std::int64_t size = state_floats(work_.max_partial_rows);
  std::array<SoftmaxState, kMaxChunks> parts;
  for (int i = 0; i < tile.num_items; ++i) {
    const WorkItem& item = work_.items[tile.first_item + i];
    parts[i] = SoftmaxState(partials + item.partial * size, tile.num_rows);
  }
  functions_.store(call, tile, std::span(parts).first(tile.num_items));
}

void CpuAttention::run(std::span<const Plane> planes, const TensorView& q, const TensorView& out,
                       const TensorView& lse, const TensorView& sink_logits, Stream) const {
  const AttentionCall call{shape_, *plan_, planes[0], planes[1], q, out, lse, sink_logits};
  const auto num_items = static_cast<std::int64_t>(work_.items.size());
  const auto num_split = static_cast<std::int64_t>(work_.split_tiles.size());
  const int num_threads =
      static_cast<int>(std::clamp<std::int64_t>(num_items, 1, usable_threads(shape_.num_threads)));

  // All memory comes before the threads: an exception could not leave them.
  thread_local Workspace workspace;
  const std::int64_t scratch_size = round_up(functions_.num_scratch_floats(shape_), kAlignedFloats);
  const std::int64_t thread_size = scratch_size + state_floats(work_.max_rows);
  const std::int64_t partial_size = state_floats(work_.max_partial_rows);
  float* const scratch =
      workspace.reserve(num_threads * thread_size + work_.num_partials * partial_size);
  float* const partials = scratch + num_threads * thread_size;

#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    float* const own = scratch + omp_get_thread_num() * thread_size;
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < num_items; ++i) {
      const WorkItem& item = work_.items[i];
      const QueryTile& tile = work_.tiles[item.tile];
      float* const memory =
          item.partial < 0 ? own + scratch_size : partials + item.partial * partial_size;
      const SoftmaxState state(memory, tile.num_rows);
      functions_.attend(call, tile, item.kv, own, state);
      if (item.partial < 0) functions_.store(call, tile, std::span(&state, 1));
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < num_split; ++i) {
      merge_tile(call, work_.tiles[work_.split_tiles[i]], partials);
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
