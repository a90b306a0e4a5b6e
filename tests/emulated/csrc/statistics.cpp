// What the allocator tells: counters, the trace, and PyTorch's profiler.
#include "allocator.h"

namespace emulated {
namespace {

template <class F>
void each_stat(c10::CachingDeviceAllocator::DeviceStats& stats, F change) {
  for (auto* kinds :
       {&stats.allocation, &stats.segment, &stats.active, &stats.inactive_split, &stats.allocated_bytes,
        &stats.reserved_bytes, &stats.active_bytes, &stats.inactive_split_bytes, &stats.requested_bytes})
    for (auto& stat : *kinds) change(stat);
}

}  // namespace

c10::CachingDeviceAllocator::DeviceStats Allocator::getDeviceStats(c10::DeviceIndex) {
  Locked locked(device_lock());
  return stats_;
}

void Allocator::resetAccumulatedStats(c10::DeviceIndex) {
  Locked locked(device_lock());
  each_stat(stats_, [](auto& stat) { stat.reset_accumulated(); });
  stats_.num_alloc_retries = stats_.num_ooms = 0;
}

void Allocator::resetPeakStats(c10::DeviceIndex) {
  Locked locked(device_lock());
  each_stat(stats_, [](auto& stat) { stat.reset_peak(); });
}

void Allocator::record(const char* action, const Block& block, size_t bytes) {
  if (tracing) trace.push_back({action, reinterpret_cast<size_t>(block.address), bytes, block.stream});
}

void Allocator::report(const Block& block, int64_t change) const {
  c10::reportMemoryUsageToProfiler(
      block.address, change, size_t(stats_.allocated_bytes[0].current), size_t(stats_.reserved_bytes[0].current),
      the_device());
}

}  // namespace emulated
