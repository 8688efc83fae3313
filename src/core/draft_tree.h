#pragma once

#include <cstdint>
#include <span>
#include <vector>

// Trees of draft tokens: entry i is the parent of token i, in [-1, i); -1 is the sequence's last
// token.
namespace seqattn {

// Throws InvalidArgumentError for no tokens, or a parent out of range.
void check_tree(std::span<const std::int32_t> parents);

// Throws InvalidArgumentError unless `path` goes from a child of -1 down, each entry a child of the
// one before; it may be empty.
void check_path(std::span<const std::int32_t> parents, std::span<const std::int32_t> path);

// How far below the sequence's last token each is, from 0.
std::vector<std::int64_t> depths_of(std::span<const std::int32_t> parents);

}  // namespace seqattn
