// Decoding of arguments into Python objects, the call, and what happens when it fails.
#include "bridge.h"

#include <string.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "python_api.h"
#include "signature.h"
#include "stream.h"
#include "tensor_cache.h"

namespace ga::vnpu {
namespace {

std::vector<PyObject*>& bodies() {  // by index of the function
    static auto* const all = new std::vector<PyObject*>(signatures().size(), nullptr);
    return *all;
}

std::vector<uint64_t>& call_counts() {
    static auto* const all = new std::vector<uint64_t>(signatures().size(), 0);
    return *all;
}

std::unordered_map<std::string, PyObject*>& named_bodies() {
    static auto* const all = new std::unordered_map<std::string, PyObject*>;
    return *all;
}

PyObject* failure_handler = nullptr;  // (name, type, value, traceback) -> status; sets the error text
PyObject* dynamic_maker = nullptr;    // (address of the handle, tensor) -> DynamicOutput
PyObject* prepare = nullptr;          // builds what needs torch, before the first call; may be null
PyObject* mode_depth = nullptr;       // () -> number of modes that would send the body's own torch calls elsewhere
PyObject* shield = nullptr;           // (body, args) -> the same call without those modes

// A Python reference that is given back with the interpreter lock held, wherever it dies.
class Reference {
public:
    explicit Reference(PyObject* taken) : object_(taken) {}
    Reference(const Reference&) = delete;
    Reference& operator=(const Reference&) = delete;
    ~Reference() {
        if (object_ == nullptr || Py_IsInitialized() == 0) return;
        const WithInterpreter lock;
        Py_DecRef(object_);
    }
    PyObject* get() const { return object_; }

private:
    PyObject* object_;
};

// Turns the pending Python exception into a status and an error text. Ctrl-C is kept for the program itself: the call
// reports success and the interrupt is raised as soon as Python goes on.
Status failed(const char* name) {
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) != 0) {
        PyErr_Clear();
        PyErr_SetInterruptEx(2);
        return kOk;
    }
    PyObject *type = nullptr, *value = nullptr, *traceback = nullptr;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    PyObject* label = PyUnicode_FromString(name);
    PyObject* trace = traceback != nullptr ? traceback : &_Py_NoneStruct;
    PyObject* code = PyObject_CallFunctionObjArgs(failure_handler, label, value, trace, nullptr);
    Status status = kInternal;
    if (code != nullptr) {
        status = static_cast<Status>(PyLong_AsLongLong(code));
        Py_DecRef(code);
    } else {
        PyErr_Clear();
        set_error(std::string("aclnn") + name + " failed, and so did the report of why");
    }
    Py_DecRef(label);
    Py_DecRef(type);
    Py_DecRef(value);
    if (traceback != nullptr) Py_DecRef(traceback);
    return status;
}

Status bad_handle(const char* name, size_t position, char kind) {
    return fail(kInternal, std::string(name) + ": parameter " + std::to_string(position + 1) + " is not the '" + kind +
                               "' that the signature table says; the table does not fit this version of torch_npu");
}

PyObject* number_of(const Scalar& scalar) {
    switch (scalar.dtype) {
        case 0: case 1: case 11: case 27: return PyFloat_FromDouble(scalar.real[0]);
        case 16: case 17: return PyComplex_FromDoubles(scalar.real[0], scalar.real[1]);
        case 12: return PyBool_FromLong(scalar.integer != 0);
        case 10: return PyLong_FromUnsignedLongLong(static_cast<uint64_t>(scalar.integer));
        default: return PyLong_FromLongLong(scalar.integer);
    }
}

PyObject* member_of(const Handle* member) {
    if (member == nullptr) return none();
    return member->kind == Kind::tensor ? tensor_of(*static_cast<const Tensor*>(member))
                                        : number_of(*static_cast<const Scalar*>(member));
}

PyObject* list_of(const List& list) {
    PyObject* tuple = PyTuple_New(static_cast<ptrdiff_t>(list.members.size()));
    for (size_t i = 0; i < list.members.size(); ++i) {
        PyObject* member = member_of(list.members[i]);
        if (member == nullptr) {
            Py_DecRef(tuple);
            return nullptr;
        }
        PyTuple_SetItem(tuple, static_cast<ptrdiff_t>(i), member);
    }
    return tuple;
}

