#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "arguments.h"
#include "classes.h"
#include "collector.h"

namespace seqattn::python {
namespace {

using namespace nb::literals;

void init(Attention* self, const Any& cache_manager, const Int& num_qo_heads, bool causal,
          const Int& window_left, std::optional<double> sm_scale, double logits_soft_cap,
          const Int& num_threads, bool bfloat16_products, const Int& max_sequences,
          const Int& max_q_tokens, const Int& max_q_len, const Int& max_pages) {
  const Manager* given = nullptr;
  if (!nb::try_cast(cache_manager, given, false) || given == nullptr) {
    throw_type_error(concat("cache_manager: got ", class_name(cache_manager),
                            "; expected a PagedKVCacheManager"));
  }
  const Manager& manager = *given;
  AttentionOptions options;
  options.num_qo_heads = to_int(num_qo_heads, "num_qo_heads");
  options.causal = causal;
  options.window_left = to_int(window_left, "window_left");
  if (sm_scale) options.sm_scale = to_float(*sm_scale, "sm_scale");
  options.logits_soft_cap = to_float(logits_soft_cap, "logits_soft_cap");
  options.num_threads = to_int(num_threads, "num_threads");
  options.bfloat16_products = bfloat16_products;
  const PlanCapacity capacity{to_int64(max_sequences, "max_sequences"),
                              to_int64(max_q_tokens, "max_q_tokens"),
                              to_int64(max_q_len, "max_q_len"), to_int64(max_pages, "max_pages")};
  auto attention = std::make_unique<BatchAttention>(*manager.manager, options, capacity);
  new (self) Attention{nb::find(manager), manager.framework, std::move(attention), {}};
}

// One array for the whole batch, or a list of one [q_len, kv_len] array a row.
std::vector<std::uint8_t> to_mask(nb::handle mask, const FlashInferPackedData& packed,
                                  std::span<const std::int32_t> qo_indptr, int page_size) {
  std::vector<std::uint8_t> bytes;
  if (mask.is_none()) return bytes;
  if (!nb::isinstance<nb::list>(mask) && !nb::isinstance<nb::tuple>(mask)) {
    append_mask(mask, "mask", {}, bytes);
    return bytes;
  }
  // Before it says which shapes the masks ought to have.
  const auto num_entries = static_cast<std::int64_t>(qo_indptr.size());
  require(num_entries == packed.batch_size() + 1, "qo_indptr: got ", num_entries,
          " entries; expected ", packed.batch_size() + 1);
  require(qo_indptr[0] == 0, "qo_indptr: starts at ", qo_indptr[0], "; expected 0");
  const auto fall = std::ranges::is_sorted_until(qo_indptr);
  require(fall == qo_indptr.end(), "qo_indptr: falls at entry ", fall - qo_indptr.begin(),
          "; expected entries that never fall");
  const auto rows = static_cast<std::int64_t>(nb::len(mask));
  require(rows == packed.batch_size(), "mask: got ", rows,
          " rows; expected one for each of the batch's ", packed.batch_size());
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto i = static_cast<std::size_t>(row);
    const MaskShape shape{std::int64_t{qo_indptr[i + 1]} - qo_indptr[i],
                          packed.kv_len(row, page_size)};
    append_mask(mask[i], concat("mask of row ", row), shape, bytes);
  }
  return bytes;
}

void plan(Attention& self, const Any& flashinfer_data, const Ints& qo_indptr_list,
          const Any& mask) {
  const PackedData& packed = to_packed_data(flashinfer_data);
  const auto qo_indptr = to_ints<std::int32_t>(qo_indptr_list, "qo_indptr");
  const int page_size = nb::cast<Manager&>(self.owner).page_pool().page_size();
  const std::vector<std::uint8_t> bytes = to_mask(mask, packed.data, qo_indptr, page_size);
  const Stream stream = nb::cast<Manager&>(self.owner).stream();
  const PlanInputs inputs{.mask = mask.is_none() ? std::nullopt : std::optional(std::span(bytes))};
  nb::gil_scoped_release release;
  const std::unique_lock lock(self.mutex);
  self.attention->plan(packed.data, qo_indptr, inputs, stream);
}

// With the GIL: a sequence may not change meanwhile.
void plan_sequences(Attention& self, const Any& sequences, const Ints& seq_ids,
                    const Ints& qo_indptr_list) {
  const Descriptor* given = nullptr;
  if (!nb::try_cast(sequences, given, false) || given == nullptr) {
    throw_type_error(
        concat("sequences: got ", class_name(sequences), "; expected a CacheDescriptor"));
  }
  const auto ids = to_seq_ids(seq_ids);
  const auto qo_indptr = to_ints<std::int32_t>(qo_indptr_list, "qo_indptr");
  const Stream stream = nb::cast<Manager&>(self.owner).stream();
  const std::unique_lock lock(self.mutex);
  self.attention->plan_sequences(given->sequences(), ids, qo_indptr, stream);
}

Accepts accepted(const Attention& self) {
  return with_float32(nb::cast<Manager&>(self.owner).manager->config().dtype);
}

void append_kv(const Attention& self, const Array& keys, const Array& values,
               const Int& layer_index) {
  const Accepts accepts = accepted(self);
  const Import k = import_array(keys, "keys", self.framework, accepts);
  const Import v = import_array(values, "values", self.framework, accepts);
  const int layer = to_int(layer_index, "layer");
  const Stream stream = nb::cast<Manager&>(self.owner).stream();
  nb::gil_scoped_release release;
  const std::shared_lock lock(self.mutex);
  self.attention->append_kv(k.view, v.view, layer, stream);
}

// The rows of a new output: those of the present plan, which another thread may be replacing, or
// of the capacity where q has them. Waiting with the GIL is safe: nobody asks for the GIL while
// holding the mutex.
std::int64_t num_output_rows(const Attention& self, const TensorView& q) {
  const std::shared_lock lock(self.mutex);
  const std::int64_t padded = self.attention->capacity().max_q_tokens;
  return padded > 0 && q.shape[0] == padded ? padded : self.attention->num_q_tokens();
}

nb::object run(const Attention& self, const Array& q, const Array& out, bool return_lse,
               const Array& sink_logits, const Int& layer_index, const Array& lse) {
  const Manager& manager = nb::cast<Manager&>(self.owner);
  const Framework framework = self.framework;
  const Import q_in = import_array(q, "q", framework, accepted(self));
  const Import sinks = import_optional(sink_logits, "sink_logits", framework, kFloat32Only);
  const Import out_given = import_optional(out, "out", framework, accepted(self), Access::kWrite);
  const Import lse_given = import_optional(lse, "lse", framework, kFloat32Only, Access::kWrite);
  const int layer = to_int(layer_index, "layer");
  const int num_heads = self.attention->options().num_qo_heads;

  NewArray result{out, out_given.view}, result_lse{lse, lse_given.view};
  if (out.is_none()) {
    const int head_dim_v = manager.manager->config().head_dim_v;
    result = new_array(framework, manager.place(), q_in.view.dtype,
                       {num_output_rows(self, q_in.view), num_heads, head_dim_v});
  }
  if (return_lse && lse.is_none()) {
    result_lse = new_array(framework, manager.place(), DType::kFloat32,
                           {num_output_rows(self, q_in.view), num_heads});
  }
  const Stream stream = manager.stream();
  {
    nb::gil_scoped_release release;
    const std::shared_lock lock(self.mutex);
    self.attention->run(q_in.view, result.view, {.lse = result_lse.view, .sink_logits = sinks.view},
                        layer, stream);
  }
  if (result_lse.object.is_none()) return result.object;
  return nb::make_tuple(result.object, result_lse.object);
}

nb::tuple merge(const Array& out_a, const Array& lse_a, const Array& out_b, const Array& lse_b,
                const Array& out_given, const Array& lse_given) {
  const Framework framework = framework_of(out_a);
  const Import a = import_array(out_a, "out_a", framework, kEveryFloat);
  const Import a_lse = import_array(lse_a, "lse_a", framework, kFloat32Only);
  const Import b = import_array(out_b, "out_b", framework, kEveryFloat);
  const Import b_lse = import_array(lse_b, "lse_b", framework, kFloat32Only);
  const Import out_in = import_optional(out_given, "out", framework, kEveryFloat, Access::kWrite);
  const Import lse_in = import_optional(lse_given, "lse", framework, kFloat32Only, Access::kWrite);
  const auto shape = [](const TensorView& view) {
    return std::span<const std::int64_t>(view.shape.data(), static_cast<std::size_t>(view.rank));
  };
  const Device device = a.view.device;
  NewArray out{out_given, out_in.view}, lse{lse_given, lse_in.view};
  if (out_given.is_none()) out = new_array(framework, device, a.view.dtype, shape(a.view));
  if (lse_given.is_none()) lse = new_array(framework, device, DType::kFloat32, shape(a_lse.view));
  const Stream stream = current_stream(framework, device);
  {
    nb::gil_scoped_release release;
    merge_states(a.view, a_lse.view, b.view, b_lse.view, out.view, lse.view, stream);
  }
  return nb::make_tuple(out.object, lse.object);
}

// The arguments of the constructor, as attributes.
void bind_options(nb::class_<Attention>& cls) {
  const auto option = [&]<class T>(const char* name, T AttentionOptions::*field, const char* doc) {
    cls.def_prop_ro(
        name, [=](const Attention& self) { return self.attention->options().*field; }, doc);
  };
  option("num_qo_heads", &AttentionOptions::num_qo_heads, "Query heads.");
  option("causal", &AttentionOptions::causal, "Whether a query sees no key behind its position.");
  option("window_left", &AttentionOptions::window_left,
         "Keys seen before the own position; -1: all.");
  option("logits_soft_cap", &AttentionOptions::logits_soft_cap, "The cap of the logits; 0: none.");
  option("num_threads", &AttentionOptions::num_threads, "Threads of the CPU backend; 0: all.");
  option("bfloat16_products", &AttentionOptions::bfloat16_products,
         "Whether a CPU may use its dot products of bfloat16.");
  cls.def_prop_ro(
      "sm_scale", [](const Attention& self) { return self.attention->options().sm_scale.value(); },
      "The factor of q . k.");
  const auto most = [&](const char* name, std::int64_t PlanCapacity::*field, const char* doc) {
    cls.def_prop_ro(
        name, [=](const Attention& self) { return self.attention->capacity().*field; }, doc);
  };
  most("max_sequences", &PlanCapacity::max_sequences,
       "Sequences of the largest batch; 0: no limit.");
  most("max_q_tokens", &PlanCapacity::max_q_tokens, "Its queries; 0: no limit.");
  most("max_q_len", &PlanCapacity::max_q_len, "The queries of one sequence; 0: no limit.");
  most("max_pages", &PlanCapacity::max_pages, "Its pages; 0: no limit.");
}

void bind_merge(nb::module_& m) {
  m.def("merge_states", &merge, "out_a"_a.none(), "lse_a"_a.none(), "out_b"_a.none(),
        "lse_b"_a.none(), "out"_a = nb::none(), "lse"_a = nb::none(),
        nb::sig("def merge_states(out_a: typing.Any, lse_a: typing.Any, out_b: typing.Any, lse_b: "
                "typing.Any, out: typing.Any = None, lse: typing.Any = None) -> tuple[typing.Any, "
                "typing.Any]"),
        "Merges attention over two disjoint sets of keys into attention over their union.\n\n"
        "out_a, out_b [tokens, heads, dim]; lse_a, lse_b [tokens, heads], float32. Returns (out, "
        "lse): those given, which may be the very arrays of a side, or new ones, out in out_a's "
        "dtype. A side with an LSE of -inf counts nothing. Raises InvalidArgumentError for tensors "
        "that do not agree. Leaves the GIL.");
}

void bind_calls(nb::class_<Attention>& cls) {
  cls.def("plan", &plan, "flashinfer_data"_a.none(), "qo_indptr"_a.none(), "mask"_a = nb::none(),
          nb::sig("def plan(self, flashinfer_data: FlashInferPackedData, qo_indptr: "
                  "collections.abc.Iterable[int], mask: typing.Any = None) -> None"),
          "Validates the batch and prepares it for every layer.\n\n"
          "qo_indptr [batch_size + 1]: row i asks with queries qo_indptr[i] .. qo_indptr[i + 1], "
          "the last q_len positions of its kv_len keys: with causal a row may not have more "
          "queries than keys, unless it has no keys at all. mask: a list of one bool or uint8 "
          "[q_len, kv_len] array a row, or all of them in one flat array; 0 hides the key from "
          "the query, on top of causal and window_left. Good until a planned page is freed. "
          "Raises InvalidArgumentError, leaving the previous plan in place. Leaves the GIL.")
      .def(
          "plan_sequences", &plan_sequences, "sequences"_a.none(), "seq_ids"_a.none(),
          "qo_indptr"_a.none(),
          nb::sig("def plan_sequences(self, sequences: CacheDescriptor, seq_ids: "
                  "collections.abc.Iterable[int], qo_indptr: collections.abc.Iterable[int]) -> "
                  "None"),
          "plan(sequences.pack_for_flashinfer(seq_ids), qo_indptr), with the same outputs, bit by "
          "bit.\n\n"
          "Where a device's own kernel serves every row (docs/cuda.md), page tables stay on the "
          "device, and the call sends lengths and what is new in them; any other batch is packed. "
          "Changing a sequence afterwards does not change the plan. Raises UnknownSequenceError; "
          "InvalidArgumentError as plan does, and for a descriptor of another pool. Keeps the GIL: "
          "no sequence changes meanwhile.")
      .def("append_kv", &append_kv, "keys"_a.none(), "values"_a.none(), "layer"_a.none() = 0,
           nb::sig("def append_kv(self, keys: typing.Any, values: typing.Any, layer: "
                   "typing.SupportsIndex = 0) -> None"),
           "Writes the planned batch's new tokens, as many as its queries.\n\n"
           "keys [total_q_tokens, num_heads, head_dim] and values [.., head_dim_v], in the cache's "
           "dtype or float32; for float8_e4m3fn float32, float16 or bfloat16. Raises "
           "InvalidArgumentError, having written nothing, without a plan, "
           "for tensors of another shape, dtype or device, pages that are free or shared. Leaves "
           "the GIL.")
      .def("run", &run, "q"_a.none(), "out"_a = nb::none(), "return_lse"_a = false,
           "sink_logits"_a = nb::none(), "layer"_a.none() = 0, "lse"_a = nb::none(),
           nb::sig("def run(self, q: typing.Any, out: typing.Any = None, return_lse: bool = False, "
                   "sink_logits: typing.Any = None, layer: typing.SupportsIndex = 0, lse: "
                   "typing.Any = None) -> typing.Any"),
           "q [total_q_tokens, num_qo_heads, head_dim] -> out [.., head_dim_v], in q's dtype "
           "unless given.\n\n"
           "q and out, each: the cache's dtype or float32; over float8_e4m3fn float32, float16 or "
           "bfloat16. A CUDA device takes no q of float32, and gives out in q's dtype or float32. "
           "A query that sees no key gives 0 and an "
           "LSE of -inf (with sink_logits: 0 and the sink's logit). With max_q_tokens, rows behind "
           "the batch's are not written: those of a new out hold whatever its memory held.\n\n"
           "Returns out, or (out, lse) with return_lse or lse: float32 [total_q_tokens, "
           "num_qo_heads], the natural log of the sum of exp(logits). sink_logits: float32 "
           "[num_qo_heads], one logit a head that joins the softmax denominator. Raises "
           "InvalidArgumentError without a plan, for tensors of another shape, dtype or device, a "
           "read-only output. Leaves the GIL.");
}

}  // namespace

