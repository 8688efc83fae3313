// A sliding window with attention sinks: a text that never ends, in a cache that never grows.
//
// Every token sees the first few (the sinks) and the last kWindow ones. Pages that hold nothing
// which anybody will see again go back to the pool as the sequence grows, for that very call: the
// pool of this program is a tenth of the text, and does not fall short. What is seen is exact to
// the token, not to the page, which is checked at every one.
#include <algorithm>
#include <cstdio>

#include "toy_model.h"

namespace {

constexpr int kPageSize = 8, kPromptLen = 150, kTextLen = 600;
constexpr seqattn::SlidingWindow kWindow{.window = 24, .num_sink_tokens = 3};
constexpr int kChunk = kPageSize;  // tokens of the prompt, a run
// The sinks' page; the window's, which may begin and end inside a page; what a run adds.
constexpr int kNumPages = 1 + (kWindow.window / kPageSize + 1) + kChunk / kPageSize;
constexpr seqattn::SeqId kText = 7;

}  // namespace

int main() {
  seqattn::PagedKVCacheManager manager(toy::cache_config(kNumPages, kPageSize));
  seqattn::CacheDescriptor sequences(manager, kWindow);  // the window of all its sequences
  toy::Model model(manager);

  // A prompt that is longer than the window, and than the pool, comes in pieces; then the text goes
  // on token by token, by the model's second choice, since its best one soon repeats itself.
  toy::Tokens text;
  for (int i = 0; i < kPromptLen; ++i) text.push_back(i * i % toy::kVocabulary);
  std::size_t most_pages = 0, num_run = 0;
  while (text.size() < kTextLen) {
    const std::size_t end = std::min(text.size(), num_run + kChunk);
    const toy::Tokens chunk(text.begin() + static_cast<std::ptrdiff_t>(num_run),
                            text.begin() + static_cast<std::ptrdiff_t>(end));
    const auto logits = model.forward(sequences, {kText}, {chunk});
    most_pages = std::max(most_pages, sequences.pages(kText).size());
    for (std::size_t i = 0; i < chunk.size(); ++i) {
      const toy::Tokens seen(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(++num_run));
      if (toy::distance(logits[i], toy::recompute(seen, kWindow)) > toy::kTolerance) {
        std::fprintf(stderr, "token %zu: not what it is without a cache\n", num_run - 1);
        return 1;
      }
    }
    if (num_run == text.size()) {
      toy::Logits next = logits.back();
      next[toy::best(next)] = -1e9;
      text.push_back(toy::best(next));
    }
  }
  sequences.check_invariants();
  std::printf(
      "%lld tokens, %lld of them held; never more than %zu pages, where %d would be without "
      "a window\n",
      static_cast<long long>(sequences.length(kText)),
      static_cast<long long>(sequences.num_kv_tokens(kText)), most_pages, kTextLen / kPageSize);
}