PyObject* array_of(const Array& array) {
    const size_t count = array.kind == Kind::float_array ? array.floats.size() : array.integers.size();
    PyObject* tuple = PyTuple_New(static_cast<ptrdiff_t>(count));
    for (size_t i = 0; i < count; ++i) {
        PyObject* item = array.kind == Kind::float_array  ? PyFloat_FromDouble(array.floats[i])
                         : array.kind == Kind::bool_array ? PyBool_FromLong(array.integers[i] != 0)
                                                          : PyLong_FromLongLong(array.integers[i]);
        PyTuple_SetItem(tuple, static_cast<ptrdiff_t>(i), item);
    }
    return tuple;
}

struct HandleKind {
    char letter;
    Kind kind;
};

constexpr HandleKind kHandleKinds[] = {{'T', Kind::tensor},      {'S', Kind::scalar},      {'L', Kind::tensor_list},
                                       {'l', Kind::scalar_list}, {'I', Kind::int_array},   {'F', Kind::float_array},
                                       {'B', Kind::bool_array}};

Kind kind_of(char letter) {
    for (const HandleKind& entry : kHandleKinds) {
        if (entry.letter == letter) return entry.kind;
    }
    return Kind::free;
}

// The Python object for a handle; `wrong` is set if the address is not one of this kind.
PyObject* object_of_handle(char letter, const void* address, bool* wrong) {
    if (address == nullptr) return letter == 'L' || letter == 'l' ? PyTuple_New(0) : none();
    const Handle* handle = find_handle(address, kind_of(letter));
    if (handle == nullptr) {
        *wrong = true;
        return nullptr;
    }
    switch (letter) {
        case 'T': return tensor_of(*static_cast<const Tensor*>(handle));
        case 'S': return number_of(*static_cast<const Scalar*>(handle));
        case 'L': case 'l': return list_of(*static_cast<const List*>(handle));
        default: return array_of(*static_cast<const Array*>(handle));
    }
}

PyObject* dynamic_output(const void* address) {
    bool wrong = false;
    PyObject* tensor = object_of_handle('T', address, &wrong);
    if (tensor == nullptr) return nullptr;
    PyObject* place = PyLong_FromLongLong(reinterpret_cast<int64_t>(address));
    PyObject* made = PyObject_CallFunctionObjArgs(dynamic_maker, place, tensor, nullptr);
    Py_DecRef(place);
    Py_DecRef(tensor);
    return made;
}

// Only the low bits of a small argument are defined.
Argument argument_of(char kind, uint64_t word) {
    Argument argument{kind, {nullptr}};
    switch (kind) {
        case 'w': argument.integer = static_cast<int32_t>(word); break;
        case 'h': argument.integer = static_cast<int16_t>(word); break;
        case 'c': argument.integer = static_cast<int8_t>(word); break;
        case 'b': argument.integer = (word & 0xFF) != 0; break;
        case 'd': memcpy(&argument.real, &word, sizeof argument.real); break;
        case 'f': {
            float value;
            memcpy(&value, &word, sizeof value);
            argument.real = static_cast<double>(value);
            break;
        }
        default: argument.integer = static_cast<int64_t>(word); break;
    }
    return argument;
}

PyObject* object_of(const Argument& argument, bool* wrong) {
    switch (argument.kind) {
        case 'i': case 'w': case 'h': case 'c': return PyLong_FromLongLong(argument.integer);
        case 'b': return PyBool_FromLong(argument.integer != 0);
        case 'd': case 'f': return PyFloat_FromDouble(argument.real);
        case 's': return argument.text != nullptr ? PyUnicode_FromString(argument.text) : none();
        case 'P': return PyLong_FromVoidPtr(const_cast<void*>(argument.pointer));
        default: return object_of_handle(argument.kind, argument.pointer, wrong);
    }
}

// A user's `with torch.device("npu")` would send the body's calls back to the NPU without end.
bool in_a_mode() {
    if (mode_depth == nullptr) return false;
    PyObject* depth = PyObject_CallFunctionObjArgs(mode_depth, nullptr);
    if (depth == nullptr) return false;
    const bool deep = PyLong_AsLongLong(depth) > 0;
    Py_DecRef(depth);
    return deep;
}

Status run(const char* name, PyObject* body, PyObject* args) {
    PyObject* result = in_a_mode() ? PyObject_CallFunctionObjArgs(shield, body, args, nullptr)
                                   : PyObject_Call(body, args, nullptr);
    if (result == nullptr) return failed(name);
    Py_DecRef(result);
    return kOk;
}

