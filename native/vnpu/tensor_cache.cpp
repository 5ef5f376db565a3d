// A hash table from the description of a tensor to the Python object. Only touched with the interpreter lock held.
#include "tensor_cache.h"

#include <string.h>

#include <string>
#include <unordered_map>

#include "device.h"
#include "error.h"
#include "memory.h"

namespace ga::vnpu {
namespace {

constexpr size_t kCapacity = 16384;
constexpr int kNz = 29;  // formats from here on are blocked: their storage shape matters

struct Key {
    int64_t words[4 + 3 * kMaxDims];
    int used;

    bool operator==(const Key& other) const {
        return used == other.used && memcmp(words, other.words, sizeof(int64_t) * static_cast<size_t>(used)) == 0;
    }
};

struct Hash {
    size_t operator()(const Key& key) const {
        uint64_t hash = 0x9E3779B97F4A7C15ull;
        for (int i = 0; i < key.used; ++i) {
            hash = (hash ^ static_cast<uint64_t>(key.words[i])) * 0xFF51AFD7ED558CCDull;
            hash ^= hash >> 32;
        }
        return static_cast<size_t>(hash);
    }
};

bool empty(const Tensor& tensor) {
    for (int i = 0; i < tensor.rank; ++i) {
        if (tensor.dims[i] == 0) return true;
    }
    return false;
}

bool blocked(const Tensor& tensor) { return tensor.format == kNz || tensor.format >= 50; }

Key key_of(const Tensor& tensor) {
    Key key;
    key.words[0] = reinterpret_cast<int64_t>(tensor.data);
    key.words[1] = tensor.offset;
    key.words[2] = static_cast<int64_t>(tensor.dtype) << 32 | tensor.format;
    key.words[3] = tensor.rank;
    int used = 4;
    for (int i = 0; i < tensor.rank; ++i) {
        key.words[used++] = tensor.dims[i];
        key.words[used++] = tensor.strides[i];
    }
    if (blocked(tensor)) {
        for (int i = 0; i < tensor.storage_rank; ++i) key.words[used++] = tensor.storage_dims[i];
    }
    key.used = used;
    return key;
}

std::unordered_map<Key, PyObject*, Hash>& table() {
    static auto* const one = new std::unordered_map<Key, PyObject*, Hash>;
    return *one;
}

uint64_t table_generation = 0;
PyObject* maker = nullptr;

void clear() {
    auto old = std::move(table());
    table().clear();
    for (auto& entry : old) Py_DecRef(entry.second);
}

PyObject* tuple_of(const int64_t* values, int count) {
    PyObject* tuple = PyTuple_New(count);
    for (int i = 0; i < count; ++i) PyTuple_SetItem(tuple, i, PyLong_FromLongLong(values[i]));
    return tuple;
}

PyObject* build(const Tensor& tensor) {
    Block block;
    const bool found = find_block(tensor.data, &block);
    PyObject* args = PyTuple_New(9);
    PyTuple_SetItem(args, 0, PyLong_FromLongLong(tensor.dtype));
    PyTuple_SetItem(args, 1, PyLong_FromLongLong(tensor.format));
    PyTuple_SetItem(args, 2, tuple_of(tensor.dims, tensor.rank));
    PyTuple_SetItem(args, 3, tuple_of(tensor.strides, tensor.rank));
    PyTuple_SetItem(args, 4, PyLong_FromLongLong(tensor.offset));
    PyTuple_SetItem(args, 5, tuple_of(tensor.storage_dims, tensor.storage_rank));
    PyTuple_SetItem(args, 6, PyLong_FromLongLong(reinterpret_cast<int64_t>(tensor.data)));
    // What may be read from there on, and on which device: nothing, for foreign memory.
    const int64_t room = found ? block.begin + block.size - tensor.data : 0;
    PyTuple_SetItem(args, 7, PyLong_FromLongLong(room));
    PyTuple_SetItem(args, 8, PyLong_FromLongLong(found ? block.device : -2));
    PyObject* made = PyObject_Call(maker, args, nullptr);
    Py_DecRef(args);
    return made;
}

}  // namespace

void set_tensor_maker(PyObject* callable) {
    Py_IncRef(callable);
    maker = callable;
}

PyObject* tensor_of(const Tensor& tensor) {
    if (empty(tensor)) return build(tensor);  // all lie at address 0: input and output must not become one object
    if (const uint64_t now = memory_generation(); now != table_generation) {
        clear();
        table_generation = now;
    }
    const Key key = key_of(tensor);
    auto found = table().find(key);
    if (found == table().end()) {
        PyObject* made = build(tensor);
        if (made == nullptr) return nullptr;
        if (table().size() >= kCapacity) clear();
        found = table().emplace(key, made).first;
    }
    Py_IncRef(found->second);
    return found->second;
}

}  // namespace ga::vnpu
