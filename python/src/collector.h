#pragma once

#include <nanobind/nanobind.h>

#include <initializer_list>

#include "classes.h"

// What Python's garbage collector is told: a reclaimer may hold, over any number of objects, the
// very pool that holds it, and a clock the prefix cache.
namespace seqattn::python {

struct Visit {
  visitproc visit;
  void* arg;
  int operator()(std::initializer_list<nb::handle> held) const {
    for (const nb::handle object : held) Py_VISIT(object.ptr());
    return 0;
  }
};

inline int visit_held(const Pool& self, const Visit& visit) {
  return visit(
      {self.manager, self.reclaimer ? nb::handle(self.reclaimer->callable) : nb::handle()});
}
inline int visit_held(const Manager& self, const Visit& visit) {
  return visit({self.reclaimer->callable, self.dtype, self.device, self.keys, self.values});
}
inline int visit_held(const Descriptor& self, const Visit& visit) { return visit({self.owner}); }
inline int visit_held(const Cache& self, const Visit& visit) {
  return visit({self.owner, self.clock});
}
inline int visit_held(const Handle& self, const Visit& visit) { return visit({self.owner}); }
inline int visit_held(const Attention& self, const Visit& visit) { return visit({self.owner}); }

template <class T>
int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return nb::inst_ready(self) ? visit_held(*nb::inst_ptr<T>(self), {visit, arg}) : 0;
}

template <class T>
void drop_callable(T& self) {
  reclaimer_of(self).set(nb::none(), self.page_pool());
}
inline void drop_callable(Cache& self) { self.clock.reset(); }

// Cuts every cycle there can be: the others hold what they need to the end.
template <class T>
int clear(PyObject* self) {
  if (nb::inst_ready(self)) drop_callable(*nb::inst_ptr<T>(self));
  return 0;
}

template <class T>
inline PyType_Slot traverse_slots[] = {{Py_tp_traverse, reinterpret_cast<void*>(&traverse<T>)},
                                       {0, nullptr}};
template <class T>
inline PyType_Slot traverse_and_clear_slots[] = {
    {Py_tp_traverse, reinterpret_cast<void*>(&traverse<T>)},
    {Py_tp_clear, reinterpret_cast<void*>(&clear<T>)},
    {0, nullptr}};

}  // namespace seqattn::python
