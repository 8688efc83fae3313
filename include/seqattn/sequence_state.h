#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "seqattn/cache_descriptor.h"
#include "seqattn/export.h"
#include "seqattn/types.h"

// The state of one sequence as bytes: saved from one pool, restored into another, of the same model
// shape and of any page size, layout, dtype and device. docs/sequence_state.md describes the bytes.
//
// All calls stream: their memory is one record, about 4 MiB (or one token of one layer, where that
// is more; twice or thrice that between dtypes), whatever the length of the sequence.
namespace seqattn {

// What a saved state says of itself.
struct SequenceStateInfo {
  std::int64_t length = 0;         // the next absolute position
  std::int64_t num_kv_tokens = 0;  // token slots held
  // As SequenceData has them: what the window is, and what it and `keep` have dropped.
  SlidingWindow window = {};
  std::int64_t dropped_to = 0;
  std::int64_t num_dropped = 0;
  std::int64_t num_in_front = 0;
  std::int64_t compacted_to = 0;
  int num_layers = 0;
  int num_heads = 0;              // KV heads
  int head_dim = 0;               // elements of a key
  int head_dim_v = 0;             // elements of a value
  DType dtype = DType::kFloat32;  // elements of 8 bits have their scales beside them, of any kind
  std::int64_t num_bytes = 0;     // of the whole state

  friend bool operator==(const SequenceStateInfo&, const SequenceStateInfo&) = default;
};

// Where a state is written to: memory, a file, a socket.
class SEQATTN_EXPORT ByteSink {
 public:
  virtual ~ByteSink();
  // Takes all of the bytes, behind those before. What it throws comes out of save_sequence.
  virtual void write(std::span<const std::byte> bytes) = 0;
};

// Where a state is read from.
class SEQATTN_EXPORT ByteSource {
 public:
  virtual ~ByteSource();
  // Fills `bytes` with those that follow and returns how many; fewer than asked for only where they
  // end. What it throws comes out of restore_sequence. It must not call the descriptor that is
  // restored into, nor its pool.
  virtual std::size_t read(std::span<std::byte> bytes) = 0;
  virtual std::string name() const;  // for messages: "sequence state"
};

// Writes the state of a sequence: tokens, lengths and the model's shape, in the cache's dtype.
// Throws UnknownSequenceError; InvalidArgumentError for a descriptor over a bare pool, and for a
// sequence with a pending tree. A const call: others may run at the same time. O(bytes written).
SEQATTN_EXPORT void save_sequence(const CacheDescriptor& descriptor, SeqId seq_id, ByteSink& sink,
                                  Stream stream = {});

// Into memory.
SEQATTN_EXPORT std::vector<std::byte> save_sequence(const CacheDescriptor& descriptor, SeqId seq_id,
                                                    Stream stream = {});

// Into a file, which is replaced as a whole: the bytes go to a temporary file of the same folder
// (".seqattn-<number>-<number>.tmp"), reach the disk, and take the name. A call that throws leaves
// the old file and no temporary one, with one exception: where the folder's own sync fails, the
// last step, the FileError says that the new file is there, though a crash may bring the old one
// back. A crash leaves the old file or the new one, and perhaps a temporary one. A symbolic link
// stays, and what it points at is replaced, or made. Throws FileError too, also for a path that is
// no regular file or names none.
SEQATTN_EXPORT void save_sequence(const CacheDescriptor& descriptor, SeqId seq_id,
                                  const std::filesystem::path& path, Stream stream = {});

// Starts a sequence from a saved state, read to its last byte and no further: with its own window,
// whatever that of the descriptor's new sequences. It is there when the call returns; when it
// throws nothing has changed, but for what a reclaimer gave up.
//
// In a cache of the state's dtype the tokens are the same bits; of 8-bit elements where its scales
// are those of tokens, or fixed and the same. Otherwise they pass through float32 and round to
// nearest, ties to even; float16 overflows to infinity beyond 65504, and 8 bits saturate at 448
// times a fixed scale.
//
// A pool that falls short asks its reclaimer. From memory or a file the whole state is checked
// first; from another source it is checked as it comes. So pages that the reclaimer gave up stay
// free where another source turns out wrong or throws, where a file changes or cannot be read any
// more, and where memory runs out.
//
// Throws InvalidArgumentError for a sequence that exists, a descriptor over a bare pool, another
// number of layers or heads, or another head dimension; SequenceStateError for bytes that are no
// state, or are truncated or corrupted; NoPageError when pool and reclaimer fall short; and what
// the source throws. O(bytes read).
SEQATTN_EXPORT SequenceStateInfo restore_sequence(CacheDescriptor& descriptor, SeqId seq_id,
                                                  ByteSource& source, Stream stream = {});

// From memory, or a regular file; both have to end with the state. Throws FileError too.
SEQATTN_EXPORT SequenceStateInfo restore_sequence(CacheDescriptor& descriptor, SeqId seq_id,
                                                  std::span<const std::byte> state,
                                                  Stream stream = {});
SEQATTN_EXPORT SequenceStateInfo restore_sequence(CacheDescriptor& descriptor, SeqId seq_id,
                                                  const std::filesystem::path& path,
                                                  Stream stream = {});

// What save_sequence would write. Throws as it does. O(1).
SEQATTN_EXPORT SequenceStateInfo sequence_state_info(const CacheDescriptor& descriptor,
                                                     SeqId seq_id);

// What a state's header says, for a decision before it is restored; the tokens are not looked at.
// Throws SequenceStateError, FileError. O(1).
SEQATTN_EXPORT SequenceStateInfo sequence_state_info(std::span<const std::byte> state);
SEQATTN_EXPORT SequenceStateInfo sequence_state_info(const std::filesystem::path& path);

}  // namespace seqattn
