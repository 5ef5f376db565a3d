// What each parameter structure means as a call: the name of the Python function, the tensors that these parameters
// bring, and the fields in order. Parameters of the function: inputs (with a format where one may be blocked), fields,
// outputs.
#pragma once
#include <vector>

#include "call.h"
#include "parameters.h"

namespace ga::vnpu::atb_call {

struct Input {
    const char* name;
    Place place = Place::device;
    bool given = true;
};

struct Field {
    const char* name;
    Argument value;
};

struct Description {
    const char* name;
    std::vector<Input> inputs;
    std::vector<Field> fields;
    size_t outputs = 1;
};

Description describe(const ::atb::infer::LinearParam& p);
Description describe(const ::atb::infer::ElewiseParam& p);
Description describe(const ::atb::infer::RmsNormParam& p);
Description describe(const ::atb::infer::GroupTopkParam& p);
Description describe(const ::atb::infer::RopeParam& p);
Description describe(const ::atb::infer::ReshapeAndCacheParam& p);
Description describe(const ::atb::infer::PagedAttentionParam& p);
Description describe(const ::atb::infer::SelfAttentionParam& p);

}  // namespace ga::vnpu::atb_call
