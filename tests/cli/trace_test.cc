#include "trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace seqattn::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

std::string error_of(const std::string& line) {
  try {
    parse_request(line);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(Trace, ReadsARequest) {
  const Request request = parse_request(
      R"({"timestamp": 12.5, "input_length": 513, "output_length": 0, "hash_ids": [7, 4194303], "more": {}})");
  EXPECT_EQ(request.input_length, 513);
  EXPECT_EQ(request.output_length, 0);
  EXPECT_THAT(request.hash_ids, ElementsAre(7, 4194303));
}

TEST(Trace, SaysWhatIsWrong) {
  const std::string head = R"({"timestamp": 1, "output_length": 1, )";
  EXPECT_THAT(error_of(""), HasSubstr("no JSON at byte"));
  EXPECT_THAT(error_of(R"({"timestamp": 1)"), HasSubstr("no JSON at byte"));
  EXPECT_THAT(error_of(R"({"timestamp": 1e999})"), HasSubstr("no JSON that can be read"));
  EXPECT_THAT(error_of("[]"), HasSubstr("line: got array; expected a JSON object"));
  EXPECT_THAT(error_of("{}"), HasSubstr("timestamp: got nothing"));
  EXPECT_THAT(error_of(R"({"timestamp": "noon"})"), HasSubstr("timestamp: got \"noon\""));
  EXPECT_THAT(error_of(head + R"("hash_ids": [1]})"), HasSubstr("input_length: got nothing"));
  EXPECT_THAT(error_of(head + R"("input_length": 1.5, "hash_ids": [1]})"),
              HasSubstr("input_length: got 1.5; expected an integer"));
  EXPECT_THAT(error_of(head + R"("input_length": 0, "hash_ids": []})"),
              HasSubstr("input_length: got 0; expected an integer from 1"));
  EXPECT_THAT(error_of(head + R"("input_length": 99999999999999999999, "hash_ids": []})"),
              HasSubstr("input_length: got"));
  EXPECT_THAT(error_of(head + R"("input_length": 18446744073709551615, "hash_ids": []})"),
              HasSubstr("input_length: got 18446744073709551615"));
  EXPECT_THAT(error_of(head + R"("input_length": 5, "hash_ids": 1})"),
              HasSubstr("hash_ids: got number; expected an array"));
  EXPECT_THAT(error_of(head + R"("input_length": 513, "hash_ids": [1]})"),
              HasSubstr("hash_ids: got 1 id; expected 2, one for each 512 tokens"));
  EXPECT_THAT(error_of(head + R"("input_length": 512, "hash_ids": [1, 2]})"),
              HasSubstr("hash_ids: got 2 ids; expected 1, one for each 512 tokens"));
  EXPECT_THAT(error_of(head + R"("input_length": 5, "hash_ids": [4194304]})"),
              HasSubstr("hash_ids: got 4194304; expected an integer from 0 to 4194303"));
  EXPECT_THAT(error_of(head + R"("input_length": 5, "hash_ids": [-1]})"),
              HasSubstr("hash_ids: got -1"));
  EXPECT_THAT(
      error_of(
          R"({"timestamp": 1, "output_length": 2147483648, "input_length": 5, "hash_ids": [1]})"),
      HasSubstr("output_length: got 2147483648; expected an integer from 0 to 2147483647"));
  EXPECT_THAT(
      error_of(R"({"timestamp": 1, "output_length": -1, "input_length": 5, "hash_ids": [1]})"),
      HasSubstr("output_length: got -1"));
}

TEST(Trace, ShowsNoMoreOfAValueThanItsBeginning) {
  const auto error_with = [](const std::string& timestamp) {
    return error_of(R"({"timestamp": )" + timestamp + "}");
  };
  const std::string fits = '"' + std::string(78, 'x') + '"';
  EXPECT_EQ(error_with(fits), "timestamp: got " + fits + "; expected a number of milliseconds");
  EXPECT_EQ(error_with('"' + std::string(100'000, 'x') + '"'),
            "timestamp: got \"" + std::string(76, 'x') + "...; expected a number of milliseconds");
  // No character of several bytes is cut in two.
  for (const std::string start : {"", "x", "xx"}) {
    std::string text = start;
    for (int i = 0; i < 100; ++i) text += "\u20ac";
    const std::string error = error_with('"' + text + '"');
    const auto end = error.find("...; expected");
    ASSERT_NE(end, std::string::npos) << error;
    EXPECT_EQ(error.substr(end - 3, 3), "\u20ac");
  }
  EXPECT_LT(error_with("1" + std::string(100'000, '0')).size(), 150u);
  EXPECT_EQ(error_with(std::string(100'000, '[') + std::string(100'000, ']')),
            "timestamp: got array; expected a number of milliseconds");
}

TEST(Trace, NamesMalformedLinesByNumberAndReadsOn) {
  std::istringstream in(
      "{\"timestamp\": 1, \"input_length\": 3, \"output_length\": 2, \"hash_ids\": [5]}\n"
      "nonsense\n"
      "\n"
      " \t\r\n"
      "[]\n"
      "{\"timestamp\": 2, \"input_length\": 4, \"output_length\": 2, \"hash_ids\": [6]}");
  std::vector<std::pair<std::int64_t, std::string>> malformed;
  const auto requests = read_trace(
      in, [&](std::int64_t line, const std::string& what) { malformed.emplace_back(line, what); });
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_EQ(requests[1].input_length, 4);
  EXPECT_THAT(malformed,
              ElementsAre(Pair(2, HasSubstr("no JSON")), Pair(5, HasSubstr("got array"))));
}

TEST(Trace, TokensComeFromTheIds) {
  std::vector<TokenId> tokens{1, 2, 3};
  make_prompt({515, 1, {4194303, 2}}, tokens);
  ASSERT_EQ(tokens.size(), 515u);
  EXPECT_EQ(tokens[0], 2147483136);
  EXPECT_EQ(tokens[511], 2147483647);
  EXPECT_THAT(std::vector(tokens.begin() + 512, tokens.end()), ElementsAre(1024, 1025, 1026));
}

}  // namespace
}  // namespace seqattn::cli
