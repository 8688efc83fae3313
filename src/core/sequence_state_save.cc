#include <algorithm>
#include <cstring>
#include <utility>

#include "atomic_file.h"
#include "message.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "seqattn/sequence_state.h"
#include "sequence_state_records.h"
#include "token_buffer.h"

namespace seqattn {
namespace {

class MemorySink final : public ByteSink {
 public:
  explicit MemorySink(std::int64_t num_bytes) {
    bytes_.reserve(static_cast<std::size_t>(num_bytes));
  }
  void write(std::span<const std::byte> bytes) override {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  std::vector<std::byte> take() noexcept { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace

ByteSink::~ByteSink() = default;  // out of line, so that it has one vtable

SequenceStateInfo sequence_state_info(const CacheDescriptor& descriptor, SeqId seq_id) {
  const KVCacheConfig& config = manager_of(descriptor, "save_sequence").config();
  const SequenceData& data = descriptor.sequence(seq_id);
  require(data.tree_parents.empty(), "save_sequence: sequence ", seq_id, " has a pending tree of ",
          data.tree_parents.size(),
          " draft tokens; expected none: commit_tree, or truncate to its length, ends it");
  SequenceStateInfo info{.length = data.length,
                         .num_kv_tokens = descriptor.num_kv_tokens(seq_id),
                         .window = data.window,
                         .dropped_to = data.dropped_to,
                         .num_dropped = data.num_dropped,
                         .num_in_front = data.num_in_front,
                         .compacted_to = data.compacted_to,
                         .num_layers = config.num_layers,
                         .num_heads = config.num_heads,
                         .head_dim = config.head_dim,
                         .head_dim_v = config.head_dim_v,
                         .dtype = config.dtype};
  info.num_bytes = state_bytes(info);
  return info;
}

void save_sequence(const CacheDescriptor& descriptor, SeqId seq_id, ByteSink& sink, Stream stream) {
  PagedKVCacheManager& manager = manager_of(descriptor, "save_sequence");
  const KVCacheConfig& config = manager.config();
  const SequenceStateInfo info = sequence_state_info(descriptor, seq_id);
  const auto pages = descriptor.pages(seq_id);
  const StateHeader header = encode_state_header(info);
  sink.write(header);
  std::uint64_t seed = header_checksum(header);
  const std::int64_t most = std::min(StateRecords(info).most_tokens, info.num_kv_tokens);
  TokenBuffer buffer(config, config.dtype, most, kChecksumBytes);
  for_each_record(info, [&](int layer, std::int64_t first, std::int64_t count) {
    const PageSlice slice = slice_of(pages, config.page_size, first, count);
    if (has_scales(config.dtype)) {
      StoredTokens{manager, slice, layer, stream}.read(buffer, count);
    } else {
      manager.read_kv(slice.pages, slice.first, count, buffer.keys(count), buffer.values(count),
                      layer, stream);
    }
    buffer.to_host(count, stream);
    const std::span payload(buffer.host(), static_cast<std::size_t>(buffer.num_bytes(count)));
    seed = state_checksum(payload, seed);
    store_checksum(seed, buffer.host() + payload.size());
    sink.write({buffer.host(), payload.size() + kChecksumBytes});
  });
}

std::vector<std::byte> save_sequence(const CacheDescriptor& descriptor, SeqId seq_id,
                                     Stream stream) {
  MemorySink sink(sequence_state_info(descriptor, seq_id).num_bytes);
  save_sequence(descriptor, seq_id, sink, stream);
  return sink.take();
}

void save_sequence(const CacheDescriptor& descriptor, SeqId seq_id,
                   const std::filesystem::path& path, Stream stream) {
  sequence_state_info(descriptor, seq_id);  // what it throws comes before a file is made
  AtomicFile file(path);
  save_sequence(descriptor, seq_id, file, stream);
  file.commit();
}

}  // namespace seqattn
