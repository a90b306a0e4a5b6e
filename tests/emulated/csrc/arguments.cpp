#include "arguments.h"

#include <ATen/ops/clone.h>
#include <ATen/ops/empty_strided.h>

#include <sstream>

namespace emulated {
namespace {

at::Tensor meta_view(const at::Tensor& tensor) {
  auto options = tensor.options().device(at::kMeta).pinned_memory(false);
  return at::empty_strided(tensor.sizes(), tensor.strides(), options);
}

// A CPU tensor beside tensors of the device: a number, or an index, of which the call keeps a copy.
at::Tensor copy_of_host_value(const at::Tensor& tensor, const c10::FunctionSchema& schema) {
  TORCH_CHECK(
      tensor.dim() == 0 || schema.name().find("index") != std::string::npos,
      "Expected all tensors to be on the same device, but found one on ", tensor.device(), " and one on emu:0 in ",
      schema.operator_name());
  return tensor.clone();
}

}  // namespace

Arguments::Arguments(const c10::FunctionSchema& schema, const torch::jit::Stack& stack) : schema(schema) {
  size_t count = schema.arguments().size();
  device.assign(stack.end() - long(count), stack.end());
  auto kernel_argument = [&](const at::Tensor& tensor) {
    return on_device(tensor) ? kernel_view(tensor) : copy_of_host_value(tensor, schema);
  };
  for (size_t i = 0; i < count; i++) {
    kernel.push_back(with_tensors(device[i], kernel_argument, at::kCPU));
    for_each_tensor(device[i], [&](const at::Tensor& tensor) {
      if (on_device(tensor) && tensor.numel()) ranges.push_back(range_of(tensor, written(i)));
      if (written(i) && schema.arguments()[i].is_out() && !tensor.numel()) fills_empty = true;
    });
  }
}

bool Arguments::written(size_t argument) const {
  const auto* alias = schema.arguments()[argument].alias_info();
  return alias && alias->isWrite();
}

c10::IValue Arguments::aliased(const c10::Argument& result) const {
  for (size_t i = 0; i < device.size(); i++)
    if (written(i) && schema.arguments()[i].alias_info()->beforeSets() == result.alias_info()->beforeSets())
      return device[i];
  TORCH_CHECK(false, "emu: which argument does ", schema.operator_name(), " return?");
}

torch::jit::Stack Arguments::meta() const {
  torch::jit::Stack values;
  for (const auto& value : device) values.push_back(with_tensors(value, meta_view, at::kMeta));
  return values;
}

std::string Arguments::key() const {
  std::ostringstream text;
  text << schema.operator_name();
  for (const auto& value : device) {
    text << '|';
    for_each_tensor(value, [&](const at::Tensor& tensor) {
      text << '<' << int(tensor.scalar_type()) << on_device(tensor) << tensor.sizes() << tensor.strides()
           << tensor.is_conj() << '>';
    });
    if (value.isOptionalTensorList()) {
      for (const auto& tensor : value.toOptionalTensorVector()) text << (tensor && tensor->defined());
    } else if (!value.isTensor() && !value.isTensorList() && !value.isNone()) {
      text << value;
    }
  }
  return text.str();
}

void Arguments::shape_outputs(const torch::jit::Stack& shaped) {
  for (size_t i = 0; i < device.size(); i++) {
    if (!device[i].isTensor() || !written(i) || !schema.arguments()[i].is_out()) continue;
    at::Tensor output = device[i].toTensor();
    resize(output, shaped[i].toTensor().sizes());
    kernel[i] = kernel_view(output);
    if (output.numel()) ranges.push_back(range_of(output, true));
  }
}

}  // namespace emulated
