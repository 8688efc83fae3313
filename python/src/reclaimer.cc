#include "reclaimer.h"

#include <utility>

#include "arguments.h"

namespace seqattn::python {

void CallableReclaimer::set(nb::handle new_callable, PagePool& pool) {
  if (new_callable.is_none()) {
    if (pool.reclaimer() == this) pool.set_reclaimer(nullptr);
    callable.reset();
    return;
  }
  if (PyCallable_Check(new_callable.ptr()) == 0) {
    throw_type_error(concat("reclaimer: got ", class_name(new_callable),
                            "; expected a callable that takes a number of pages, or None"));
  }
  require(
      pool.reclaimer() == nullptr || pool.reclaimer() == this,
      "reclaimer: got one for a pool that has a PrefixCache; expected a pool without, since the "
      "cache is that pool's reclaimer");
  callable = nb::borrow(new_callable);
  pool.set_reclaimer(this);
}

bool CallableReclaimer::reclaim(std::int64_t num_pages) {
  const nb::gil_scoped_acquire gil;
  require_idle();
  const nb::object held = callable;  // it may remove itself
  const int answer = PyObject_IsTrue(call(held, num_pages).ptr());
  if (answer < 0) nb::raise_python_error();
  return answer == 1;
}

namespace {

[[noreturn]] void refuse(const char* what) {
  throw Error(
      concat("got a call of ", what,
             " while Python code works for a call of the same pool. A reclaimer may unref pages of "
             "the pool; a clock and a file object have to leave pool, descriptors and caches "
             "alone; other threads wait for a save to or a restore from a file object"));
}

}  // namespace

void CallableReclaimer::require_idle() const {
  if (running_) refuse("a descriptor, a prefix cache or allocate");
}

void CallableReclaimer::require_no_file() const {
  if (file_runs_) refuse("a pool");
}

}  // namespace seqattn::python
