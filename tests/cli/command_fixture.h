#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "command.h"

namespace seqattn::cli::testing {

// Runs the program in this process, with a folder of its own for each test.
class Command : public ::testing::Test {
 protected:
  Command()
      : folder_(std::filesystem::path(::testing::TempDir()) /
                ("seqattn_" +
                 std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()))) {
    std::filesystem::create_directories(folder_);
  }
  ~Command() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string write(const std::string& text) const {
    std::ofstream(path("trace.jsonl")) << text;
    return path("trace.jsonl");
  }
  // The trace that lies beside the tests.
  static std::string small_trace() { return SEQATTN_TEST_DATA "/small_trace.jsonl"; }

  int run(std::vector<std::string> arguments, bool is_terminal = false) {
    std::ostringstream out, err;
    const int status = run_command(std::move(arguments), out, err, is_terminal);
    out_ = out.str();
    err_ = err.str();
    return status;
  }

  std::filesystem::path folder_;
  std::string out_, err_;
};

inline constexpr const char* kGood =
    R"({"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [1]})";

}  // namespace seqattn::cli::testing
