// From ATB's tensors to the arguments of a Python function.
#include "call.h"

#include <stdexcept>

extern "C" const char* aclGetRecentErrMsg();

namespace ga::vnpu::atb_call {
namespace {

constexpr int32_t kInt32 = 3, kInt64 = 9;

// The handles of one call.
class Handles {
public:
    Handles() = default;
    Handles(const Handles&) = delete;
    Handles& operator=(const Handles&) = delete;
    ~Handles() {
        for (const Handle* handle : all_) destroy_handle(handle);
    }
    const Handle* keep(const Handle* made) {
        if (made == nullptr) refuse(aclGetRecentErrMsg());
        all_.push_back(made);
        return made;
    }

private:
    std::vector<const Handle*> all_;
};

}  // namespace

void refuse(const std::string& text) { throw std::runtime_error(text); }

void Arguments::refuse_argument(const char* name, const std::string& why) const {
    refuse(std::string(operator_) + ": " + name + why);
}

void Arguments::absent(Place place) {
    add({'T', {nullptr}});
    if (place == Place::device_any_format) add(of(kNd));
}

void Arguments::add_tensor(Tensor tensor, Place place, const char* name) {
    const int32_t format = tensor.format;
    if (format != kNd && place != Place::device_any_format) {
        refuse_argument(name, " is in format " + std::to_string(format) + "; supported: ND (2)");
    }
    tensor.kind = Kind::tensor;
    tensor.format = kNd;
    parts_.push_back({{'T', {nullptr}}, tensor, {}});
    if (place == Place::device_any_format) add(of(format));
}

void Arguments::host_lengths(int32_t dtype, const void* data, int64_t count, const char* name) {
    if (dtype != kInt32 && dtype != kInt64) refuse_argument(name, " is on the host and not of type int32 or int64");
    Part part{{'I', {nullptr}}, {}, {}};
    const auto* narrow = static_cast<const int32_t*>(data);
    const auto* wide = static_cast<const int64_t*>(data);
    for (int64_t i = 0; i < count; ++i) part.lengths.push_back(dtype == kInt32 ? narrow[i] : wide[i]);
    parts_.push_back(std::move(part));
}

void Arguments::tensor(const ::atb::Tensor& given, Place place, const char* name) {
    const ::atb::TensorDesc& desc = given.desc;
    if (given.device == nullptr && given.host == nullptr && desc.rank == 0) return absent(place);
    if (desc.rank > kMaxDims) refuse_argument(name, " has more than 8 dimensions");
    Tensor tensor;
    tensor.dtype = desc.dtype;
    tensor.format = desc.format;
    tensor.rank = static_cast<int32_t>(desc.rank);
    tensor.data = static_cast<char*>(given.device);
    int64_t count = 1;
    for (int i = tensor.rank - 1; i >= 0; --i) {
        tensor.dims[i] = desc.dims[i];
        tensor.strides[i] = count;
        count *= desc.dims[i];
    }
    if (given.host == nullptr) return add_tensor(tensor, place, name);
    if (place != Place::lengths) refuse_argument(name, " is a CPU tensor; the operator reads it on the device");
    host_lengths(desc.dtype, given.host, count, name);
}

void Arguments::handle(const void* address, Place place, const char* name) {
    if (address == nullptr) return absent(place);
    const Handle* found = find_handle(address, Kind::tensor);
    if (found == nullptr) refuse_argument(name, " is not a tensor");
    const Tensor& tensor = *static_cast<const Tensor*>(found);
    if (place != Place::lengths) return add_tensor(tensor, place, name);
    int64_t count = 1;
    for (int i = 0; i < tensor.rank; ++i) count *= tensor.dims[i];
    host_lengths(tensor.dtype, tensor.data + tensor.offset * item_size(tensor.dtype), count, name);
}

void Arguments::run(void* stream) const {
    Handles handles;
    std::vector<Argument> values;
    for (const Part& part : parts_) {
        Argument value = part.value;
        if (value.kind == 'I') {
            value.pointer = handles.keep(make_int_array(part.lengths.data(), part.lengths.size()));
        } else if (part.tensor.kind == Kind::tensor) {
            const Tensor& t = part.tensor;
            value.pointer = handles.keep(make_tensor(t.dtype, t.rank, t.dims, t.strides, t.offset, t.format, t.storage_rank,
                                                     t.storage_dims, t.data));
        }
        values.push_back(value);
    }
    if (call_named(operator_, values.data(), values.size(), stream) == kOk) return;
    const char* text = aclGetRecentErrMsg();
    refuse(text != nullptr ? text : std::string(operator_) + " failed");
}

}  // namespace ga::vnpu::atb_call
