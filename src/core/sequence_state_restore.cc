#include <algorithm>
#include <array>
#include <functional>
#include <vector>

#include "atomic_file.h"
#include "grow_transaction.h"
#include "message.h"
#include "seqattn/float8.h"
#include "seqattn/half.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "seqattn/sequence_state.h"
#include "sequence_slots.h"
#include "sequence_state_records.h"
#include "token_buffer.h"

namespace seqattn {
namespace {

// Reads a state's records one by one, each checked before anybody sees it.
class StateReader {
 public:
  explicit StateReader(ByteSource& source) : source_(source), name_(source.name()) {
    StateHeader header;
    const std::size_t count = read_some(header);
    info_ = decode_state_header(std::span(header).first(count), name_);
    seed_ = header_checksum(header);
  }

  const SequenceStateInfo& info() const noexcept { return info_; }
  const std::string& name() const noexcept { return name_; }

  // `record` is its payload and behind it room for the checksum.
  void read_record(std::span<std::byte> record) {
    if (read_some(record) != record.size()) {
      throw SequenceStateError(concat(name_, ": truncated: ends after ", num_read_,
                                      " bytes; expected ", info_.num_bytes));
    }
    const auto payload = record.first(record.size() - kChecksumBytes);
    const std::uint64_t checksum = load_checksum(&record[payload.size()]);
    if (checksum != state_checksum(payload, seed_)) {
      throw SequenceStateError(concat(name_, ": corrupted: bytes ", num_read_ - record.size(),
                                      " to ", num_read_, " do not have their checksum"));
    }
    seed_ = checksum;
  }

  void expect_end() {
    std::byte one{};
    if (read_some({&one, 1}) == 0) return;
    throw SequenceStateError(
        concat(name_, ": goes on behind its ", info_.num_bytes, " bytes; expected to end there"));
  }

 private:
  std::size_t read_some(std::span<std::byte> bytes) {
    const std::size_t count = source_.read(bytes);
    num_read_ += count;
    return count;
  }

