// Addresses of the device, and the host memory that stands behind them.
//
// A device address is never readable: the host that follows one is stopped by the processor, as with a real card. What
// a kernel reads and writes lies at a fixed distance, where only `backing` finds it. An address is given out once, so a
// pointer into a segment that was released stays invalid.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace emulated {

// One lock for the whole device: streams, allocators and the race check. Kernels run under it.
std::recursive_mutex& device_lock();
using Locked = std::lock_guard<std::recursive_mutex>;

char* reserve_addresses(size_t bytes);
void back_with_memory(char* address, size_t bytes);
void take_memory_away(char* address, size_t bytes);
char* backing(const void* address);

inline size_t rounded_up(size_t bytes, size_t granule) { return (bytes + granule - 1) / granule * granule; }

// Bytes of the device or of pinned memory that one task reads or writes: [low, high).
struct Range {
  uintptr_t low, high;
  bool write;
  bool meets(uintptr_t other_low, uintptr_t other_high) const { return low < other_high && other_low < high; }
};

}  // namespace emulated
