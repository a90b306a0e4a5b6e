#include "host_allocator.h"

#include <c10/util/Exception.h>
#include <sys/mman.h>

#include <bit>
#include <cstring>

namespace emulated {
namespace {

constexpr size_t kPage = 4096;

}  // namespace

HostAllocator& host_allocator() {
  static auto* instance = new HostAllocator();
  return *instance;
}

namespace {

const bool registered = (at::setHostAllocator(c10::DeviceType::PrivateUse1, &host_allocator(), 0), true);

}  // namespace

void HostAllocator::take(size_t bytes, size_t requested) {
  size_t pinned = size_t(stats_.allocated_bytes.current);
  TORCH_CHECK(
      bytes <= limit && pinned <= limit - bytes, "emulated device: can't pin ", bytes, " bytes (", requested,
      " requested): ", pinned, " of at most ", limit, " are pinned");
  stats_.allocations.increase(1);
  stats_.allocated_bytes.increase(bytes);
}

c10::DataPtr HostAllocator::allocate(size_t requested) {
  if (!requested) return {nullptr, nullptr, &free_block, c10::DeviceType::CPU};
  Locked locked(device_lock());
  finish_events();
  size_t bytes = std::bit_ceil(requested);
  uintptr_t address;
  if (auto& known = cached_[bytes]; !known.empty()) {
    address = known.back();
    known.pop_back();
  } else {
    take(bytes, requested);
    void* fresh = nullptr;
    TORCH_CHECK(!posix_memalign(&fresh, kPage, bytes), "emulated device: the host has no memory for ", bytes, " bytes");
    address = reinterpret_cast<uintptr_t>(fresh);
    blocks_[address].bytes = bytes;
    stats_.num_host_alloc++;
  }
  blocks_[address].in_use = true;
  stats_.active_requests.increase(1);
  stats_.active_bytes.increase(bytes);
  auto* at = reinterpret_cast<void*>(address);
  return {at, at, &free_block, c10::DeviceType::CPU};
}

void HostAllocator::free_block(void* address) {
  if (!address) return;
  Locked locked(device_lock());
  host_allocator().give_back(reinterpret_cast<uintptr_t>(address));
}

void HostAllocator::give_back(uintptr_t address) {
  auto it = blocks_.find(address);
  it->second.in_use = false;
  for (int64_t stream : std::exchange(it->second.streams, {})) {
    auto event = std::make_shared<Event>();
    it->second.events++;
    engine().record(stream, event);
    pending_.emplace_back(std::move(event), address);
  }
  if (!it->second.events) put_in_cache(it);
}

void HostAllocator::put_in_cache(Blocks::iterator it) {
  cached_[it->second.bytes].push_back(it->first);
  stats_.active_requests.decrease(1);
  stats_.active_bytes.decrease(it->second.bytes);
}

void HostAllocator::finish_events() {
  for (auto it = pending_.begin(); it != pending_.end();) {
    auto [event, address] = *it;
    if (!event->complete()) {
      ++it;
      continue;
    }
    it = pending_.erase(it);
    auto block = blocks_.find(address);
    engine().races.hand_on(address, address + block->second.bytes, event->clock);
    if (--block->second.events == 0) put_in_cache(block);
  }
}

void HostAllocator::empty_cache() {
  Locked locked(device_lock());
  finish_events();
  for (const auto& [bytes, addresses] : std::exchange(cached_, {}))
    for (uintptr_t address : addresses) {
      std::free(reinterpret_cast<void*>(address));
      stats_.num_host_free++;
      release(blocks_.find(address));
    }
}

void HostAllocator::release(Blocks::iterator it) {
  engine().races.forget(it->first, it->first + it->second.bytes);
  stats_.allocations.decrease(1);
  stats_.allocated_bytes.decrease(it->second.bytes);
  blocks_.erase(it);
}

void HostAllocator::register_memory(uintptr_t address, size_t bytes) {
  Locked locked(device_lock());
  uintptr_t first = address / kPage * kPage;
  size_t whole = rounded_up(address + bytes, kPage) - first;
  TORCH_CHECK(!pinned(reinterpret_cast<void*>(address)), "emulated device: this memory is pinned already");
  take(whole, bytes);
  Pinned& block = blocks_[first];
  block.bytes = whole;
  block.in_use = block.registered = true;
}

void HostAllocator::unregister_memory(uintptr_t address) {
  Locked locked(device_lock());
  auto it = find(reinterpret_cast<void*>(address));
  TORCH_CHECK(it != blocks_.end() && it->second.registered, "emulated device: this memory was not registered");
  engine().host_access("unregister", {it->first, it->first + it->second.bytes, true});
  release(it);
}

HostAllocator::Blocks::iterator HostAllocator::find(const void* address) {
  auto at = reinterpret_cast<uintptr_t>(address);
  auto it = blocks_.upper_bound(at);
  if (it == blocks_.begin()) return blocks_.end();
  --it;
  return at < it->first + it->second.bytes ? it : blocks_.end();
}

bool HostAllocator::pinned(const void* address) {
  Locked locked(device_lock());
  auto it = find(address);
  return it != blocks_.end() && it->second.in_use;
}

void HostAllocator::used_on(const void* address, int64_t stream) {
  Locked locked(device_lock());
  auto it = find(address);
  if (it != blocks_.end()) it->second.streams.insert(stream);
}

bool HostAllocator::record_event(void* address, void*, c10::Stream stream) {
  if (!pinned(address)) return false;
  used_on(address, stream.id());
  return true;
}

void HostAllocator::copy_data(void* to, const void* from, size_t bytes) const { memcpy(to, from, bytes); }

at::HostStats HostAllocator::get_stats() {
  Locked locked(device_lock());
  return stats_;
}

void HostAllocator::reset_accumulated_stats() {
  Locked locked(device_lock());
  for (auto* stat :
       {&stats_.active_requests, &stats_.active_bytes, &stats_.allocations, &stats_.allocated_bytes})
    stat->reset_accumulated();
}

void HostAllocator::reset_peak_stats() {
  Locked locked(device_lock());
  for (auto* stat :
       {&stats_.active_requests, &stats_.active_bytes, &stats_.allocations, &stats_.allocated_bytes})
    stat->reset_peak();
}

}  // namespace emulated
