#include "fallback.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <set>

#include "arguments.h"

namespace emulated {
namespace {

using torch::jit::Stack;

const c10::Device kHere{c10::DeviceType::PrivateUse1, 0};

// What an operator returns: tensors it makes, and whether also values that only the host can hold.
struct Results {
  bool tensors = false, values = false;

  explicit Results(const c10::FunctionSchema& schema) {
    for (const auto& result : schema.returns()) {
      bool argument = result.alias_info() && result.alias_info()->isWrite();
      TORCH_CHECK(!result.alias_info() || argument, "emu: ", schema.operator_name(), " is a view without a kernel");
      bool tensor = is_tensor(*result.type());
      tensors |= tensor && !argument;
      values |= !tensor;
    }
  }

  static bool is_tensor(const c10::Type& type) {
    if (type.kind() == c10::TypeKind::TensorType) return true;
    return type.kind() == c10::TypeKind::ListType &&
        type.castRaw<c10::ListType>()->getElementType()->kind() == c10::TypeKind::TensorType;
  }
};

// Shapes that depend on values, and random numbers, which are the host's.
bool needs_the_host(const std::string& name) {
  static const std::set<std::string> names = {
      "aten::nonzero",  "aten::masked_select", "aten::_unique2", "aten::repeat_interleave", "aten::normal_",
      "aten::uniform_", "aten::random_",       "aten::randperm", "aten::bernoulli_",        "aten::multinomial"};
  return names.count(name) > 0;
}

bool channels_last(const at::Tensor& tensor) {
  auto format = tensor.suggest_memory_format();
  return format == at::MemoryFormat::ChannelsLast || format == at::MemoryFormat::ChannelsLast3d;
}

// The meta kernel of `convolution` forgets that channels come last.
void mend_convolution(const Stack& arguments, Stack& results) {
  at::Tensor input = arguments[0].toTensor(), result = results[0].toTensor();
  if (!channels_last(input) && !channels_last(arguments[1].toTensor())) return;
  auto format = input.dim() == 5 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
  results[0] = at::empty(result.sizes(), result.options(), format);
}

// Shapes of what an operator returns, as meta tensors; none if it has no meta kernel or refuses the arguments.
std::optional<Stack> shapes_of_results(const c10::OperatorHandle& op, Arguments& arguments) {
  static auto* known = new std::map<std::string, Stack>();  // a meta kernel takes up to 11 ms
  std::string key = arguments.fills_empty ? "" : arguments.key();
  if (auto it = known->find(key); it != known->end()) return it->second;
  Stack given = arguments.meta(), results = given;
  try {
    op.callBoxed(&results);
  } catch (const std::exception&) {
    return std::nullopt;
  }
  if (arguments.schema.name() == "aten::convolution") mend_convolution(arguments.device, results);
  if (arguments.fills_empty)
    arguments.shape_outputs(given);
  else
    known->emplace(std::move(key), results);
  return results;
}

at::Tensor new_like(const at::Tensor& tensor) {
  return empty_on_device(tensor.sizes(), tensor.strides(), tensor.scalar_type());
}

// Enqueue the kernel; its results have memory already.
Stack run_in_order(const c10::OperatorHandle& op, Arguments& arguments, const Stack& shapes) {
  Stack results;
  std::vector<std::vector<at::Tensor>> targets;  // of every result
  for (size_t i = 0; i < arguments.schema.returns().size(); i++) {
    const auto& result = arguments.schema.returns()[i];
    auto& views = targets.emplace_back();
    if (result.alias_info()) {
      results.push_back(arguments.aliased(result));
      continue;
    }
    auto make = [&](const at::Tensor& shape) {
      at::Tensor fresh = new_like(shape);
      views.push_back(kernel_view(fresh));
      if (fresh.numel()) arguments.ranges.push_back(range_of(fresh, true));
      return fresh;
    };
    results.push_back(with_tensors(shapes[i], make, kHere));
  }
  auto kernel = [op, stack = arguments.kernel, targets]() mutable {
    op.callBoxed(&stack);
    for (size_t i = 0; i < targets.size(); i++) {
      auto target = targets[i].begin();
      if (!targets[i].empty()) for_each_tensor(stack[i], [&](const at::Tensor& tensor) { (target++)->copy_(tensor); });
    }
  };
  engine().launch(Engine::current_stream(), arguments.schema.name(), arguments.ranges, std::move(kernel));
  return results;
}

// Run the kernel and wait for it: what it returns tells how much memory that takes.
Stack run_and_wait(const c10::OperatorHandle& op, const Arguments& arguments) {
  const std::string& name = arguments.schema.name();
  int64_t stream = Engine::current_stream();
  if (name != "aten::_local_scalar_dense") host_waits()[toString(arguments.schema.operator_name())]++;
  Stack returned = arguments.kernel, results;
  engine().launch(stream, name, arguments.ranges, [&] { op.callBoxed(&returned); });
  engine().synchronize(stream);
  auto to_device = [&](const at::Tensor& tensor) {
    at::Tensor fresh = new_like(tensor);
    if (!tensor.numel()) return fresh;
    auto copy = [&tensor, target = kernel_view(fresh)]() mutable { target.copy_(tensor); };
    engine().launch(stream, name, {range_of(fresh, true)}, copy);
    engine().synchronize(stream);
    return fresh;
  };
  for (size_t i = 0; i < arguments.schema.returns().size(); i++) {
    const auto& result = arguments.schema.returns()[i];
    results.push_back(
        result.alias_info() ? arguments.aliased(result) : with_tensors(returned[i], to_device, kHere));
  }
  return results;
}

void fallback(const c10::OperatorHandle& op, Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView no_tracking;
  c10::impl::ExcludeDispatchKeyGuard no_modes(
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}));
  Results returns(op.schema());
  Arguments arguments(op.schema(), *stack);
  std::optional<Stack> shapes;
  if (!returns.values && !needs_the_host(op.schema().name())) {
    shapes.emplace();
    if (returns.tensors || arguments.fills_empty) shapes = shapes_of_results(op, arguments);
  }
  Stack results = shapes ? run_in_order(op, arguments, *shapes) : run_and_wait(op, arguments);
  torch::jit::drop(*stack, arguments.device.size());
  for (auto& result : results) stack->push_back(std::move(result));
}

}  // namespace

std::map<std::string, int64_t>& host_waits() {
  static auto* counts = new std::map<std::string, int64_t>();
  return *counts;
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

// Operators that are one kernel here, though PyTorch could take them apart for any device.
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  for (const char* name :
       {"convolution", "_convolution", "convolution_backward", "native_layer_norm", "native_group_norm",
        "scaled_dot_product_attention"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

}  // namespace emulated
