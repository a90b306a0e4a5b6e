// The arguments of one boxed call, of the device, and what becomes of them for the CPU's kernel and the meta kernel.
#pragma once
#include <ATen/core/List.h>
#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>

#include "tensors.h"

namespace emulated {

template <class F>
void for_each_tensor(const c10::IValue& value, F use) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) use(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector())
      if (tensor.defined()) use(tensor);
  } else if (value.isOptionalTensorList()) {
    for (const auto& tensor : value.toOptionalTensorVector())
      if (tensor && tensor->defined()) use(*tensor);
  }
}

// A value with other tensors in it, and `device` in place of ours.
template <class F>
c10::IValue with_tensors(const c10::IValue& value, F replace, c10::Device device) {
  if (value.isTensor()) return value.toTensor().defined() ? c10::IValue(replace(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(tensor.defined() ? replace(tensor) : tensor);
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const auto& tensor : value.toOptionalTensorVector())
      list.push_back(tensor && tensor->defined() ? std::optional<at::Tensor>(replace(*tensor)) : tensor);
    return list;
  }
  if (value.isDevice() && value.toDevice().type() == c10::DeviceType::PrivateUse1) return device;
  if (value.isGenerator() && value.toGenerator().defined() &&
      value.toGenerator().device().type() == c10::DeviceType::PrivateUse1)
    return c10::IValue();  // the host's default generator
  return value;
}

struct Arguments {
  const c10::FunctionSchema& schema;
  torch::jit::Stack device;   // as they came
  torch::jit::Stack kernel;   // on the memory behind the device
  std::vector<Range> ranges;  // of the device, read and written
  bool fills_empty = false;   // `out=` is to be given its shape

  Arguments(const c10::FunctionSchema& schema, const torch::jit::Stack& stack);

  bool written(size_t argument) const;
  // The argument that a result is.
  c10::IValue aliased(const c10::Argument& result) const;
  torch::jit::Stack meta() const;
  // Shapes, strides, dtypes and all other values: equal keys give results of equal shapes.
  std::string key() const;
  // Empty `out=` arguments take the shapes that the meta kernel gave theirs.
  void shape_outputs(const torch::jit::Stack& shaped);
};

}  // namespace emulated