// Runs at once, or leaves body and arguments in the graph. The lock is held; `args` is taken.
Status run_or_record(const char* name, PyObject* body, PyObject* args, void* stream) {
    if (!defers(stream)) {
        const Status status = run(name, body, args);
        Py_DecRef(args);
        return status;
    }
    auto kept = std::make_shared<Reference>(args);
    return submit(stream, [name, body, kept] {
        const WithInterpreter lock;
        return run(name, body, kept->get());
    });
}

// Several threads may come here first together: the callable runs once and makes the others wait.
bool ready(const char* name, Status* status) {
    if (prepare == nullptr) return true;
    PyObject* result = PyObject_CallFunctionObjArgs(prepare, nullptr);
    if (result == nullptr) {
        *status = failed(name);
        return false;
    }
    prepare = nullptr;
    Py_DecRef(result);
    return true;
}

}  // namespace

Status call_operator(size_t index, const Signature& signature, const uint64_t* words, void* stream) {
    const char* name = signature.name.c_str();
    const WithInterpreter lock;
    Status status = kOk;
    if (!ready(name, &status)) return status;
    PyObject* body = bodies()[index];
    if (body == nullptr) {
        return fail(kKernelNotFound, std::string("aclnn") + name + " is not emulated by the virtual NPU "
                                     "(`gallium npu ops --missing` lists what is not)");
    }
    ++call_counts()[index];
    if (body == &_Py_NoneStruct) return kOk;  // so that the cost of torch_npu itself can be measured
    const size_t count = signature.parameters.size();
    PyObject* args = PyTuple_New(static_cast<ptrdiff_t>(count));
    for (size_t i = 0; i < count; ++i) {
        const Parameter& parameter = signature.parameters[i];
        const Argument argument = argument_of(parameter.kind, words[parameter.word]);
        bool wrong = false;
        PyObject* object = signature.dynamic[i] && argument.pointer != nullptr ? dynamic_output(argument.pointer)
                                                                               : object_of(argument, &wrong);
        if (object == nullptr) {
            Py_DecRef(args);
            return wrong ? bad_handle(name, i, parameter.kind) : failed(name);
        }
        PyTuple_SetItem(args, static_cast<ptrdiff_t>(i), object);
    }
    return run_or_record(name, body, args, stream);
}

Status call_named(const char* name, const Argument* arguments, size_t count, void* stream) {
    const WithInterpreter lock;
    Status status = kOk;
    if (!ready(name, &status)) return status;
    const auto body = named_bodies().find(name);
    if (body == named_bodies().end()) {
        return fail(kKernelNotFound, std::string(name) + " is not emulated by the virtual NPU");
    }
    PyObject* args = PyTuple_New(static_cast<ptrdiff_t>(count));
    for (size_t i = 0; i < count; ++i) {
        bool wrong = false;
        PyObject* object = object_of(arguments[i], &wrong);
        if (object == nullptr) {
            Py_DecRef(args);
            return wrong ? bad_handle(name, i, arguments[i].kind) : failed(name);
        }
        PyTuple_SetItem(args, static_cast<ptrdiff_t>(i), object);
    }
    return run_or_record(body->first.c_str(), body->second, args, stream);
}

}  // namespace ga::vnpu

using namespace ga::vnpu;

namespace {

void keep(PyObject** place, PyObject* object) {
    const WithInterpreter lock;
    Py_IncRef(object);
    *place = object;
}

}  // namespace

// The loader calls these through ctypes, with Python objects as arguments.
GA_EXPORT void ga_vnpu_set_hooks(PyObject* failure, PyObject* dynamic, PyObject* tensor_maker, PyObject* prepare_once) {
    keep(&failure_handler, failure);
    keep(&dynamic_maker, dynamic);
    keep(&prepare, prepare_once);
    set_tensor_maker(tensor_maker);
}

GA_EXPORT void ga_vnpu_set_shield(PyObject* depth, PyObject* call) {
    keep(&shield, call);
    keep(&mode_depth, depth);
}

// How often each function was called, by its index.
GA_EXPORT const uint64_t* ga_vnpu_call_counts() { return call_counts().data(); }

GA_EXPORT void ga_vnpu_set_body(int32_t index, PyObject* body) { keep(&bodies()[static_cast<size_t>(index)], body); }

GA_EXPORT void ga_vnpu_set_named_body(const char* name, PyObject* body) { keep(&named_bodies()[name], body); }
