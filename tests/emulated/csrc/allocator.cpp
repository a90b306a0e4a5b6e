#include "allocator.h"

#include <c10/util/Exception.h>

#include <cstring>

namespace emulated {

using c10::CachingAllocator::Stat;

Allocator& allocator() {
  static auto* instance = new Allocator();
  return *instance;
}

namespace {

const bool registered = (c10::SetAllocator(kDevice, &allocator(), 0), true);

double in_mib(size_t bytes) { return double(bytes) / double(kMiB); }

size_t segment_bytes(size_t bytes) {
  if (bytes <= kSmallSize) return kSmallSegment;
  return bytes < kOwnSegment ? kLargeSegment : rounded_up(bytes, kOwnGranule);
}

void change_by(Stat& stat, int64_t amount) {
  if (amount > 0) stat.increase(size_t(amount));
  if (amount < 0) stat.decrease(size_t(-amount));
}

}  // namespace

// ---------------------------------------------------------------------------------------------- allocating

c10::DataPtr Allocator::allocate(size_t bytes) {
  if (!bytes) return {nullptr, nullptr, &free_block, the_device()};
  Locked locked(device_lock());
  Block* block = take(bytes);
  if (poison) {
    char* first = backing(block->address);
    engine().launch(Engine::current_stream(), "poison", {}, [first, size = block->bytes] { memset(first, 0xFF, size); });
  }
  return {block->address, block, &free_block, the_device()};
}

Block* Allocator::take(size_t requested) {
  finish_events();
  size_t bytes = rounded_up(requested, kGranule);
  Pool& pool = bytes <= kSmallSize ? small_ : large_;
  Block* block = take_cached(pool, bytes);
  if (!block) block = take_new(pool, bytes);
  if (!block) {
    stats_.num_alloc_retries++;
    empty_cache();
    block = take_new(pool, bytes);
  }
  if (!block) out_of_memory(requested);
  block = split(block, bytes);
  block->allocated = true;
  block->requested = requested;
  count(pool, [&](size_t kind) {
    stats_.allocation[kind].increase(1);
    stats_.allocated_bytes[kind].increase(block->bytes);
    stats_.active[kind].increase(1);
    stats_.active_bytes[kind].increase(block->bytes);
    stats_.requested_bytes[kind].increase(requested);
  });
  report(*block, int64_t(block->bytes));
  record("alloc", *block, requested);
  return block;
}

// The smallest cached block of the stream that is large enough; of expandable ones that which can grow least.
Block* Allocator::take_cached(Pool& pool, size_t bytes) {
  Block key;
  key.stream = Engine::current_stream();
  key.bytes = bytes;
  auto usable = [&](auto it) { return it != pool.cached.end() && (*it)->stream == key.stream; };
  auto grown = [](const Block* block) {
    return block->bytes + (block->next && !block->next->mapped ? block->next->bytes : 0);
  };
  auto it = pool.cached.lower_bound(&key);
  if (!usable(it)) return nullptr;
  for (auto next = std::next(it); (*it)->expandable && usable(next) && grown(*next) < grown(*it); ++next) it = next;
  Block* block = *it;
  pool.cached.erase(it);
  return block;
}

Block* Allocator::take_new(Pool& pool, size_t bytes) {
  return expandable ? take_expandable(pool, bytes) : new_segment(pool, segment_bytes(bytes));
}

Block* Allocator::new_segment(Pool& pool, size_t bytes) {
  if (taken_ + bytes > capacity) return nullptr;
  auto* block = new Block();
  block->bytes = bytes;
  block->stream = Engine::current_stream();
  block->address = reserve_addresses(bytes);
  block->pool = &pool;
  back_with_memory(block->address, bytes);
  taken_ += bytes;
  stats_.num_device_alloc++;
  count(pool, [&](size_t kind) {
    stats_.segment[kind].increase(1);
    stats_.reserved_bytes[kind].increase(bytes);
  });
  record("segment_alloc", *block, bytes);
  return block;
}

// Part the first `bytes` of a block from the rest, which the caller puts where it belongs.
Block* Allocator::cut(Block* block, size_t bytes) {
  auto* first = new Block(*block);
  first->bytes = bytes;
  first->next = block;
  if (first->previous) first->previous->next = first;
  block->previous = first;
  block->address += bytes;
  block->bytes -= bytes;
  return first;
}

Block* Allocator::split(Block* block, size_t bytes) {
  bool was_split = block->split();
  size_t before = block->bytes;
  size_t remainder = expandable ? kGranule : block->pool->remainder();
  Block* rest = nullptr;
  if (before - bytes >= remainder) {
    rest = block;
    block = cut(block, bytes);
    block->pool->cached.insert(rest);
  }
  if (block->expandable) return block;
  count(*block->pool, [&](size_t kind) {
    if (was_split) {
      stats_.inactive_split_bytes[kind].decrease(block->bytes);
      if (!rest) stats_.inactive_split[kind].decrease(1);
    } else if (rest) {
      stats_.inactive_split_bytes[kind].increase(rest->bytes);
      stats_.inactive_split[kind].increase(1);
    }
  });
  return block;
}

void Allocator::out_of_memory(size_t requested) {
  stats_.num_ooms++;
  size_t allocated = size_t(stats_.allocated_bytes[0].current), reserved = size_t(stats_.reserved_bytes[0].current);
  TORCH_CHECK_WITH(
      OutOfMemoryError, false, "EMU out of memory. Tried to allocate ", in_mib(requested),
      " MiB. The device has a total capacity of ", in_mib(capacity), " MiB of which ", in_mib(capacity - taken_),
      " MiB is free. ", in_mib(allocated), " MiB is allocated by PyTorch, and ", in_mib(reserved - allocated),
      " MiB is reserved by PyTorch but unallocated.");
  std::abort();  // not reached: the check raises
}

// ------------------------------------------------------------------------------------------------- freeing

void Allocator::free_block(void* block) {
  Locked locked(device_lock());
  if (block) allocator().give_back(static_cast<Block*>(block));
}

void Allocator::give_back(Block* block) {
  block->allocated = false;
  count(*block->pool, [&](size_t kind) {
    stats_.allocation[kind].decrease(1);
    stats_.allocated_bytes[kind].decrease(block->bytes);
    stats_.requested_bytes[kind].decrease(block->requested);
  });
  report(*block, -int64_t(block->bytes));
  record("free_requested", *block, block->requested);
  for (int64_t stream : std::exchange(block->other_uses, {})) {
    auto event = std::make_shared<Event>();
    block->events++;
    engine().record(stream, event);
    pending_.emplace_back(std::move(event), block);
  }
  if (!block->events) put_in_cache(block);
}

void Allocator::finish_events() {
  for (auto it = pending_.begin(); it != pending_.end();) {
    auto [event, block] = *it;
    if (!event->complete()) {
      ++it;
      continue;
    }
    it = pending_.erase(it);
    auto low = reinterpret_cast<uintptr_t>(block->address);
    engine().races.hand_on(low, low + block->bytes, event->clock);
    if (--block->events == 0) put_in_cache(block);
  }
}

void Allocator::put_in_cache(Block* block) {
  record("free_completed", *block, block->requested);
  size_t active = block->bytes;
  int64_t blocks = 0, bytes = 0;  // by which more lie split and inactive
  for (Block* neighbour : {block->previous, block->next})
    if (size_t merged = merge(block, neighbour)) {
      blocks--;
      bytes -= int64_t(merged);
    }
  block->pool->cached.insert(block);
  if (block->split()) {
    blocks++;
    bytes += int64_t(block->bytes);
  }
  count(*block->pool, [&](size_t kind) {
    stats_.active[kind].decrease(1);
    stats_.active_bytes[kind].decrease(active);
    if (block->expandable) return;
    change_by(stats_.inactive_split[kind], blocks);
    change_by(stats_.inactive_split_bytes[kind], bytes);
  });
}

// A block takes in a free neighbour, if it has one. Returns the bytes it grew by.
size_t Allocator::merge(Block* block, Block* neighbour) {
  if (!neighbour || !neighbour->free() || neighbour->mapped != block->mapped) return 0;
  if (neighbour->mapped)
    block->pool->cached.erase(neighbour);
  else
    block->pool->unmapped.erase(neighbour);
  if (neighbour == block->previous) {
    block->address = neighbour->address;
    block->previous = neighbour->previous;
    if (block->previous) block->previous->next = block;
  } else {
    block->next = neighbour->next;
    if (block->next) block->next->previous = block;
  }
  size_t bytes = neighbour->bytes;
  block->bytes += bytes;
  delete neighbour;
  return bytes;
}

// Cached segments go back to the device, whole ones only, after all that was enqueued has run.
void Allocator::empty_cache() {
  Locked locked(device_lock());
  engine().drain();
  finish_events();
  for (Pool* pool : {&large_, &small_})
    for (Block* block : std::vector<Block*>(pool->cached.begin(), pool->cached.end())) {
      if (block->expandable)
        unmap(block);
      else if (!block->split())
        release(block);
    }
}

void Allocator::release(Block* block) {
  block->pool->cached.erase(block);
  take_memory_away(block->address, block->bytes);
  auto low = reinterpret_cast<uintptr_t>(block->address);
  engine().races.forget(low, low + block->bytes);
  taken_ -= block->bytes;
  stats_.num_device_free++;
  count(*block->pool, [&](size_t kind) {
    stats_.segment[kind].decrease(1);
    stats_.reserved_bytes[kind].decrease(block->bytes);
  });
  record("segment_free", *block, block->bytes);
  delete block;
}

void Allocator::recordStream(const c10::DataPtr& data, c10::Stream stream) {
  if (!data.get() || data.get_deleter() != &free_block) return;
  Locked locked(device_lock());
  auto* block = static_cast<Block*>(data.get_context());
  if (stream.id() != block->stream) block->other_uses.insert(stream.id());
}

void Allocator::copy_data(void* to, const void* from, size_t bytes) const {
  auto range = [bytes](const void* at, bool write) {
    auto low = reinterpret_cast<uintptr_t>(at);
    return Range{low, low + bytes, write};
  };
  engine().launch(Engine::current_stream(), "copy_data", {range(from, false), range(to, true)}, [=] {
    memcpy(backing(to), backing(from), bytes);
  });
}

}  // namespace emulated
