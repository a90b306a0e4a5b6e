// The device's caching allocator, by the rules of PyTorch's CUDACachingAllocator with default settings.
//
// Sizes are rounded to 512 bytes. Up to 1 MiB come from segments of 2 MiB, more from segments of 20 MiB, and from
// 10 MiB on from a segment of their own, rounded to 2 MiB. A freed block stays cached for its stream; the smallest
// cached block that is large enough is taken, and split where more than the pool's remainder is left. Neighbours merge.
// Where the capacity is reached, cached segments are released and the request is tried once more.
#pragma once
#include <c10/core/CachingDeviceAllocator.h>

#include <list>
#include <set>
#include <tuple>

#include "engine.h"

namespace emulated {

constexpr auto kDevice = c10::DeviceType::PrivateUse1;
inline c10::Device the_device() { return {kDevice, 0}; }

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kGranule = 512;
constexpr size_t kSmallSize = kMiB;           // up to here from the small pool
constexpr size_t kSmallSegment = 2 * kMiB;
constexpr size_t kLargeSegment = 20 * kMiB;
constexpr size_t kOwnSegment = 10 * kMiB;     // from here on a segment for one request
constexpr size_t kOwnGranule = 2 * kMiB;

struct Pool;

// Addresses with room for all of the device, backed piece by piece (`expandable_segments:True`).
struct ExpandableSegment {
  char* address;
  size_t piece;
};

struct Block {
  size_t bytes = 0, requested = 0;
  int64_t stream = 0;
  char* address = nullptr;
  Pool* pool = nullptr;
  Block *previous = nullptr, *next = nullptr;  // neighbours in its segment
  bool allocated = false, mapped = true;
  ExpandableSegment* expandable = nullptr;
  int events = 0;                // not reached yet, since it was freed
  std::set<int64_t> other_uses;  // streams that record_stream named
  bool split() const { return previous || next; }
  bool free() const { return !allocated && !events && other_uses.empty(); }
};

struct BySize {
  bool operator()(const Block* a, const Block* b) const {
    return std::tie(a->stream, a->bytes, a->address) < std::tie(b->stream, b->bytes, b->address);
  }
};

struct ByAddress {
  bool operator()(const Block* a, const Block* b) const {
    return std::tie(a->stream, a->address) < std::tie(b->stream, b->address);
  }
};

struct Pool {
  bool small;
  std::set<Block*, BySize> cached;
  std::set<Block*, ByAddress> unmapped;  // of expandable segments
  size_t remainder() const { return small ? kGranule : kSmallSize + 1; }
};

// What the allocator did, in the words of PyTorch's memory snapshots.
struct TraceEntry {
  const char* action;
  size_t address, bytes;
  int64_t stream;
};

class Allocator final : public c10::DeviceAllocator {
 public:
  size_t capacity = size_t{2} << 30;
  bool expandable = false;  // for segments made from now on
  bool poison = false;      // what was allocated holds 0xFF until it is written
  bool tracing = false;
  std::vector<TraceEntry> trace;

  void empty_cache();

  c10::DataPtr allocate(size_t bytes) override;
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override;
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override { empty_cache(); }
  void recordStream(const c10::DataPtr& data, c10::Stream stream) override;
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override;
  void resetAccumulatedStats(c10::DeviceIndex) override;
  void resetPeakStats(c10::DeviceIndex) override;
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override { return {capacity - taken_, capacity}; }

 private:
  static void free_block(void* block);
  Block* take(size_t requested);
  Block* take_cached(Pool& pool, size_t bytes);
  Block* take_new(Pool& pool, size_t bytes);
  Block* new_segment(Pool& pool, size_t bytes);
  Block* split(Block* block, size_t bytes);
  Block* cut(Block* block, size_t bytes);
  [[noreturn]] void out_of_memory(size_t requested);

  void give_back(Block* block);
  void put_in_cache(Block* block);
  void finish_events();
  size_t merge(Block* block, Block* neighbour);
  void release(Block* block);

  Block* take_expandable(Pool& pool, size_t bytes);
  Block* room_to_expand(Pool& pool, size_t bytes);
  Block* map(Block* block, size_t bytes);
  void unmap(Block* block);

  // Apply a change to the counters of all and to those of the pool.
  template <class F>
  void count(const Pool& pool, F change) {
    using c10::CachingAllocator::StatType;
    change(size_t(StatType::AGGREGATE));
    change(size_t(pool.small ? StatType::SMALL_POOL : StatType::LARGE_POOL));
  }
  void record(const char* action, const Block& block, size_t bytes);
  void report(const Block& block, int64_t change) const;

  Pool small_{true, {}, {}}, large_{false, {}, {}};
  size_t taken_ = 0;
  c10::CachingDeviceAllocator::DeviceStats stats_;
  std::list<std::pair<std::shared_ptr<Event>, Block*>> pending_;
};

Allocator& allocator();

}  // namespace emulated