void bind_attention(nb::module_& m) {
  nb::class_<Attention> cls(
      m, "BatchAttention", nb::type_slots(traverse_slots<Attention>),
      "Attention of a ragged batch over a paged cache: prefill, chunked prefill, decode and any "
      "mixture.\n\n"
      "`plan` once a step; then, for each layer, `append_kv` and `run`. num_qo_heads: a multiple "
      "of the cache's num_heads; query head h reads KV head h // (num_qo_heads // num_heads). "
      "causal: query j of a row sees the keys up to its own position, kv_len - q_len + j. "
      "window_left: a query sees no more than that many keys before its "
      "own position, -1 = all. sm_scale: 1 / sqrt(head_dim) unless given. logits_soft_cap: logits "
      "become cap * tanh(logit / cap), 0 = no cap. num_threads: 0 = all. bfloat16_products: lets a "
      "CPU with AVX512_BF16 compute the products of a bfloat16 cache by its own dot products, "
      "where head_dim and head_dim_v are multiples of 32; they are faster and round the weights of "
      "the softmax and queries that come as float32 to bfloat16. kernel_name says what runs. "
      "max_sequences, max_q_tokens, max_q_len (of one sequence), max_pages: the largest batch, 0 = "
      "no limit; with "
      "max_q_tokens, tensors of tokens may have that many rows, of which the batch's come "
      "first.\n\n"
      "CUDA graphs: an object with max_sequences, max_q_tokens and max_pages (max_q_len too, where "
      "sequences bring few queries each) keeps its buffers, so that what is captured once serves "
      "every later plan. Call plan, append_kv and run once to warm up, then capture append_kv and "
      "run of all layers with tensors of max_q_tokens rows:\n\n"
      "    with torch.cuda.graph(graph):\n"
      "        attention.append_kv(keys, values)\n"
      "        attention.run(q, out=out)\n\n"
      "A step is then: allocate, plan, fill keys, values and q in place, graph.replay(). plan "
      "itself "
      "is never captured. With torch tensors nothing in the capture waits, uses another stream or "
      "takes memory, but for outputs that are not given, which come from the graph's own pool. "
      "Keep "
      "this object as long as the graph.");
  cls.def("__init__", &init, "cache_manager"_a.none(), "num_qo_heads"_a.none(), nb::kw_only(),
          "causal"_a = true, "window_left"_a.none() = -1, "sm_scale"_a.none() = nb::none(),
          "logits_soft_cap"_a = 0.0, "num_threads"_a.none() = 0, "bfloat16_products"_a = false,
          "max_sequences"_a.none() = 0, "max_q_tokens"_a.none() = 0, "max_q_len"_a.none() = 0,
          "max_pages"_a.none() = 0,
          nb::sig("def __init__(self, cache_manager: PagedKVCacheManager, num_qo_heads: "
                  "typing.SupportsIndex, *, causal: bool = True, window_left: "
                  "typing.SupportsIndex = -1, sm_scale: float | None = None, logits_soft_cap: "
                  "float = 0.0, num_threads: typing.SupportsIndex = 0, bfloat16_products: bool = "
                  "False, max_sequences: typing.SupportsIndex = 0, max_q_tokens: "
                  "typing.SupportsIndex = 0, max_q_len: typing.SupportsIndex = 0, max_pages: "
                  "typing.SupportsIndex = 0) -> None"))
      .def_prop_ro(
          "cache_manager", [](const Attention& self) { return self.owner; },
          nb::sig("def cache_manager(self) -> PagedKVCacheManager"), "The manager.")
      .def_prop_ro(
          "kernel_name",
          [](const Attention& self) { return std::string(self.attention->kernel_name()); },
          "The path that was chosen, \"cpu-avx3-float16\".")
      .def_prop_ro(
          "num_q_tokens",
          [](const Attention& self) {
            const std::shared_lock lock(self.mutex);
            return self.attention->num_q_tokens();
          },
          "Queries of the present plan, 0 before the first.")
      .def("__repr__", [](const Attention& self) { return self.attention->to_string(); });
  bind_calls(cls);
  bind_options(cls);
  bind_merge(m);
}

}  // namespace seqattn::python
