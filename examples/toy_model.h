#pragma once

#include <cstdint>
#include <vector>

#include "seqattn/seqattn.h"

// A language model that needs no weights: every number of its tables is a hash. One attention
// layer, which is seqattn's; its answers make no sense, but they depend on every token and its
// position, so that a wrong page or a wrong slot changes them.
namespace toy {

using Token = int;
using Tokens = std::vector<Token>;
using Logits = std::vector<double>;  // one for each token of the vocabulary: what may come next

inline constexpr int kVocabulary = 64;
inline constexpr int kNumHeads = 2, kNumQoHeads = 4, kHeadDim = 16;

// What a cache for the model looks like.
seqattn::KVCacheConfig cache_config(std::int64_t num_pages, int page_size);

class Model {
 public:
  explicit Model(seqattn::PagedKVCacheManager& manager);

  // Grows each sequence by its tokens, as one batch, and says for every one of them, in order, what
  // may follow it.
  std::vector<Logits> forward(seqattn::CacheDescriptor& sequences,
                              const std::vector<seqattn::SeqId>& ids,
                              const std::vector<Tokens>& new_tokens);

 private:
  seqattn::BatchAttention attention_;
};

// What may follow the last of these tokens, computed from all of them in double precision, without
// a cache and without seqattn's attention: what `forward` has to say too. With a window the last
// token sees that many, itself included, and the first sinks.
Logits recompute(const Tokens& tokens, const seqattn::SlidingWindow& window = {});

// A guess of the same from the last token alone, leaving out the attention layer: nearly free, and
// right now and then.
Logits guess(Token token, std::int64_t position);

Token best(const Logits& logits);
Logits log_softmax(const Logits& logits);

// The largest difference. Above kTolerance two computations are not the same.
double distance(const Logits& a, const Logits& b);
inline constexpr double kTolerance = 1e-3;

}  // namespace toy
