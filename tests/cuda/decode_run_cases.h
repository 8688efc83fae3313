#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "seqattn/types.h"

// Batches large enough that decode's blocks take runs of chunks, of every kind: the host's tests
// check that they do, a GPU's what comes of it.
namespace seqattn::testing {

struct RunCase {
  std::string name;
  std::vector<std::pair<std::int64_t, int>> rows;  // keys, and how many rows there are of them
  int run_limit;                                   // in tiles, on a device of 132 multiprocessors
  int num_qo_heads = 32, num_kv_heads = 8, head_dim = 128;
  std::int64_t q_len = 1;
  std::optional<KVScaling> float8_scaling = {};  // of a cache of 8 bits
  int window_left = -1;
};

inline std::vector<RunCase> run_cases() {
  return {
      {.name = "Pairs", .rows = {{8192, 64}}, .run_limit = 128},
      // Of nine chunks: the last run is one alone.
      {.name = "PairsOfOddChunks", .rows = {{8300, 128}}, .run_limit = 128},
      {.name = "PairsOfFourQueries", .rows = {{8300, 128}}, .run_limit = 128, .q_len = 4},
      {.name = "PairsOfAWindow", .rows = {{9000, 64}}, .run_limit = 128, .window_left = 6000},
      // More rows than the planning kernel has threads.
      {.name = "ShortRows",
       .rows = {{1000, 1400}, {130, 100}, {1, 3}},
       .run_limit = 64,
       .num_qo_heads = 8,
       .num_kv_heads = 2},
      {.name = "WholeRows", .rows = {{4096, 80}, {2048, 60}, {2500, 14}}, .run_limit = 256},
      {.name = "WholeRowsOfFourQueries", .rows = {{4096, 256}}, .run_limit = 256, .q_len = 4},
      {.name = "Eights", .rows = {{32768, 64}}, .run_limit = 512},
      {.name = "EightsOfFewHeads",
       .rows = {{9000, 200}},
       .run_limit = 256,
       .num_qo_heads = 8,
       .num_kv_heads = 2},
      {.name = "EightsOfSixteenQueryRows",
       .rows = {{9000, 200}},
       .run_limit = 256,
       .num_qo_heads = 16,
       .num_kv_heads = 2,
       .q_len = 2},
      // The short ones whole, the long ones in chunks.
      {.name = "LongAndShort", .rows = {{32768, 8}, {1024, 56}}, .run_limit = 64},
      {.name = "HeadDim64", .rows = {{4096, 128}}, .run_limit = 256, .head_dim = 64},
      {.name = "HeadDim256", .rows = {{4096, 64}}, .run_limit = 256, .head_dim = 256},
      {.name = "Float8FixedScales",
       .rows = {{8192, 128}},
       .run_limit = 256,
       .float8_scaling = KVScaling::kFixed},
      {.name = "Float8ScalesOfTokens",
       .rows = {{4000, 128}},
       .run_limit = 256,
       .float8_scaling = KVScaling::kPerToken},
  };
}

inline constexpr std::int64_t kRaggedLengths[] = {
    1,    2,    3,    15,   16,   17,   33,   127,   128,   129,   1000,  1024,  1025, 2047,
    2048, 2049, 4096, 4097, 8191, 8192, 8193, 16384, 16385, 30000, 45000, 65536, 70001};

// Rows of those lengths, which are around every border of how they are split, alone and among so
// many others that blocks take runs.
inline std::vector<RunCase> ragged_cases() {
  using Rows = std::vector<std::pair<std::int64_t, int>>;
  const auto among = [](Rows others) {
    Rows rows;
    for (const std::int64_t kv_len : kRaggedLengths) rows.push_back({kv_len, 1});
    rows.insert(rows.end(), others.begin(), others.end());
    return rows;
  };
  return {
      {.name = "Alone", .rows = among({}), .run_limit = 64, .num_qo_heads = 8, .num_kv_heads = 1},
      {.name = "AmongShortRows",
       .rows = among({{1000, 600}}),
       .run_limit = 64,
       .num_qo_heads = 8,
       .num_kv_heads = 2},
      {.name = "AmongRowsOf2k",
       .rows = among({{2048, 200}}),
       .run_limit = 128,
       .num_qo_heads = 8,
       .num_kv_heads = 2},
      {.name = "AmongRowsOf32k",
       .rows = among({{32768, 200}}),
       .run_limit = 256,
       .num_qo_heads = 8,
       .num_kv_heads = 2},
      {.name = "OfThreeHeads",  // more than kFewHeads
       .rows = among({{32768, 200}}),
       .run_limit = 512,
       .num_qo_heads = 12,
       .num_kv_heads = 3},
      {.name = "OfThreeHeadsAmongRowsOf4k",
       .rows = among({{4096, 200}}),
       .run_limit = 256,
       .num_qo_heads = 12,
       .num_kv_heads = 3},
      {.name = "OfThreeHeadsOfFloat8",
       .rows = among({{8192, 600}}),
       .run_limit = 256,
       .num_qo_heads = 12,
       .num_kv_heads = 3,
       .float8_scaling = KVScaling::kFixed},
      {.name = "OfSixteenQueryRows",
       .rows = among({{4096, 1400}}),
       .run_limit = 256,
       .num_qo_heads = 32,
       .num_kv_heads = 2},
      {.name = "OfHeadDim64",
       .rows = among({{2048, 200}}),
       .run_limit = 128,
       .num_qo_heads = 8,
       .num_kv_heads = 2,
       .head_dim = 64},
      {.name = "OfHeadDim256",
       .rows = among({{32768, 200}}),
       .run_limit = 256,
       .num_qo_heads = 8,
       .num_kv_heads = 2,
       .head_dim = 256},
      {.name = "OfFloat8",
       .rows = among({{2048, 200}}),
       .run_limit = 128,
       .num_qo_heads = 8,
       .num_kv_heads = 2,
       .float8_scaling = KVScaling::kFixed},
      {.name = "OfFloat8ScalesOfTokens",
       .rows = among({{8192, 600}}),
       .run_limit = 256,
       .num_qo_heads = 32,
       .num_kv_heads = 2,
       .float8_scaling = KVScaling::kPerToken},
  };
}

}  // namespace seqattn::testing
