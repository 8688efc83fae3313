// Parallel sampling: many answers to one prompt, which is computed once and stored once.
//
// The prompt is prefilled as a sequence of its own, and every answer forks it. They decode
// together, one batch a step, and end when they draw the end token, at different times: an answer
// that is done is released, and its own pages are free for others. Every token's logits are checked
// against a computation without a cache.
#include <cmath>
#include <cstdio>
#include <random>

#include "toy_model.h"

namespace {

constexpr int kNumAnswers = 8, kMaxTokens = 40, kPageSize = 8;
constexpr seqattn::SeqId kPrompt = -1;  // answer i is sequence i
constexpr toy::Token kEnd = 0;

toy::Token draw(const toy::Logits& logits, double temperature, std::mt19937& random) {
  toy::Logits weights = logits;
  for (double& weight : weights) weight = std::exp(weight / temperature);
  return std::discrete_distribution<toy::Token>(weights.begin(), weights.end())(random);
}

}  // namespace

int main() {
  seqattn::PagedKVCacheManager manager(toy::cache_config(/*num_pages=*/128, kPageSize));
  seqattn::CacheDescriptor sequences(manager);
  toy::Model model(manager);
  std::mt19937 random(2026);

  toy::Tokens prompt(50);
  for (toy::Token& token : prompt) token = static_cast<toy::Token>(random() % toy::kVocabulary);
  const toy::Logits first = model.forward(sequences, {kPrompt}, {prompt}).back();

  std::vector<seqattn::SeqId> running;
  std::vector<toy::Tokens> answers(kNumAnswers, prompt);
  for (seqattn::SeqId id = 0; id < kNumAnswers; ++id) {
    sequences.fork(kPrompt, id);
    running.push_back(id);
  }
  sequences.release({kPrompt});  // its pages live on in the answers
  const seqattn::Stats shared = sequences.stats();
  std::printf("%d answers share the prompt's %lld pages: %lld are saved\n", kNumAnswers,
              static_cast<long long>(shared.num_pages),
              static_cast<long long>(shared.num_page_references - shared.num_pages));

  std::vector<toy::Logits> logits(kNumAnswers, first);
  for (int step = 0; step < kMaxTokens && !running.empty(); ++step) {
    std::vector<toy::Tokens> drawn;
    std::vector<seqattn::SeqId> going_on;
    for (std::size_t i = 0; i < running.size(); ++i) {
      toy::Tokens& answer = answers[static_cast<std::size_t>(running[i])];
      if (toy::distance(logits[i], toy::recompute(answer)) > toy::kTolerance) {
        std::fprintf(stderr, "answer %lld: not what it is without a cache\n",
                     static_cast<long long>(running[i]));
        return 1;
      }
      answer.push_back(draw(logits[i], /*temperature=*/0.8, random));
      if (answer.back() == kEnd) {
        sequences.release({running[i]});
      } else {
        going_on.push_back(running[i]);
        drawn.push_back({answer.back()});
      }
    }
    running = going_on;
    logits = model.forward(sequences, running, drawn);
  }
  for (const toy::Tokens& answer : answers) std::printf("%zu ", answer.size() - prompt.size());
  std::printf("tokens; %lld answers are still going on\n", static_cast<long long>(running.size()));
}
