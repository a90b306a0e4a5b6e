// Pinned host memory, by the rules of PyTorch's CachingHostAllocator: sizes are rounded to powers of two, freed blocks
// are kept for requests of the same size until the cache is emptied, and nothing is split. Memory of the caller's own
// can be registered in place.
#pragma once
#include <ATen/core/CachingHostAllocator.h>

#include <list>
#include <map>
#include <set>

#include "engine.h"

namespace emulated {

class HostAllocator final : public at::HostAllocator {
 public:
  size_t limit = SIZE_MAX;  // of bytes pinned at a time, cached and registered ones included

  c10::DataPtr allocate(size_t bytes) override;
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* to, const void* from, size_t bytes) const override;
  bool record_event(void* address, void* context, c10::Stream stream) override;
  void empty_cache() override;
  at::HostStats get_stats() override;
  void reset_accumulated_stats() override;
  void reset_peak_stats() override;

  // Pin memory that the caller has, by pages; and let go of it.
  void register_memory(uintptr_t address, size_t bytes);
  void unregister_memory(uintptr_t address);

  bool pinned(const void* address);
  // After this an asynchronous copy on the current stream may use the memory, also once it is freed.
  void used_on(const void* address, int64_t stream);

 private:
  struct Pinned {
    size_t bytes = 0;
    bool in_use = false, registered = false;
    int events = 0;  // not reached yet, since it was freed
    std::set<int64_t> streams;
  };
  using Blocks = std::map<uintptr_t, Pinned>;

  static void free_block(void* address);
  void give_back(uintptr_t address);
  void put_in_cache(Blocks::iterator block);
  void finish_events();
  void release(Blocks::iterator block);
  void take(size_t bytes, size_t requested);
  Blocks::iterator find(const void* address);

  Blocks blocks_;
  std::map<size_t, std::vector<uintptr_t>> cached_;  // by size; the last one freed is the first one used
  std::list<std::pair<std::shared_ptr<Event>, uintptr_t>> pending_;
  at::HostStats stats_;
};

HostAllocator& host_allocator();

}  // namespace emulated
