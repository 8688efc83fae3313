#include "errors.h"

#include <nanobind/nanobind.h>

#include <cstring>

#include "seqattn/error.h"

namespace nb = nanobind;

namespace seqattn::python {
namespace {

// Sets the Python error to an instance of the named class of seqattn/_errors.py. Without
// exceptions: this runs while one is handled.
template <class... Args>
void raise(const char* name, const char* format, Args... args) {
  nb::object module = nb::steal(PyImport_ImportModule("seqattn._errors"));
  if (!module.is_valid()) return;
  nb::object type = nb::steal(PyObject_GetAttrString(module.ptr(), name));
  if (!type.is_valid()) return;
  nb::object error = nb::steal(PyObject_CallFunction(type.ptr(), format, args...));
  if (error.is_valid()) PyErr_SetObject(type.ptr(), error.ptr());
}

// A message with a path in it, whose bytes need not be UTF-8.
PyObject* printable(const char* message) {
  return PyUnicode_DecodeUTF8(message, static_cast<Py_ssize_t>(std::strlen(message)),
                              "backslashreplace");
}

void translate(const std::exception_ptr& exception, void*) {
  try {
    std::rethrow_exception(exception);
  } catch (const NoPageError& e) {
    raise("NoPageError", "sLL", e.what(), static_cast<long long>(e.needed()),
          static_cast<long long>(e.available()));
  } catch (const PinnedError& e) {
    raise("PinnedError", "sL", e.what(), static_cast<long long>(e.num_handles()));
  } catch (const InvalidArgumentError& e) {
    raise("InvalidArgumentError", "(s)", e.what());
  } catch (const UnknownSequenceError& e) {
    raise("UnknownSequenceError", "sL", e.what(), static_cast<long long>(e.seq_id()));
  } catch (const UnsupportedError& e) {
    raise("UnsupportedError", "(s)", e.what());
  } catch (const SequenceStateError& e) {
    raise("SequenceStateError", "(N)", printable(e.what()));
  } catch (const FileError& e) {
    PyObject* const path =
        e.path().empty() ? Py_NewRef(Py_None) : PyUnicode_DecodeFSDefault(e.path().c_str());
    raise("FileError", "NiN", printable(e.what()), e.code(), path);
  } catch (const BackendError& e) {
    raise("BackendError", "(s)", e.what());
  } catch (const Error& e) {
    raise("Error", "(s)", e.what());
  }
}

}  // namespace

void register_errors() { nb::register_exception_translator(translate); }

}  // namespace seqattn::python
