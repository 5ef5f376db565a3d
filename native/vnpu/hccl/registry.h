// The communicators of this process, by handle and by name.
#pragma once
#include <string>

#include "communicator.h"

namespace ga::vnpu::hccl {

using HcclComm = void*;

HcclComm add(const CommunicatorPtr& comm);
CommunicatorPtr find(HcclComm handle);           // null, with the error text set: no such communicator
HcclComm find_name(const std::string& name);     // the last one that was made with this name, or null
CommunicatorPtr remove(HcclComm handle);         // null: no such communicator

}  // namespace ga::vnpu::hccl
