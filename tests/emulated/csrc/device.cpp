// What PyTorch asks of a device: its streams and events (the guard), its generators and storages (the hooks).
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "allocator.h"
#include "host_allocator.h"

namespace emulated {
namespace {

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device) const override { return the_device(); }
  c10::Device getDevice() const override { return the_device(); }
  void setDevice(c10::Device device) const override { TORCH_CHECK(device.index() <= 0, "emu: there is one device"); }
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }

  c10::Stream getStream(c10::Device) const override { return stream(Engine::current_stream()); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(0); }
  c10::Stream getNewStream(c10::Device, int = 0) const override { return stream(engine().new_stream()); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(engine().new_stream()); }
  c10::Stream exchangeStream(c10::Stream next) const override {
    return stream(std::exchange(Engine::current_stream(), next.id()));
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return reinterpret_cast<void*>(stream.id() + 1);  // never null
  }
  bool queryStream(const c10::Stream& stream) const override { return engine().query(stream.id()); }
  void synchronizeStream(const c10::Stream& stream) const override { engine().synchronize(stream.id()); }
  void synchronizeDevice(const c10::DeviceIndex) const override { engine().synchronize_all(); }

  // An event that was never recorded is null, and complete.
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { delete handle(event); }
  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag) const override {
    if (!*event) *event = new std::shared_ptr<Event>(std::make_shared<Event>());
    engine().record(stream.id(), *handle(*event));
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event) engine().wait(stream.id(), *handle(event));
  }
  bool queryEvent(void* event) const override { return !event || engine().query(**handle(event)); }
  void synchronizeEvent(void* event) const override {
    if (event) engine().synchronize(**handle(event));
  }
  double elapsedTime(void* first, void* second, const c10::DeviceIndex) const override {
    TORCH_CHECK(queryEvent(first) && queryEvent(second), "emu: wait for both events before asking for their times");
    auto between = (*handle(second))->reached - (*handle(first))->reached;
    return std::chrono::duration<double, std::milli>(between).count();
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    allocator().recordStream(data, stream);
  }

 private:
  static c10::Stream stream(int64_t id) { return c10::Stream(c10::Stream::UNSAFE, the_device(), id); }
  static std::shared_ptr<Event>* handle(void* event) { return static_cast<std::shared_ptr<Event>*>(event); }
};

class Generator final : public at::CPUGeneratorImpl {
 public:
  Generator() { device_ = the_device(); }
};

class Hooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool isPinnedPtr(const void* address) const override { return host_allocator().pinned(address); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &host_allocator(); }
  c10::Device getDeviceFromPtr(void*) const override { return the_device(); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static at::Generator generator = at::make_generator<Generator>();
    return generator;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Generator>(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* held = storage.unsafeGetStorageImpl();
    auto fresh = allocator().allocate(bytes);
    if (size_t kept = std::min(bytes, held->nbytes())) allocator().copy_data(fresh.get(), held->data(), kept);
    held->set_data_ptr_noswap(std::move(fresh));
    held->set_nbytes(bytes);
  }
};

const bool registered = (at::RegisterPrivateUse1HooksInterface(new Hooks()), true);

}  // namespace

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

}  // namespace emulated
