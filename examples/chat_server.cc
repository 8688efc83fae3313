// A chat server that computes of each turn only what is new.
//
// Every request carries its whole conversation. The prefix cache knows the pages of those that were
// there before: the turn starts over them, computes the rest, and gives its own pages to the cache
// when it is answered. All chats share the system prompt; the tenants do not, since their salts
// keep them apart. The pool is too small for everything: the cache gives up what was not used for
// longest. Every reply is checked against a computation without a cache.
#include <cstdio>
#include <random>
#include <string>

#include "toy_model.h"

namespace {

constexpr int kPageSize = 8, kNumPages = 96, kNumTurns = 60, kReplyLen = 10;

struct Chat {
  std::string tenant;
  toy::Tokens tokens;
};

struct Server {
  seqattn::PagedKVCacheManager manager{toy::cache_config(kNumPages, kPageSize)};
  seqattn::CacheDescriptor sequences{manager};
  seqattn::PrefixCache cache{manager.pool()};
  toy::Model model{manager};
  std::size_t num_asked = 0, num_computed = 0;  // tokens of all requests; those the model ran on

  // Adds the answer to the chat; says whether it is what it would be without a cache.
  bool reply(Chat& chat, seqattn::SeqId id) {
    seqattn::PrefixHandle found = cache.match(chat.tokens, chat.tenant);  // pinned meanwhile
    cache.attach(sequences, id, found);
    toy::Tokens next(chat.tokens.begin() + found.num_tokens(), chat.tokens.end());
    found.release();
    num_asked += chat.tokens.size();
    num_computed += next.size();
    for (int i = 0; i < kReplyLen; ++i) {
      const toy::Logits logits = model.forward(sequences, {id}, {next}).back();
      if (toy::distance(logits, toy::recompute(chat.tokens)) > toy::kTolerance) return false;
      next = {toy::best(logits)};
      chat.tokens.push_back(next[0]);
    }
    // The last token has been chosen, but not been through the model.
    const toy::Tokens computed(chat.tokens.begin(), chat.tokens.end() - 1);
    cache.insert(sequences, id, computed, chat.tenant);
    sequences.release({id});
    return true;
  }
};

}  // namespace

int main() {
  std::mt19937 random(2026);
  const auto say = [&](toy::Tokens& tokens, std::size_t count) {
    while (count-- > 0) tokens.push_back(static_cast<toy::Token>(random() % toy::kVocabulary));
  };
  Server server;
  toy::Tokens system;
  say(system, 40);
  std::vector<Chat> chats(7, {"north", system});
  for (std::size_t i = 4; i < chats.size(); ++i) chats[i].tenant = "south";
  for (seqattn::SeqId turn = 0; turn < kNumTurns; ++turn) {
    Chat& chat = chats[random() % chats.size()];
    say(chat.tokens, 3 + random() % 9);
    if (!server.reply(chat, turn)) {
      std::fprintf(stderr, "turn %d: not what it is without a cache\n", static_cast<int>(turn));
      return 1;
    }
  }
  server.cache.check_invariants();
  const seqattn::PrefixCacheStats stats = server.cache.stats();
  std::printf("%d turns of %zu chats: %zu of %zu tokens were computed\n", kNumTurns, chats.size(),
              server.num_computed, server.num_asked);
  std::printf("%d of %d pages are cached; %d had to go\n", static_cast<int>(stats.num_pages),
              kNumPages, static_cast<int>(stats.num_pages_evicted));
  return server.num_computed * 3 < server.num_asked && stats.num_pages_evicted > 0 ? 0 : 1;
}
