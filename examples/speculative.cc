// Speculative decoding with rollback: several tokens for one run of the model.
//
// A cheap guess drafts tokens; the model then looks at all of them in one run, as it would at a
// piece of a prompt, and says at each what it would have chosen itself. The drafts that agree stay,
// with one token of the model's own behind them; the rest are taken back by `truncate`, pages and
// all. The text is the very one that decoding token by token gives, which is checked.
#include <cstdio>

#include "toy_model.h"

namespace {

constexpr int kNumDrafts = 5, kNumTokens = 200, kPageSize = 4;
const toy::Tokens kPrompt = {3, 14, 15, 9, 26, 5, 35, 8, 9, 7};

// Drafts that follow `tokens`, by guesses on guesses.
toy::Tokens draft(const toy::Tokens& tokens) {
  toy::Tokens drafts;
  toy::Token token = tokens.back();
  auto position = static_cast<std::int64_t>(tokens.size()) - 1;
  for (int i = 0; i < kNumDrafts; ++i) {
    drafts.push_back(token = toy::best(toy::guess(token, position++)));
  }
  return drafts;
}

}  // namespace

int main() {
  seqattn::PagedKVCacheManager manager(toy::cache_config(/*num_pages=*/64, kPageSize));
  seqattn::CacheDescriptor sequences(manager);
  toy::Model model(manager);
  constexpr seqattn::SeqId kText = 7;

  // `text` is what is known; the cache holds all of it but the last token.
  toy::Tokens text = kPrompt;
  text.push_back(toy::best(model.forward(sequences, {kText}, {kPrompt}).back()));
  int num_runs = 1;
  while (text.size() < kPrompt.size() + kNumTokens) {
    const toy::Tokens drafts = draft(text);
    toy::Tokens input{text.back()};
    input.insert(input.end(), drafts.begin(), drafts.end());
    const auto logits = model.forward(sequences, {kText}, {input});
    ++num_runs;

    std::size_t accepted = 0;  // drafts that the model would have chosen
    while (accepted < drafts.size() && drafts[accepted] == toy::best(logits[accepted])) ++accepted;
    text.insert(text.end(), drafts.begin(), drafts.begin() + static_cast<std::ptrdiff_t>(accepted));
    text.push_back(toy::best(logits[accepted]));
    sequences.truncate(kText, static_cast<std::int64_t>(text.size()) - 1);
  }
  sequences.check_invariants();
  std::printf("%zu tokens in %d runs of the model; %lld pages are in use for %lld tokens\n",
              text.size() - kPrompt.size(), num_runs,
              static_cast<long long>(sequences.stats().num_pages),
              static_cast<long long>(sequences.length(kText)));

  toy::Tokens expected = kPrompt;
  while (expected.size() < text.size()) expected.push_back(toy::best(toy::recompute(expected)));
  if (text != expected) {
    std::fprintf(stderr, "the text is another one without speculation\n");
    return 1;
  }
}