  ByteSource& source_;
  std::string name_;
  std::size_t num_read_ = 0;
  SequenceStateInfo info_;
  std::uint64_t seed_ = 0;
};

void check_shape(const SequenceStateInfo& info, const KVCacheConfig& config,
                 const std::string& name) {
  const auto equal = [&](const char* what, int got, int expected) {
    require(got == expected, name, ": got a sequence of ", what, " ", got, "; expected ", expected,
            ", that of the cache");
  };
  equal("num_layers", info.num_layers, config.num_layers);
  equal("num_heads", info.num_heads, config.num_heads);
  equal("head_dim", info.head_dim, config.head_dim);
  equal("head_dim_v", info.head_dim_v, config.head_dim_v);
}

// Elements of 16 bits to float32.
void widen(DType dtype, std::span<const std::byte> from, float* to) {
  const auto* const bits = reinterpret_cast<const std::uint16_t*>(from.data());
  const std::size_t count = from.size() / sizeof *bits;
  if (dtype == DType::kFloat16) {
    std::transform(bits, bits + count, to, from_float16);
  } else {
    std::transform(bits, bits + count, to, from_bfloat16);
  }
}

// Likewise of 8 bits, a record's of `count` tokens, by their scales.
void multiply_scales(const SequenceStateInfo& info, std::int64_t count, const std::byte* from,
                     float* to) {
  const std::int64_t num_scales = count * info.num_heads;
  const auto* scale = reinterpret_cast<const float*>(from);
  const auto* bits = reinterpret_cast<const std::uint8_t*>(scale + 2 * num_scales);
  for (const int head_dim : {info.head_dim, info.head_dim_v}) {
    for (std::int64_t i = 0; i < num_scales; ++i, ++scale, bits += head_dim, to += head_dim) {
      std::transform(bits, bits + head_dim, to,
                     [&](std::uint8_t b) { return from_float8_e4m3(b) * *scale; });
    }
  }
}

// Brings the records into the pages. What the cache does not take as it is goes through float32.
void read_tokens(StateReader& reader, PagedKVCacheManager& manager, std::span<const PageId> pages,
                 Stream stream) {
  const SequenceStateInfo& info = reader.info();
  const KVCacheConfig& config = manager.config();
  const bool is_same = info.dtype == config.dtype && config.kv_scaling != KVScaling::kFixed;
  const bool is_scaled = has_scales(info.dtype);
  const bool widens =
      is_scaled ? !is_same : info.dtype != config.dtype && info.dtype != DType::kFloat32;
  const StateRecords records(info);
  const std::int64_t most = std::min(records.most_tokens, info.num_kv_tokens);
  TokenBuffer buffer(config, widens ? DType::kFloat32 : info.dtype, most, kChecksumBytes);
  std::vector<std::byte> narrow(
      widens ? static_cast<std::size_t>(most * records.token_bytes()) + kChecksumBytes : 0);
  for_each_record(info, [&](int layer, std::int64_t first, std::int64_t count) {
    const std::span record(
        widens ? narrow.data() : buffer.host(),
        static_cast<std::size_t>(count * records.token_bytes()) + kChecksumBytes);
    reader.read_record(record);
    auto* const floats = reinterpret_cast<float*>(buffer.host());
    if (widens && is_scaled) {
      multiply_scales(info, count, record.data(), floats);
    } else if (widens) {
      widen(info.dtype, record.first(record.size() - kChecksumBytes), floats);
    }
    buffer.to_device(count, stream);
    const PageSlice slice = slice_of(pages, config.page_size, first, count);
    if (is_scaled && !widens) {
      StoredTokens{manager, slice, layer, stream}.write(buffer, count);
    } else {
      manager.write_kv(slice.pages, slice.first, count, buffer.keys(count), buffer.values(count),
                       layer, stream);
    }
  });
}

// The sequence that the state describes, without its pages. Throws SequenceStateError for one that
// cannot be.
SequenceData sequence_of(const StateReader& reader) {
  const SequenceStateInfo& info = reader.info();
  SequenceData data;
  data.length = info.length;
  data.window = info.window;
  data.dropped_to = info.dropped_to;
  data.num_dropped = info.num_dropped;
  data.num_in_front = info.num_in_front;
  data.compacted_to = info.compacted_to;
  try {
    check_positions(
        data,
        {.held = info.num_kv_tokens, .drafts = 0, .missing = info.length - info.num_kv_tokens});
  } catch (const InvalidArgumentError& error) {
    throw SequenceStateError(
        concat(reader.name(), ": the header describes no sequence that can be: ", error.what()));
  }
  return data;
}

// Reads a state to its end, where nothing may follow; throws as a restore would.
void verify(ByteSource& source) {
  StateReader reader(source);
  const SequenceStateInfo& info = reader.info();
  const StateRecords records(info);
  const std::int64_t token_bytes = records.token_bytes();
  const std::int64_t most = std::min(records.most_tokens, info.num_kv_tokens);
  std::vector<std::byte> record(static_cast<std::size_t>(most * token_bytes) + kChecksumBytes);
  for_each_record(info, [&](int, std::int64_t, std::int64_t count) {
    reader.read_record(
        std::span(record).first(static_cast<std::size_t>(count * token_bytes) + kChecksumBytes));
  });
  reader.expect_end();
}

// `verify_all`: checks the whole state by another way to its bytes, where there is one. It is asked
// before a reclaimer gives up pages, which a state that is refused later could not give back.
SequenceStateInfo restore(CacheDescriptor& descriptor, SeqId seq_id, ByteSource& source,
                          const std::function<void()>& verify_all, Stream stream) {
  PagedKVCacheManager& manager = manager_of(descriptor, "restore_sequence");
  require(!descriptor.contains(seq_id), "sequence ", seq_id,
          " exists; expected a new id: release it first");
  StateReader reader(source);
  check_shape(reader.info(), manager.config(), reader.name());
  SequenceData data = sequence_of(reader);
  // The pages grow a sequence of a descriptor that nobody sees, and are written between the two
  // halves of that growth: whatever throws, it is taken back. `descriptor` then shares them.
  const PagePool& pool = manager.pool();
  const std::int64_t needed = pages_for(reader.info().num_kv_tokens, pool.page_size());
  const bool may_reclaim = pool.reclaimer() != nullptr && needed <= pool.num_pages() &&
                           needed > pool.available_pages_count();
  if (verify_all && may_reclaim) {
    verify_all();
  }
  CacheDescriptor staging(manager);
  const std::array ids{SeqId{0}};
  const std::array lengths{reader.info().num_kv_tokens};
  auto growth = GrowTransaction::by_lengths(staging, ids, lengths);
  if (!growth.prepare(stream)) {
    throw NoPageError(growth.needed(), growth.available(), pool.reclaimer() != nullptr);
  }
  read_tokens(reader, manager, staging.pages(0), stream);
  if (verify_all) reader.expect_end();
  data.kv_page_indices = staging.sequence(0).kv_page_indices;
  data.last_page_len = staging.sequence(0).last_page_len;
  descriptor.attach(seq_id, data);
  growth.commit();
  return reader.info();
}

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::span<const std::byte> bytes) : rest_(bytes) {}
  std::size_t read(std::span<std::byte> bytes) override {
    const std::size_t count = std::min(bytes.size(), rest_.size());
    std::copy_n(rest_.begin(), count, bytes.begin());
    rest_ = rest_.subspan(count);
    return count;
  }

 private:
  std::span<const std::byte> rest_;
};

}  // namespace

ByteSource::~ByteSource() = default;  // out of line, so that it has one vtable
std::string ByteSource::name() const { return "sequence state"; }

SequenceStateInfo restore_sequence(CacheDescriptor& descriptor, SeqId seq_id, ByteSource& source,
                                   Stream stream) {
  return restore(descriptor, seq_id, source, /*verify_all=*/{}, stream);
}

SequenceStateInfo restore_sequence(CacheDescriptor& descriptor, SeqId seq_id,
                                   std::span<const std::byte> state, Stream stream) {
  MemorySource source(state);
  const auto verify_all = [&] {
    MemorySource again(state);
    verify(again);
  };
  return restore(descriptor, seq_id, source, verify_all, stream);
}

SequenceStateInfo restore_sequence(CacheDescriptor& descriptor, SeqId seq_id,
                                   const std::filesystem::path& path, Stream stream) {
  FileSource source(path);
  const auto verify_all = [&] {
    FileSource again = source.again();
    verify(again);
  };
  return restore(descriptor, seq_id, source, verify_all, stream);
}

SequenceStateInfo sequence_state_info(std::span<const std::byte> state) {
  MemorySource source(state);
  return StateReader(source).info();
}

SequenceStateInfo sequence_state_info(const std::filesystem::path& path) {
  FileSource source(path);
  return StateReader(source).info();
}

}  // namespace seqattn
