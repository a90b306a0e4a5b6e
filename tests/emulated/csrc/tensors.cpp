// Making, copying and viewing tensors of the device.
#include "tensors.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/strides.h>
#include <torch/library.h>

#include "allocator.h"
#include "host_allocator.h"

namespace emulated {

bool on_device(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kDevice; }

namespace {

char* first_entry(const at::Tensor& tensor) {
  void* start = tensor.storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get();
  return static_cast<char*>(start) + tensor.storage_offset() * int64_t(tensor.dtype().itemsize());
}

at::Tensor view_of(void* first, const at::Tensor& like) {
  auto options = at::TensorOptions().dtype(like.dtype()).device(at::kCPU);
  at::Tensor view = like.numel() ? at::from_blob(first, like.sizes(), like.strides(), options)
                                 : at::empty_strided(like.sizes(), like.strides(), options);
  if (like.is_conj()) view._set_conj(true);
  if (like.is_neg()) view._set_neg(true);
  return view;
}

}  // namespace

at::Tensor kernel_view(const at::Tensor& tensor) { return view_of(backing(first_entry(tensor)), tensor); }

Range range_of(const at::Tensor& tensor, bool write) {
  auto low = reinterpret_cast<uintptr_t>(first_entry(tensor));
  size_t entries = tensor.numel() ? 1 : 0;
  for (int64_t dim = 0; dim < tensor.dim() && entries; dim++)
    entries += size_t((tensor.size(dim) - 1) * tensor.stride(dim));
  return {low, low + entries * tensor.dtype().itemsize(), write};
}

at::Tensor empty_on_device(c10::IntArrayRef size, c10::IntArrayRef stride, c10::ScalarType dtype) {
  c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &allocator(), keys, dtype);
}

const at::Tensor& resize(const at::Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  if (self.sizes() == size && !format) return self;
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_sizes_contiguous(size);
  if (format && *format != at::MemoryFormat::Preserve) tensor->empty_tensor_restride(*format);
  size_t bytes = size_t(self.storage_offset() + self.numel()) * self.dtype().itemsize();
  if (self.numel() && bytes > self.storage().nbytes())
    at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(self.storage(), bytes);
  return self;
}

namespace {

using Dtype = std::optional<at::ScalarType>;
using Layout = std::optional<at::Layout>;
using Device = std::optional<at::Device>;
using Pin = std::optional<bool>;

void refuse_pinning(Pin pin) { TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned"); }

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, Dtype dtype, Layout, Device, Pin pin) {
  refuse_pinning(pin);
  return empty_on_device(size, stride, c10::dtype_or_default(dtype));
}

at::Tensor empty(
    c10::IntArrayRef size, Dtype dtype, Layout, Device, Pin pin, std::optional<at::MemoryFormat> format) {
  refuse_pinning(pin);
  c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &allocator(), keys, c10::dtype_or_default(dtype), format);
}

const at::Tensor& resize_(const at::Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  return resize(self, size, format);
}

// One side of a copy: of the device; pinned memory, which tasks use in their own time; or memory that is pageable,
// for which the host waits.
struct Side {
  bool device, pinned;
  at::Tensor view;
  explicit Side(const at::Tensor& tensor) : device(on_device(tensor)) {
    TORCH_CHECK(device || tensor.device().is_cpu(), "emu: no copies between this device and ", tensor.device());
    pinned = !device && host_allocator().pinned(first_entry(tensor));
    view = device ? kernel_view(tensor) : view_of(first_entry(tensor), tensor);
  }
};

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool non_blocking) {
  if (!target.numel()) return target;
  c10::InferenceMode no_tracking;
  Side from(source), to(target);
  const char* name = from.device ? to.device ? "copy" : "copy to host" : "copy to device";
  std::vector<Range> ranges;
  if (from.device || from.pinned) ranges.push_back(range_of(source, false));
  if (to.device || to.pinned) ranges.push_back(range_of(target, true));
  int64_t stream = Engine::current_stream();
  bool waits = !(from.device && to.device) && !(non_blocking && (from.pinned || to.pinned));
  if (!waits) {  // pinned memory that is freed meanwhile is kept from its next user
    if (from.pinned) host_allocator().used_on(first_entry(source), stream);
    if (to.pinned) host_allocator().used_on(first_entry(target), stream);
  }
  engine().launch(stream, name, ranges, [from = from.view, to = to.view]() mutable { to.copy_(from); });
  if (waits) engine().synchronize(stream);
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& target) {
  target.resize_(source.sizes());
  return copy_from(source, target, false);
}

void record_stream(at::Tensor& self, c10::Stream stream) {
  allocator().recordStream(self.storage().data_ptr(), stream);
}

at::Tensor& set_storage(
    at::Tensor& self, at::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_storage_keep_dtype(std::move(storage));
  auto dense = c10::contiguous_strides(size);
  tensor->set_sizes_and_strides(size, stride.size() == size.size() ? stride : c10::IntArrayRef(dense), offset);
  return self;
}

at::Tensor& set_whole_storage(at::Tensor& self, at::Storage storage) { return at::native::set_(self, storage); }

at::Tensor& set_empty(at::Tensor& self) {
  return set_storage(self, empty_on_device({0}, {1}, self.scalar_type()).storage(), 0, {0}, {1});
}

// `parameter.data = tensor` works from the CPU to the device and back, as with CUDA.
bool may_replace(const at::Tensor& self, const at::Tensor& other) {
  auto dense = [](const at::Tensor& t) { return t.layout() == at::kStrided && (on_device(t) || t.is_cpu()); };
  return dense(self) && dense(other);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("resize_", &resize_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("record_stream", &record_stream);
  m.impl("_has_compatible_shallow_copy_type", &may_replace);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_", &set_empty);
  m.impl("view", &at::native::view);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("view_as_complex", &at::native::view_as_complex);
}

}  // namespace emulated
