// Python tensors over device memory, made once per place and shape.
#pragma once
#include "handles.h"
#include "python_api.h"

namespace ga::vnpu {

// A new reference to the Python tensor that views what the handle describes, or null with a Python error set. The
// interpreter lock is held. Such a tensor owns nothing and its place and shape never change, so it can be kept.
PyObject* tensor_of(const Tensor& tensor);

// `make(dtype, format, dims, strides, offset, storage_dims, address, device)` builds one; called with the lock held.
void set_tensor_maker(PyObject* maker);

}  // namespace ga::vnpu
