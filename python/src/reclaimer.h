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

  // The answer of Python code that runs while a call may be half way through.
  nb::object call(nb::handle code, auto&&... args) {
    running_ = true;
    struct Stop {
      bool& running;
      ~Stop() { running = false; }
    } const stop{running_};
    return code(args...);
  }

  // Throws Error while such code runs: the descriptor whose call it serves is half way through,
  // and unlike C++ Python has to be safe from those who do not read.
  void require_idle() const;

  nb::object callable;  // not set without one

 private:
  bool running_ = false;
};

}  // namespace seqattn::python
