// Beam search: beams that grow from one another share their pages, down to the prompt's.
//
// Each step runs the beams as one batch, ranks all of their continuations and keeps the best. A
// continuation is a fork of its beam: it shares the pages, and the last, partly filled one is
// copied when the fork writes to it. The same search without a cache checks the result.
#include <algorithm>
#include <cstdio>

#include "toy_model.h"

namespace {

constexpr int kNumBeams = 4, kSteps = 24, kPageSize = 4;
const toy::Tokens kPrompt = {3, 14, 15, 9, 26, 5, 35, 8, 9, 7};

struct Beam {
  seqattn::SeqId id = 0;
  toy::Tokens tokens;
  double score = 0;  // the log probability of what follows the prompt
};

// The best continuations of all beams; `logits` has what may follow each.
std::vector<Beam> extend(const std::vector<Beam>& beams, const std::vector<toy::Logits>& logits) {
  std::vector<Beam> next;
  for (std::size_t i = 0; i < beams.size(); ++i) {
    const toy::Logits log_p = toy::log_softmax(logits[i]);
    for (toy::Token token = 0; token < toy::kVocabulary; ++token) {
      next.push_back({beams[i].id, beams[i].tokens, beams[i].score + log_p[token]});
      next.back().tokens.push_back(token);
    }
  }
  const auto better = [](const Beam& a, const Beam& b) { return a.score > b.score; };
  std::partial_sort(next.begin(), next.begin() + kNumBeams, next.end(), better);
  next.resize(kNumBeams);
  return next;
}

}  // namespace

int main() {
  seqattn::PagedKVCacheManager manager(toy::cache_config(/*num_pages=*/64, kPageSize));
  seqattn::CacheDescriptor sequences(manager);
  toy::Model model(manager);

  std::vector<Beam> beams{{.id = 0, .tokens = kPrompt}};
  std::vector<toy::Logits> logits{model.forward(sequences, {0}, {kPrompt}).back()};
  for (seqattn::SeqId next_id = 1; next_id <= kSteps * kNumBeams;) {
    const std::vector<seqattn::SeqId> old_ids = sequences.seq_ids();
    std::vector<seqattn::SeqId> ids;
    std::vector<toy::Tokens> last;
    beams = extend(beams, logits);
    for (Beam& beam : beams) {
      sequences.fork(beam.id, next_id);
      ids.push_back(beam.id = next_id++);
      last.push_back({beam.tokens.back()});
    }
    sequences.release(old_ids);  // pages that no survivor shares are free
    logits = model.forward(sequences, ids, last);
  }
  const seqattn::Stats stats = sequences.stats();
  std::printf("%d beams of %zu tokens: %lld pages where %lld would be without sharing\n", kNumBeams,
              beams[0].tokens.size(), static_cast<long long>(stats.num_pages),
              static_cast<long long>(stats.num_page_references));

  std::vector<Beam> expected{{.id = 0, .tokens = kPrompt}};
  for (int step = 0; step < kSteps; ++step) {
    std::vector<toy::Logits> recomputed;
    recomputed.reserve(expected.size());
    for (const Beam& beam : expected) recomputed.push_back(toy::recompute(beam.tokens));
    expected = extend(expected, recomputed);
  }
  for (std::size_t i = 0; i < beams.size(); ++i) {
    const double off = beams[i].score - expected[i].score;
    if (beams[i].tokens != expected[i].tokens || off * off > toy::kTolerance * toy::kTolerance) {
      std::fprintf(stderr, "beam %zu is another one without a cache\n", i);
      return 1;
    }
  }
}
