#include "memory.h"

#include <c10/util/Exception.h>
#include <sys/mman.h>

namespace emulated {
namespace {

constexpr size_t kSpace = size_t{1} << 44;  // of addresses: none of it takes memory before it is backed
constexpr size_t kGap = size_t{2} << 20;    // behind every reservation: what runs over the end is stopped

char* space() {
  static char* const first = [] {
    void* at = mmap(nullptr, 2 * kSpace, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(at != MAP_FAILED, "emulated device: no room for ", 2 * kSpace, " bytes of addresses");
    return static_cast<char*>(at);
  }();
  return first;
}

void remap(char* address, size_t bytes, int protection) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  void* at = mmap(backing(address), bytes, protection, flags, -1, 0);
  TORCH_CHECK(at != MAP_FAILED, "emulated device: the host has no memory for ", bytes, " bytes of the device");
}

}  // namespace

std::recursive_mutex& device_lock() {
  static auto* lock = new std::recursive_mutex();  // never destroyed: tensors may die after static objects
  return *lock;
}

char* reserve_addresses(size_t bytes) {
  static size_t used = 0;
  TORCH_CHECK(used + bytes + kGap <= kSpace, "emulated device: all addresses are used up");
  char* address = space() + used;
  used += rounded_up(bytes, kGap) + kGap;
  return address;
}

void back_with_memory(char* address, size_t bytes) { remap(address, bytes, PROT_READ | PROT_WRITE); }

void take_memory_away(char* address, size_t bytes) { remap(address, bytes, PROT_NONE); }

char* backing(const void* address) { return static_cast<char*>(const_cast<void*>(address)) + kSpace; }

}  // namespace emulated
