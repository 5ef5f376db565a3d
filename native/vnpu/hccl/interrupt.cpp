// Ctrl-C while a rank waits for the others.
#include <sys/syscall.h>
#include <unistd.h>

#include "waiting.h"

// Python's, if the process has an interpreter.
extern "C" {
__attribute__((weak)) int Py_IsInitialized();
__attribute__((weak)) int PyGILState_Ensure();
__attribute__((weak)) void PyGILState_Release(int);
__attribute__((weak)) int PyErr_CheckSignals();
__attribute__((weak)) void PyErr_Clear();
__attribute__((weak)) int PyErr_ExceptionMatches(void* type);
__attribute__((weak)) extern void* PyExc_KeyboardInterrupt;
__attribute__((weak)) int PyErr_SetInterruptEx(int signal);
}

namespace ga::vnpu::hccl {

bool interrupted() {
    constexpr int kInterrupt = 2;
    if (PyErr_CheckSignals == nullptr || PyErr_SetInterruptEx == nullptr || Py_IsInitialized() == 0) return false;
    if (getpid() != static_cast<pid_t>(syscall(SYS_gettid))) return false;
    const int state = PyGILState_Ensure();
    const bool raised = PyErr_CheckSignals() != 0;
    if (raised) {
        // The call ends with an error; Ctrl-C is raised again as soon as Python is back.
        const bool keyboard = PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) != 0;
        PyErr_Clear();
        if (keyboard) PyErr_SetInterruptEx(kInterrupt);
    }
    PyGILState_Release(state);
    return raised;
}

}  // namespace ga::vnpu::hccl
