#include "seqattn/types.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "seqattn/error.h"
#include "seqattn/version.h"

namespace seqattn {
namespace {

TEST(Types, HaveTheNamesThatPythonUses) {
  EXPECT_EQ(to_string(DType::kFloat32), "float32");
  EXPECT_EQ(to_string(DType::kFloat16), "float16");
  EXPECT_EQ(to_string(DType::kBFloat16), "bfloat16");
  EXPECT_EQ(to_string(KVLayout::kNHD), "NHD");
  EXPECT_EQ(to_string(KVLayout::kHND), "HND");
  EXPECT_EQ(to_string(cpu()), "cpu");
  EXPECT_EQ(to_string(cuda(3)), "cuda:3");
}

TEST(Types, ValuesOutsideAnEnumerationHaveANameToo) {
  EXPECT_EQ(to_string(static_cast<DType>(77)), "unknown dtype");
  EXPECT_EQ(to_string(static_cast<KVLayout>(77)), "unknown layout");
}

TEST(Types, KnowTheirSizesInBytes) {
  EXPECT_EQ(size_of(DType::kFloat32), 4);
  EXPECT_EQ(size_of(DType::kFloat16), 2);
  EXPECT_EQ(size_of(DType::kBFloat16), 2);
}

TEST(Types, DevicesAndCopiesCompareByValue) {
  EXPECT_EQ(cpu(), Device{});
  EXPECT_EQ(cuda(), cuda(0));
  EXPECT_NE(cuda(0), cuda(1));
  EXPECT_NE(cpu(), cuda());
  EXPECT_EQ((PageCopy{1, 2}), (PageCopy{1, 2}));
  EXPECT_NE((PageCopy{1, 2}), (PageCopy{2, 1}));
}

TEST(Version, IsTheHeaders) {
  const std::string expected = std::to_string(SEQATTN_VERSION_MAJOR) + "." +
                               std::to_string(SEQATTN_VERSION_MINOR) + "." +
                               std::to_string(SEQATTN_VERSION_PATCH);
  EXPECT_EQ(version(), expected);
}

std::vector<std::int64_t> items(ListView<std::int64_t> list) { return {list.begin(), list.end()}; }

TEST(ListView, TakesBracesVectorsAndSpans) {
  const std::vector<std::int64_t> expected = {4, 5, 6};
  EXPECT_EQ(items({4, 5, 6}), expected);
  EXPECT_EQ(items(expected), expected);
  EXPECT_EQ(items(std::span(expected)), expected);
  EXPECT_EQ(items(std::span<const std::int64_t, 2>(expected.data(), 2)),
            (std::vector<std::int64_t>{4, 5}));
  std::int64_t array[] = {7, 8};
  EXPECT_EQ(items(array), (std::vector<std::int64_t>{7, 8}));
}

TEST(ListView, BorrowsWhatItIsGiven) {
  const std::vector<std::int64_t> given = {4, 5, 6};
  const ListView<std::int64_t> list(given);
  EXPECT_EQ(list.data(), given.data());
  EXPECT_EQ(list.size(), 3u);
  EXPECT_EQ(list[2], 6);
  EXPECT_FALSE(list.empty());
}

TEST(ListView, MayBeEmpty) {
  EXPECT_TRUE(items({}).empty());
  EXPECT_TRUE(ListView<std::int64_t>().empty());
  EXPECT_TRUE(ListView<std::int64_t>(std::vector<std::int64_t>{}).empty());
}

// One of another element type would have to be copied: it does not compile, and says why.
static_assert(std::is_convertible_v<std::vector<std::int64_t>, ListView<std::int64_t>>);

template <class Exception>
void throw_as_error(const Exception& exception) {
  try {
    throw Exception(exception);
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), exception.what());
    return;
  }
}

TEST(Error, IsTheBaseOfEveryException) {
  throw_as_error(InvalidArgumentError("a"));
  throw_as_error(UnknownSequenceError(7));
  throw_as_error(NoPageError(3, 2));
  throw_as_error(UnsupportedError("b"));
  throw_as_error(BackendError("c"));
  EXPECT_THROW(throw Error("d"), std::runtime_error);
}

TEST(Error, ExceptionsSayWhatTheyAreAbout) {
  const UnknownSequenceError unknown(-7);
  EXPECT_EQ(unknown.seq_id(), -7);
  EXPECT_STREQ(unknown.what(), "Sequence ID -7 not found in cache descriptor");
  const NoPageError no_page(3, 2);
  EXPECT_EQ(no_page.needed(), 3);
  EXPECT_EQ(no_page.available(), 2);
  EXPECT_STREQ(no_page.what(),
               "Need 3 pages but only 2 available: release or truncate sequences, or give the pool "
               "a reclaimer (PrefixCache, set_reclaimer); for sequences that grow, try_allocate "
               "reports this as a value");
}

}  // namespace
}  // namespace seqattn
