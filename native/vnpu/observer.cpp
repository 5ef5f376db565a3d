// One Python callable that is told of events; none by default.
#include "observer.h"

#include <atomic>

#include "error.h"
#include "python_api.h"

namespace ga::vnpu {
namespace {
std::atomic<PyObject*> observer{nullptr};
}

void observe(const char* what, int64_t bytes) {
    PyObject* told = observer.load(std::memory_order_acquire);
    if (told == nullptr || Py_IsInitialized() == 0) return;
    const WithInterpreter lock;
    PyObject* text = PyUnicode_FromString(what);
    PyObject* size = PyLong_FromLongLong(bytes);
    PyObject* result = PyObject_CallFunctionObjArgs(told, text, size, nullptr);
    if (result == nullptr) {
        PyErr_Clear();  // a report never changes what the program does
    } else {
        Py_DecRef(result);
    }
    Py_DecRef(text);
    Py_DecRef(size);
}

}  // namespace ga::vnpu

GA_EXPORT void ga_vnpu_set_observer(PyObject* callable) {
    Py_IncRef(callable);
    ga::vnpu::observer.store(callable, std::memory_order_release);
}
