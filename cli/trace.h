#pragma once

#include <cstdint>
#include <functional>
#include <istream>
#include <string>
#include <vector>

#include "seqattn/types.h"

// Request traces: one JSON object a line with `timestamp` (milliseconds), `input_length` and
// `output_length` (tokens) and `hash_ids`, one for each 512 tokens of the input; equal ids mean
// equal tokens, and equal ones before them.
namespace seqattn::cli {

inline constexpr std::int64_t kBlockTokens = 512;

struct Request {
  std::int64_t input_length = 0;       // at least 1
  std::int64_t output_length = 0;      // at least 0
  std::vector<std::int32_t> hash_ids;  // ceil(input_length / 512)
};

// Throws std::invalid_argument saying what is wrong with the line.
Request parse_request(const std::string& line);

// The requests of the lines that are well formed; blank lines are none. `on_malformed` hears of
// each other one, by its number from 1; it may throw to stop.
std::vector<Request> read_trace(
    std::istream& in,
    const std::function<void(std::int64_t line, const std::string& what)>& on_malformed);

// The tokens of the input, made from the ids: token j of a block is 512 * id + j.
void make_prompt(const Request& request, std::vector<TokenId>& tokens);

}  // namespace seqattn::cli
