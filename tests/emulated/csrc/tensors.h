// Tensors of the device as kernels see them.
#pragma once
#include <ATen/core/Tensor.h>

#include "engine.h"

namespace emulated {

bool on_device(const at::Tensor& tensor);
// A CPU tensor on the memory behind one of the device. It holds no reference.
at::Tensor kernel_view(const at::Tensor& tensor);
// The bytes between a tensor's first and last entry.
Range range_of(const at::Tensor& tensor, bool write);
at::Tensor empty_on_device(c10::IntArrayRef size, c10::IntArrayRef stride, c10::ScalarType dtype);
const at::Tensor& resize(
    const at::Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat> format = std::nullopt);

}  // namespace emulated
