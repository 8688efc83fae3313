#include "trace.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace seqattn::cli {
namespace {

using nlohmann::json;

// The last id whose block of tokens fits TokenId.
constexpr std::int64_t kMaxHashId =
    (std::numeric_limits<TokenId>::max() - (kBlockTokens - 1)) / kBlockTokens;
// Far beyond any model's context, and a pool's bookkeeping for it fits in memory.
constexpr std::int64_t kMaxLength = std::numeric_limits<std::int32_t>::max();

// The beginning of a text that may be as long as its line; characters of several bytes stay whole.
std::string beginning(std::string text) {
  constexpr std::size_t kMost = 80;
  if (text.size() <= kMost) return text;
  std::size_t end = kMost - 3;
  while ((text[end] & 0xC0) == 0x80) --end;
  return text.erase(end) + "...";
}

[[noreturn]] void refuse(const std::string& field, const std::string& got,
                         const std::string& expected) {
  throw std::invalid_argument(field + ": got " + beginning(got) + "; expected " + expected);
}

// Of arrays and objects the kind alone: to print a deep one would take the stack.
std::string shown(const json& value) {
  return value.is_structured() ? value.type_name() : value.dump();
}

const json& field_of(const json& object, const char* name) {
  const auto entry = object.find(name);
  if (entry == object.end()) refuse(name, "nothing", "a value");
  return *entry;
}

std::int64_t integer(const json& value, const char* name, std::int64_t least, std::int64_t most) {
  const std::string expected =
      "an integer from " + std::to_string(least) + " to " + std::to_string(most);
  if (!value.is_number_integer()) refuse(name, shown(value), expected);
  // Numbers beyond int64 are kept as unsigned ones.
  const bool fits =
      !value.is_number_unsigned() || value.get<std::uint64_t>() <= static_cast<std::uint64_t>(most);
  if (!fits || value.get<std::int64_t>() < least || value.get<std::int64_t>() > most) {
    refuse(name, shown(value), expected);
  }
  return value.get<std::int64_t>();
}

}  // namespace

Request parse_request(const std::string& line) {
  json object;
  try {
    object = json::parse(line);
  } catch (const json::parse_error& error) {
    throw std::invalid_argument("no JSON at byte " + std::to_string(error.byte));
  } catch (const json::exception& error) {  // a number that no type holds
    throw std::invalid_argument("no JSON that can be read: " + beginning(error.what()));
  }
  if (!object.is_object()) refuse("line", object.type_name(), "a JSON object");
  const json& timestamp = field_of(object, "timestamp");
  if (!timestamp.is_number()) refuse("timestamp", shown(timestamp), "a number of milliseconds");
  Request request;
  request.input_length = integer(field_of(object, "input_length"), "input_length", 1, kMaxLength);
  request.output_length =
      integer(field_of(object, "output_length"), "output_length", 0, kMaxLength);
  const json& ids = field_of(object, "hash_ids");
  if (!ids.is_array()) refuse("hash_ids", ids.type_name(), "an array");
  const std::int64_t num_blocks = (request.input_length - 1) / kBlockTokens + 1;
  if (static_cast<std::int64_t>(ids.size()) != num_blocks) {
    refuse("hash_ids", std::to_string(ids.size()) + (ids.size() == 1 ? " id" : " ids"),
           std::to_string(num_blocks) + ", one for each 512 tokens of the input");
  }
  request.hash_ids.reserve(ids.size());
  for (const json& id : ids) {
    request.hash_ids.push_back(static_cast<std::int32_t>(integer(id, "hash_ids", 0, kMaxHashId)));
  }
  return request;
}

std::vector<Request> read_trace(
    std::istream& in,
    const std::function<void(std::int64_t line, const std::string& what)>& on_malformed) {
  std::vector<Request> requests;
  std::string line;
  for (std::int64_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      requests.push_back(parse_request(line));
    } catch (const std::invalid_argument& error) {
      on_malformed(number, error.what());
    }
  }
  return requests;
}

void make_prompt(const Request& request, std::vector<TokenId>& tokens) {
  tokens.resize(static_cast<std::size_t>(request.input_length));
  std::size_t i = 0;
  for (const std::int32_t id : request.hash_ids) {
    const std::size_t end = std::min(tokens.size(), i + std::size_t{kBlockTokens});
    std::int64_t token = id * kBlockTokens;
    for (; i < end; ++i) tokens[i] = static_cast<TokenId>(token++);
  }
}

}  // namespace seqattn::cli
