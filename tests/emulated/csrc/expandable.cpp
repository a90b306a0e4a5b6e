// Segments that grow: addresses with room for the whole device, backed in pieces of 2 MiB or 20 MiB.
#include "allocator.h"

namespace emulated {

// A block of at least `bytes`, grown from free and unmapped neighbours. Null where the capacity does not allow it.
Block* Allocator::take_expandable(Pool& pool, size_t bytes) {
  Block* block = room_to_expand(pool, bytes);
  if (!block->mapped) block = map(block, std::min(block->bytes, bytes));
  while (block && block->bytes < bytes)  // what is mapped takes in `block`, which is free
    block = map(block->next, std::min(bytes - block->bytes, block->next->bytes));
  if (block) pool.cached.erase(block);
  return block;
}

// The first of free and unmapped blocks in a row that have the addresses; a new segment where there are none.
Block* Allocator::room_to_expand(Pool& pool, size_t bytes) {
  auto has_room = [bytes](const Block* block) {
    size_t room = 0;
    for (; room < bytes && block && block->free(); block = block->next) room += block->bytes;
    return room >= bytes;
  };
  for (Block* block : pool.unmapped) {
    if (block->stream != Engine::current_stream()) continue;
    Block* first = block->previous && block->previous->free() ? block->previous : block;
    if (has_room(first)) return first;
  }
  size_t piece = pool.small ? kSmallSegment : kLargeSegment;
  size_t room = rounded_up(std::max(capacity + capacity / 8, bytes), piece);
  auto* block = new Block();
  block->bytes = room;
  block->stream = Engine::current_stream();
  block->address = reserve_addresses(room);
  block->pool = &pool;
  block->mapped = false;
  block->expandable = new ExpandableSegment{block->address, piece};
  pool.unmapped.insert(block);
  return block;
}

// Back the first `bytes` of an unmapped block, in whole pieces, and cache them with free neighbours. Null where the
// capacity does not allow it.
Block* Allocator::map(Block* block, size_t bytes) {
  bytes = rounded_up(bytes, block->expandable->piece);
  if (taken_ + bytes > capacity) return nullptr;
  Pool& pool = *block->pool;
  pool.unmapped.erase(block);
  if (bytes < block->bytes) {
    Block* rest = block;
    block = cut(block, bytes);
    pool.unmapped.insert(rest);
  }
  back_with_memory(block->address, bytes);
  block->mapped = true;
  taken_ += bytes;
  stats_.num_device_alloc++;
  count(pool, [&](size_t kind) { stats_.reserved_bytes[kind].increase(bytes); });
  record("segment_map", *block, bytes);
  merge(block, block->previous);
  merge(block, block->next);
  pool.cached.insert(block);
  return block;
}

// Take the whole pieces inside a cached block back; what lies before and after stays cached.
void Allocator::unmap(Block* block) {
  const ExpandableSegment& segment = *block->expandable;
  size_t begin = rounded_up(size_t(block->address - segment.address), segment.piece);
  size_t end = size_t(block->address + block->bytes - segment.address) / segment.piece * segment.piece;
  if (begin >= end) return;
  Pool& pool = *block->pool;
  pool.cached.erase(block);
  if (size_t before = size_t(segment.address + begin - block->address)) pool.cached.insert(cut(block, before));
  size_t bytes = end - begin;
  if (block->bytes > bytes) {
    Block* after = block;
    block = cut(block, bytes);
    pool.cached.insert(after);
  }
  take_memory_away(block->address, bytes);
  auto low = reinterpret_cast<uintptr_t>(block->address);
  engine().races.forget(low, low + bytes);
  block->mapped = false;
  taken_ -= bytes;
  stats_.num_device_free++;
  count(pool, [&](size_t kind) { stats_.reserved_bytes[kind].decrease(bytes); });
  record("segment_unmap", *block, bytes);
  merge(block, block->previous);
  merge(block, block->next);
  pool.unmapped.insert(block);
}

}  // namespace emulated
