// The functions of Python's stable ABI that the bridge calls, declared here so that no Python headers are needed to build
// and one library serves every Python version. They are found in the interpreter that has loaded the library.
#pragma once
#include <stddef.h>

struct PyObject {
    void* opaque[2];
};
using PyGilState = int;

extern "C" {
int Py_IsInitialized();
PyGilState PyGILState_Ensure();
void PyGILState_Release(PyGilState);
void Py_IncRef(PyObject*);
void Py_DecRef(PyObject*);
PyObject* PyTuple_New(ptrdiff_t size);
int PyTuple_SetItem(PyObject* tuple, ptrdiff_t position, PyObject* item);  // takes the reference
PyObject* PyLong_FromLongLong(long long);
PyObject* PyLong_FromUnsignedLongLong(unsigned long long);
PyObject* PyLong_FromVoidPtr(void*);
PyObject* PyFloat_FromDouble(double);
PyObject* PyComplex_FromDoubles(double real, double imaginary);
PyObject* PyBool_FromLong(long);
PyObject* PyUnicode_FromString(const char*);
PyObject* PyObject_Call(PyObject* callable, PyObject* args, PyObject* keywords);
PyObject* PyObject_CallFunctionObjArgs(PyObject* callable, ...);
long long PyLong_AsLongLong(PyObject*);
void PyErr_Fetch(PyObject** type, PyObject** value, PyObject** traceback);
void PyErr_NormalizeException(PyObject** type, PyObject** value, PyObject** traceback);
void PyErr_Clear();
PyObject* PyErr_Occurred();
int PyErr_ExceptionMatches(PyObject* type);
int PyErr_SetInterruptEx(int signal);
extern PyObject _Py_NoneStruct;
extern PyObject* PyExc_KeyboardInterrupt;
}

namespace ga::vnpu {

inline PyObject* none() {
    Py_IncRef(&_Py_NoneStruct);
    return &_Py_NoneStruct;
}

// Holds the interpreter lock while it lives.
class WithInterpreter {
public:
    WithInterpreter() : state_(PyGILState_Ensure()) {}
    ~WithInterpreter() { PyGILState_Release(state_); }
    WithInterpreter(const WithInterpreter&) = delete;
    WithInterpreter& operator=(const WithInterpreter&) = delete;

private:
    PyGilState state_;
};

}  // namespace ga::vnpu
