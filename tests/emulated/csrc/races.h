// Which accesses of memory no wait orders.
//
// Every stream has a vector clock: how much of each stream is certain to be done before what it does next. Clocks move
// when work is enqueued, so a race is found however the streams happen to run.
#pragma once
#include <string>
#include <vector>

#include "memory.h"

namespace emulated {

using Clock = std::vector<uint64_t>;  // one entry a stream

void join(Clock& clock, const Clock& other);

class RaceCheck {
 public:
  bool on = false;      // look for races
  bool raises = false;  // at the call that makes one; else they are collected

  // A task of `stream`, whose clock is `now`, reads and writes `ranges`.
  void access(int64_t stream, const Clock& now, const std::string& kernel, const std::vector<Range>& ranges);
  // The host, which has waited for what `seen` covers, reads or writes memory that a task uses.
  void host_access(const Clock& seen, const std::string& what, const Range& range);
  // Memory that an allocator hands on once `clock` is reached: what that covers can't race with the next user.
  void hand_on(uintptr_t low, uintptr_t high, const Clock& clock);
  // Addresses that are gone.
  void forget(uintptr_t low, uintptr_t high);
  void clear();
  void raise_first();
  const std::vector<std::string>& races() const { return races_; }

 private:
  struct Access {
    uintptr_t low, high;
    bool write;
    int64_t stream;
    uint64_t at;  // the entry of its stream's clock
    std::string kernel;
    bool before(const Clock& clock) const { return size_t(stream) < clock.size() && at <= clock[stream]; }
  };
  void found(const std::string& who, const Range& range, const Access& other);

  std::vector<Access> accesses_;
  std::vector<std::string> races_;
};

}  // namespace emulated
