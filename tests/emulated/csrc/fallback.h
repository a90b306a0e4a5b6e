// Operators of the device: the CPU's kernels, on the device's memory and in the order of its streams.
#pragma once
#include <map>
#include <string>

namespace emulated {

// How often each operator made the host wait, beside `item()`: its result's shape depends on values, it draws random
// numbers, or it has no meta kernel.
std::map<std::string, int64_t>& host_waits();

}  // namespace emulated
