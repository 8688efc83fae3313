#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "seqattn/page_pool.h"

namespace seqattn::python {

namespace nb = nanobind;

// A Python callable as the reclaimer of a pool; without one it makes nothing free.
class CallableReclaimer final : public Reclaimer {
 public:
  // None removes it. Throws TypeError for what cannot be called, InvalidArgumentError where the
  // pool's reclaimer is a prefix cache.
  void set(nb::handle callable, PagePool& pool);
  bool reclaim(std::int64_t num_pages) override;

  // The answer of Python code that runs while a call may be half way through. What is to give pages
  // back may change reference counts meanwhile; a file may not.
  nb::object call(nb::handle code, auto&&... args) { return run(false, code, args...); }
  nb::object call_file(nb::handle code, auto&&... args) { return run(true, code, args...); }

  // Throws Error while such code runs: the descriptor whose call it serves is half way through,
  // and unlike C++ Python has to be safe from those who do not read. The second one: while a file
  // does.
  void require_idle() const;
  bool is_idle() const noexcept { return !running_; }
  void require_no_file() const;

  nb::object callable;  // not set without one

 private:
  nb::object run(bool is_file, nb::handle code, auto&&... args) {
    running_ = true;
    file_runs_ = is_file;
    struct Stop {
      CallableReclaimer& self;
      ~Stop() { self.running_ = self.file_runs_ = false; }
    } const stop{*this};
    return code(args...);
  }

  bool running_ = false, file_runs_ = false;
};

}  // namespace seqattn::python
