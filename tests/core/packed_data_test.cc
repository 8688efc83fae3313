#include "seqattn/packed_data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "error_text.h"
#include "seqattn/cache_descriptor.h"

namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::int32_t kMax = std::numeric_limits<std::int32_t>::max();

TEST(FlashInferPackedData, KeepsTheCallersArrays) {
  const FlashInferPackedData packed({5, 3, 9}, {0, 2, 2, 3}, {4, 0, 1});
  EXPECT_THAT(packed.kv_page_indices(), ElementsAre(5, 3, 9));
  EXPECT_THAT(packed.kv_page_indptr(), ElementsAre(0, 2, 2, 3));
  EXPECT_THAT(packed.kv_last_page_len(), ElementsAre(4, 0, 1));
  EXPECT_EQ(packed.batch_size(), 3);
  EXPECT_EQ(packed.pool_id(), 0u);
  EXPECT_EQ(packed.to_string(), "FlashInferPackedData(batch_size=3, total_pages=3)");
}

TEST(FlashInferPackedData, MayHaveNoRows) {
  const FlashInferPackedData packed, from_arrays({}, {0}, {});
  for (const auto* data : {&packed, &from_arrays}) {
    EXPECT_EQ(data->batch_size(), 0);
    EXPECT_THAT(data->kv_page_indices(), IsEmpty());
    EXPECT_THAT(data->kv_page_indptr(), ElementsAre(0));
    EXPECT_THAT(data->kv_last_page_len(), IsEmpty());
  }
}

TEST(FlashInferPackedData, KnowsTheLengthOfARow) {
  const FlashInferPackedData packed({5, 3, 9}, {0, 2, 2, 3}, {4, 0, 1});
  EXPECT_EQ(packed.kv_len(0, 16), 20);
  EXPECT_EQ(packed.kv_len(1, 16), 0);
  EXPECT_EQ(packed.kv_len(2, 16), 1);
  EXPECT_EQ(packed.kv_len(0, kMax), std::int64_t{kMax} + 4);
  EXPECT_EQ(error_of([&] { packed.kv_len(3, 16); }), "row: got 3; expected 0 <= row < 3");
  EXPECT_EQ(error_of([&] { packed.kv_len(-1, 16); }), "row: got -1; expected 0 <= row < 3");
}

std::string refusal(std::vector<std::int32_t> indices, std::vector<std::int32_t> indptr,
                    std::vector<std::int32_t> last_page_len) {
  return error_of([&] { FlashInferPackedData(indices, indptr, last_page_len); });
}

TEST(FlashInferPackedData, RefusesAnIndptrThatIsNone) {
  EXPECT_EQ(refusal({}, {}, {}), "kv_page_indptr: got 0 entries; expected 1");
  EXPECT_EQ(refusal({1}, {0, 1}, {1, 1}), "kv_page_indptr: got 2 entries; expected 3");
  EXPECT_EQ(refusal({1, 2}, {1, 2}, {1}), "kv_page_indptr: starts at 1; expected 0");
  EXPECT_EQ(refusal({1, 2}, {0, 2, 1, 2}, {1, 1, 1}),
            "kv_page_indptr: falls from 2 to 1 at entry 2; expected entries that never fall");
  EXPECT_EQ(refusal({1, 2}, {0, -1, 2}, {0, 1}),
            "kv_page_indptr: falls from 0 to -1 at entry 1; expected entries that never fall");
  EXPECT_EQ(refusal({1, 2}, {0, 1}, {1}), "kv_page_indptr: ends at 1; expected 2");
  EXPECT_EQ(refusal({1, 2}, {0, kMax}, {1}), "kv_page_indptr: ends at 2147483647; expected 2");
}

TEST(FlashInferPackedData, RefusesLastPagesThatDoNotMatchTheRow) {
  EXPECT_EQ(refusal({1}, {0, 1, 1}, {2, 16}),
            "kv_last_page_len: got 16 for row 1 with 0 pages; expected 0");
  EXPECT_EQ(refusal({1}, {0, 1}, {0}),
            "kv_last_page_len: got 0 for row 0 with 1 pages; expected at least 1");
  EXPECT_EQ(refusal({1}, {0, 1}, {-3}),
            "kv_last_page_len: got -3 for row 0 with 1 pages; expected at least 1");
}

TEST(FlashInferPackedData, RefusesNegativePages) {
  EXPECT_EQ(refusal({0, 4, -1, 2}, {0, 4}, {1}),
            "kv_page_indices: entry 2 is negative; expected page ids from 0 on");
}

TEST(FlashInferPackedData, CopiesToADevice) {
  PagePool pool(4, 4);
  CacheDescriptor descriptor(pool);
  descriptor.allocate({1}, {6});
  const auto packed = descriptor.pack_for_flashinfer({1});
  const auto copy = packed.to_device(cpu());
  EXPECT_THAT(copy.kv_page_indices(), ElementsAre(0, 1));
  EXPECT_THAT(copy.kv_page_indptr(), ElementsAre(0, 2));
  EXPECT_THAT(copy.kv_last_page_len(), ElementsAre(2));
  EXPECT_EQ(copy.pool_id(), pool.id());
}

TEST(PackedData, TakesColumns) {
  const RowColumns columns{.windows = {{}, {.window = 4, .num_sink_tokens = 1}},
                           .trees = {{-1, 0}, {}}};
  const FlashInferPackedData packed({1, 2}, {0, 1, 2}, {3, 2}, columns);
  EXPECT_EQ(packed.columns(), columns);
  EXPECT_EQ(FlashInferPackedData({1}, {0, 1}, {3}).columns(), RowColumns());
  constexpr std::int64_t kTooMany = (std::int64_t{1} << 62) + 1;
  for (const RowColumns& wrong :
       std::vector<RowColumns>{{.windows = {{}}},
                               {.trees = {{}, {}, {}}},
                               {.windows = {{}, {.window = -1}}},
                               {.windows = {{}, {.num_sink_tokens = 1}}},
                               {.windows = {{.num_dropped = -1}, {}}},
                               {.windows = {{.first_query = -1}, {}}},
                               {.windows = {{.num_dropped = kTooMany}, {}}},
                               {.windows = {{.first_query = kTooMany}, {}}},
                               {.trees = {{0}, {}}}}) {
    EXPECT_THROW(FlashInferPackedData({1, 2}, {0, 1, 2}, {3, 2}, wrong), InvalidArgumentError);
  }
}

}  // namespace
}  // namespace seqattn
