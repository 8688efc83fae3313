#include "living_sequences.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "tensor.h"

namespace seqattn::testing {

LivingSequences::LivingSequences(const AttentionCase& attention_case, Device device,
                                 std::int64_t num_pages, std::mt19937_64& random,
                                 SlidingWindow window)
    : case_(attention_case), random_(random) {
  KVCacheConfig config = case_.cache_config(num_pages, device);
  config.num_layers = kLayers;
  manager_ = std::make_unique<PagedKVCacheManager>(config);
  for (int layer = 0; layer < kLayers; ++layer) {
    fill_with_nan(manager_->key_cache(layer));
    fill_with_nan(manager_->value_cache(layer));
    if (case_.kv_scaling == KVScaling::kFixed) continue;
    fill_with_nan(manager_->key_scales(layer));
    fill_with_nan(manager_->value_scales(layer));
  }
  if (case_.kv_dtype == DType::kFloat8E4M3 && case_.kv_scaling == KVScaling::kFixed) {
    for (int layer = 0; layer < kLayers; ++layer) {
      manager_->set_kv_scales(case_.fixed_scales(false), case_.fixed_scales(true), layer);
    }
  }
  descriptor_ = std::make_unique<CacheDescriptor>(*manager_, window);
  attention_ = std::make_unique<BatchAttention>(*manager_, case_.options());
}

LivingSequences::Token LivingSequences::random_token() {
  std::normal_distribution<double> normal;
  Token token;
  const auto fill = [&](std::vector<double>& values, int dim, bool of_values) {
    values.resize(static_cast<std::size_t>(case_.num_kv_heads) * static_cast<std::size_t>(dim));
    for (double& x : values) x = normal(random_);
    case_.store(values, dim, of_values);
  };
  for (int layer = 0; layer < kLayers; ++layer) {
    fill(token.key[layer], case_.head_dim, false);
    fill(token.value[layer], case_.dim_v(), true);
  }
  return token;
}

void LivingSequences::step(const std::vector<Request>& requests, double mask_density,
                           bool attends) {
  std::vector<SeqId> ids;
  std::vector<std::int64_t> lengths;
  for (const Request& request : requests) {
    ids.push_back(request.id);
    lengths.push_back(request.parents.empty() ? request.num_tokens : 0);
    if (!descriptor_->contains(request.id)) histories_[request.id].window = descriptor_->window();
  }
  descriptor_->allocate(ids, lengths);
  std::vector<std::int32_t> indptr{0};
  for (const auto& [id, num_tokens, parents] : requests) {
    if (!parents.empty()) descriptor_->allocate_tree(id, parents, num_tokens);
    History& history = histories_[id];
    for (std::int64_t i = 0; i < num_tokens; ++i) history.tokens.push_back(random_token());
    for (std::size_t i = 0; i < parents.size(); ++i) history.tree.push_back(random_token());
    indptr.push_back(indptr.back() + static_cast<std::int32_t>(num_tokens) +
                     static_cast<std::int32_t>(parents.size()));
  }
  std::vector<std::uint8_t> mask;
  if (mask_density >= 0) {
    std::bernoulli_distribution visible(mask_density);
    std::int64_t size = 0;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      size += (indptr[i + 1] - indptr[i]) * descriptor_->num_kv_tokens(ids[i]);
    }
    mask.resize(static_cast<std::size_t>(size));
    for (auto& entry : mask) entry = visible(random_) ? 1 : 0;
  }
  PlanInputs inputs;
  if (mask_density >= 0) inputs.mask = mask;
  if (inputs.mask || random_() % 2 == 0) {
    attention_->plan(descriptor_->pack_for_flashinfer(ids), indptr, inputs);
  } else {
    attention_->plan_sequences(*descriptor_, ids, indptr);
  }
  for (int layer = 0; layer < kLayers; ++layer) {
    append(requests, layer);
    if (!attends) continue;
    const std::vector<ref::Row> rows = rows_of(requests, layer, mask);
    CallTensors tensors(case_, rows, manager_->config().device);
    attention_->run(tensors.q.view(), tensors.out.view(), tensors.run_options(), layer);
    expect_reference(case_, rows, tensors);
  }
  descriptor_->check_invariants();
}

void LivingSequences::append(const std::vector<Request>& requests, int layer) {
  std::vector<double> keys, values;
  std::int64_t total = 0;
  const auto add = [&](const Token& token) {
    keys.insert(keys.end(), token.key[layer].begin(), token.key[layer].end());
    values.insert(values.end(), token.value[layer].begin(), token.value[layer].end());
    ++total;
  };
  for (const auto& [id, num_tokens, parents] : requests) {
    const History& history = histories_[id];
    std::for_each(history.tokens.end() - num_tokens, history.tokens.end(), add);
    if (!parents.empty()) std::for_each(history.tree.begin(), history.tree.end(), add);
  }
  const Device device = manager_->config().device;
  // Elements of 8 bits come as floats, which have the values that are stored again.
  const bool has_scales = case_.kv_dtype == DType::kFloat8E4M3;
  const DType dtype = has_scales ? DType::kFloat32 : case_.kv_dtype;
  Tensor k(device, dtype, {total, case_.num_kv_heads, case_.head_dim});
  Tensor v(device, dtype, {total, case_.num_kv_heads, case_.dim_v()});
  k.write(keys);
  v.write(values);
  attention_->append_kv(k.read_only_view(), v.read_only_view(), layer);
}

