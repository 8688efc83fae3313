// Streams and host threads: objects are independent of one another, tables on their way to the
// device are never overwritten, and no call waits for the device.
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "gpu_case.h"
#include "gpu_support.h"
#include "graph_twins.h"
#include "random_source.h"

namespace seqattn::testing {
namespace {

// Holds a stream up until it is opened; for ten seconds at most, so that a call which waits for the
// device ends, and is noticed.
class Barrier {
 public:
  explicit Barrier(const OwnStream& stream) {
    check(cudaLaunchHostFunc(
        stream.handle(), [](void* self) { static_cast<Barrier*>(self)->hold(); }, this));
  }
  void open() {
    const std::lock_guard lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }
  bool timed_out() {
    const std::lock_guard lock(mutex_);
    return timed_out_;
  }

 private:
  void hold() {
    std::unique_lock lock(mutex_);
    timed_out_ = !changed_.wait_for(lock, std::chrono::seconds(10), [this] { return is_open_; });
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_open_ = false, timed_out_ = false;
};

// Runs work(0) and work(1) on threads of their own; gives what they throw.
std::vector<std::string> on_two_threads(const std::function<void(int)>& work) {
  std::vector<std::string> errors(2);
  std::vector<std::thread> threads;
  for (int id = 0; id < 2; ++id) {
    threads.emplace_back([&, id] {
      try {
        work(id);
      } catch (const std::exception& error) {
        errors[static_cast<std::size_t>(id)] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

class CudaConcurrency : public GpuTest {
 protected:
  void set_up() override {
    c = gpu_case(DType::kFloat16);
    rows = random_rows(c, random);
    batch = std::make_unique<PagedBatch>(c, rows, cuda(0), random);
    expected = bytes_by_row(rows, attend_on_gpu(c, rows, *batch).tensors);
  }
  // Rows [first, first + 1) of the batch as a batch of their own: other tables for every i.
  FlashInferPackedData one_row(std::size_t i) const {
    const auto indices = batch->packed().kv_page_indices();
    const auto begin = batch->packed().kv_page_indptr()[i];
    const auto end = batch->packed().kv_page_indptr()[i + 1];
    return {{indices.begin() + begin, indices.begin() + end},
            {0, end - begin},
            {batch->packed().kv_last_page_len()[i]}};
  }
  std::size_t row_of(int i) const { return static_cast<std::size_t>(i) % rows.size(); }

  std::mt19937_64 random = random_source(5600);
  AttentionCase c;
  std::vector<ref::Row> rows;
  std::unique_ptr<PagedBatch> batch;
  std::vector<std::vector<std::byte>> expected;
};

// Many plans and runs are enqueued while the device stands still: every copy of tables is still to
// be made when the last plan has been written.
TEST_F(CudaConcurrency, TablesUnderWayAreNotOverwritten) {
  constexpr int kPlans = 60;
  const OwnStream stream;
  BatchAttention attention(batch->manager(), c.options());
  // The largest batch first, so that buffers need not grow below.
  attention.plan(batch->packed(), qo_indptr_of(rows), {}, stream.get());
  stream.wait();
  for (int round = 0; round < 2; ++round) {
    std::vector<CallTensors> results;
    for (int i = 0; i < kPlans; ++i) {
      results.emplace_back(c, std::vector{rows[row_of(i)]}, cuda(0));
    }
    Barrier barrier(stream);
    for (int i = 0; i < kPlans; ++i) {
      const CallTensors& tensors = results[static_cast<std::size_t>(i)];
      const auto q_len = static_cast<std::int32_t>(rows[row_of(i)].q_len);
      attention.plan(one_row(row_of(i)), std::vector<std::int32_t>{0, q_len}, {}, stream.get());
      attention.run(tensors.q.view(), tensors.out.view(), tensors.run_options(), 0, stream.get());
    }
    barrier.open();
    stream.wait();
    for (int i = 0; i < kPlans; ++i) {
      const std::vector one{rows[row_of(i)]};
      EXPECT_TRUE(bytes_by_row(one, results[static_cast<std::size_t>(i)])[0] == expected[row_of(i)])
          << "round " << round << ", plan " << i;
    }
    // In the first round staging memory is allocated, for which the driver may wait.
    if (round == 0 && barrier.timed_out()) return;
    EXPECT_FALSE(barrier.timed_out()) << "a call waited for the device";
  }
}

// The same of sequences, whose tables stay on the device, with nothing between the launches: a plan
// starts while the run in front of it ends, and a run while the plan in front of it is at work.
TEST_F(CudaConcurrency, PlansAndRunsOfSequencesOverlap) {
  constexpr std::int64_t kLengths[] = {1, 40, 700, 2500, 300, 5000, 129};
  PagedKVCacheManager manager(c.cache_config(600, cuda(0)));
  CacheDescriptor sequences(manager);
  std::vector<SeqId> ids;
  for (const std::int64_t kv_len : kLengths) {
    ids.push_back(std::ssize(ids));
    start_with_normals(c, manager, sequences, ids.back(), kv_len, random);
  }
  Tensor q(cuda(0), c.q_dtype, {std::ssize(ids), c.num_qo_heads, c.head_dim});
  fill_with_normals(q, random);
  check(cudaDeviceSynchronize());

  struct Step {
    std::vector<SeqId> ids;
    std::vector<std::int32_t> indptr{0};
    TensorView q;
    Tensor out;
    std::vector<std::byte> expected;
  };
  const OwnStream stream;
  BatchAttention packed(manager, c.options()), attention(manager, c.options());
  std::vector<Step> steps(60);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    Step& step = steps[i];
    for (std::size_t k = 0; k <= (i * 3 + 6) % ids.size(); ++k) {  // all of them first
      step.ids.push_back(ids[(i + k) % ids.size()]);
      step.indptr.push_back(static_cast<std::int32_t>(k) + 1);
    }
    step.q = first_tokens(q.view(), std::ssize(step.ids));
    step.out = Tensor(cuda(0), c.out_dtype, {std::ssize(step.ids), c.num_qo_heads, c.head_dim});
    packed.plan(sequences.pack_for_flashinfer(step.ids), step.indptr, {}, stream.get());
    packed.run(step.q, step.out.view(), {}, 0, stream.get());
    stream.wait();
    step.expected = step.out.bytes();
  }
  const auto enqueue = [&] {
    for (const Step& step : steps) {
      attention.plan_sequences(sequences, step.ids, step.indptr, stream.get());
      attention.run(step.q, step.out.view(), {}, 0, stream.get());
    }
  };
  enqueue();  // afterwards nothing has to grow
  stream.wait();
  for (const Step& step : steps) fill_with_nan(step.out.view());
  check(cudaDeviceSynchronize());
  Barrier barrier(stream);
  enqueue();
  barrier.open();
  stream.wait();
  for (std::size_t i = 0; i < steps.size(); ++i) {
    EXPECT_TRUE(steps[i].out.bytes() == steps[i].expected) << "step " << i;
  }
  EXPECT_FALSE(barrier.timed_out()) << "a call waited for the device";
}

TEST_F(CudaConcurrency, TwoObjectsOnTwoStreamsAndTwoThreads) {
  std::vector<int> wrong(2);
  const auto indptr = qo_indptr_of(rows);
  const auto errors = on_two_threads([&](int id) {
    const OwnStream stream;
    BatchAttention attention(batch->manager(), c.options());
    const CallTensors tensors(c, rows, cuda(0));
    for (int step = 0; step < 100; ++step) {
      // Plans of one row in between, so that tables change all the time.
      const std::size_t row = row_of(step * (id + 1));
      const auto q_len = static_cast<std::int32_t>(rows[row].q_len);
      attention.plan(one_row(row), std::vector<std::int32_t>{0, q_len}, {}, stream.get());
      attention.plan(batch->packed(), indptr, {}, stream.get());
      attention.run(tensors.q.view(), tensors.out.view(), tensors.run_options(), 0, stream.get());
      if (step % 10 != 9) continue;
      stream.wait();
      if (bytes_by_row(rows, tensors) != expected) ++wrong[static_cast<std::size_t>(id)];
    }
    stream.wait();
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
  EXPECT_EQ(wrong, std::vector<int>(2));
}

// Calls that upload tables through the staging memory that all managers of a device share.
TEST_F(CudaConcurrency, TwoThreadsReadTheSameCache) {
  std::vector<int> wrong(2);
  const auto indices = batch->packed().kv_page_indices();
  const auto indptr = batch->packed().kv_page_indptr();
  const auto errors = on_two_threads([&](int id) {
    const OwnStream stream;
    for (int i = 0; i < 100; ++i) {
      const std::size_t row = row_of(i + id);
      const std::int64_t kv_len = rows[row].kv_len;
      const auto begin = static_cast<std::size_t>(indptr[row]);
      const auto count = static_cast<std::size_t>(indptr[row + 1]) - begin;
      const Tensor keys(cuda(0), DType::kFloat32, {kv_len, c.num_kv_heads, c.head_dim});
      const Tensor values(cuda(0), DType::kFloat32, {kv_len, c.num_kv_heads, c.head_dim});
      batch->manager().read_kv(indices.subspan(begin, count), 0, kv_len, keys.view(), values.view(),
                               0, stream.get());
      stream.wait();
      const bool same = keys.read() == rows[row].k && values.read() == rows[row].v;
      if (!same) ++wrong[static_cast<std::size_t>(id)];
    }
  });
  EXPECT_EQ(errors, std::vector<std::string>(2));
  EXPECT_EQ(wrong, std::vector<int>(2));
}

// Objects that are made, used and destroyed while others work do not disturb them.
TEST_F(CudaConcurrency, ObjectsComeAndGo) {
  const OwnStream stream, other;
  BatchAttention attention(batch->manager(), c.options());
  const CallTensors tensors(c, rows, cuda(0));
  for (int i = 0; i < 20; ++i) {
    attention.plan(batch->packed(), qo_indptr_of(rows), {}, stream.get());
    attention.run(tensors.q.view(), tensors.out.view(), tensors.run_options(), 0, stream.get());
    const CallTensors passing(c, rows, cuda(0));
    {
      BatchAttention temporary(batch->manager(), c.options());
      temporary.plan(batch->packed(), qo_indptr_of(rows), {}, other.get());
      temporary.run(passing.q.view(), passing.out.view(), passing.run_options(), 0, other.get());
    }
    stream.wait();
    other.wait();
    ASSERT_TRUE(bytes_by_row(rows, passing) == expected);
  }
  EXPECT_TRUE(bytes_by_row(rows, tensors) == expected);
}

}  // namespace
}  // namespace seqattn::testing