ref::Row LivingSequences::row_of(const History& history, const std::vector<Seen>& keys,
                                 std::int64_t num_queries, int layer, const std::uint8_t* mask,
                                 std::int64_t kv_len) {
  ref::Row row = random_row(case_, {num_queries, 0}, random_);
  row.kv_len = static_cast<std::int64_t>(keys.size());
  row.window = history.window.window;
  row.num_sink_tokens = history.window.num_sink_tokens;
  for (const auto& [token, slot] : keys) {
    row.k.insert(row.k.end(), token->key[layer].begin(), token->key[layer].end());
    row.v.insert(row.v.end(), token->value[layer].begin(), token->value[layer].end());
  }
  for (std::int64_t query = 0; query < num_queries && mask != nullptr; ++query) {
    for (const auto& [token, slot] : keys) row.mask.push_back(mask[query * kv_len + slot]);
  }
  return row;
}

std::vector<ref::Row> LivingSequences::rows_of(const std::vector<Request>& requests, int layer,
                                               const std::vector<std::uint8_t>& masks) {
  std::vector<ref::Row> rows;
  const std::uint8_t* mask = masks.empty() ? nullptr : masks.data();
  for (const auto& [id, num_tokens, parents] : requests) {
    const History& history = histories_[id];
    const std::int64_t kv_len = descriptor_->num_kv_tokens(id);
    const auto next_mask = [&mask, kv_len](std::int64_t num_queries) {
      return mask == nullptr ? nullptr : std::exchange(mask, mask + num_queries * kv_len);
    };
    std::vector<Seen> keys;
    for (const Token& token : history.tokens) {
      keys.push_back({&token, static_cast<std::int64_t>(keys.size())});
    }
    if (num_tokens > 0) {
      rows.push_back(row_of(history, keys, num_tokens, layer, next_mask(num_tokens), kv_len));
    }
    const std::size_t num_held = keys.size();
    for (std::size_t draft = 0; draft < parents.size(); ++draft) {
      std::vector<Seen> path = keys;
      for (auto i = static_cast<std::int32_t>(draft); i >= 0; i = parents[i]) {
        path.insert(path.begin() + static_cast<std::ptrdiff_t>(num_held),
                    {&history.tree[i], static_cast<std::int64_t>(num_held) + i});
      }
      rows.push_back(row_of(history, path, 1, layer, next_mask(1), kv_len));
    }
  }
  return rows;
}

void LivingSequences::commit_tree(SeqId id, const std::vector<std::int32_t>& path) {
  descriptor_->commit_tree(id, path);
  History& history = histories_[id];
  for (const std::int32_t i : path) history.tokens.push_back(history.tree[i]);
  history.tree.clear();
}

void LivingSequences::keep(SeqId id, const std::vector<std::int64_t>& slots) {
  const SequenceData& data = descriptor_->sequence(id);
  History& history = histories_[id];
  const auto num_slots = descriptor_->num_kv_tokens(id);
  const auto num_tokens = static_cast<std::int64_t>(history.tokens.size());
  const std::int64_t gap = data.dropped_to == 0 ? 0 : data.dropped_to - data.length + num_slots;
  std::vector<Token> kept;
  std::int64_t num_sinks = 0;
  for (const std::int64_t slot : slots) {
    if (slot < history.window.num_sink_tokens) ++num_sinks;
    const std::int64_t token = slot < gap ? slot : slot + num_tokens - num_slots;
    kept.push_back(history.tokens[static_cast<std::size_t>(token)]);
  }
  descriptor_->keep(id, slots);
  history.tokens = std::move(kept);
  history.window.num_sink_tokens = num_sinks;
  history.offset = descriptor_->length(id) - static_cast<std::int64_t>(slots.size());
}

void LivingSequences::fork(SeqId parent, SeqId child, std::int64_t num_tokens) {
  descriptor_->fork(parent, child, num_tokens);
  History history = histories_[parent];
  history.tree.clear();
  history.tokens.resize(static_cast<std::size_t>(num_tokens - history.offset));
  histories_[child] = std::move(history);
}

void LivingSequences::truncate(SeqId id, std::int64_t num_tokens) {
  descriptor_->truncate(id, num_tokens);
  History& history = histories_[id];
  history.tree.clear();
  history.tokens.resize(static_cast<std::size_t>(num_tokens - history.offset));
}

void LivingSequences::set_window(SeqId id, SlidingWindow window) {
  descriptor_->set_window(id, window);
  histories_[id].window = window;
}

void LivingSequences::release(SeqId id) {
  descriptor_->release({id});
  histories_.erase(id);
}

std::vector<AttentionCase> living_cases() {
  std::vector<AttentionCase> cases;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const int page_size : {1, 4, 7, 16}) {
      if (page_size == 16 && dtype == DType::kFloat32) continue;
      AttentionCase c;
      c.name = std::string(to_string(dtype)) + "_" + std::to_string(page_size);
      c.kv_dtype = dtype;
      c.kv_layout = page_size == 4 ? KVLayout::kHND : KVLayout::kNHD;
      c.page_size = page_size;
      c.causal = page_size != 7;
      c.head_dim = 16;
      c.head_dim_v = 9;
      cases.push_back(c);
      if ((dtype == DType::kBFloat16) != (page_size == 16) || page_size == 1) continue;
      // Of 8 bits, with either kind of scales.
      c.kv_dtype = DType::kFloat8E4M3;
      for (const KVScaling scaling : {KVScaling::kFixed, KVScaling::kPerToken}) {
        c.name = "float8_" + std::string(to_string(scaling)) + "_" + std::to_string(page_size);
        c.kv_scaling = scaling;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

}  // namespace seqattn::testing
