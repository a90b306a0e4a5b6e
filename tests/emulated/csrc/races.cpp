#include "races.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace emulated {
namespace {

constexpr size_t kMost = 100;  // races kept: the first ones tell what is wrong

template <class T, class F>
void drop_if(std::vector<T>& values, F drop) {
  values.erase(std::remove_if(values.begin(), values.end(), drop), values.end());
}

}  // namespace

void join(Clock& clock, const Clock& other) {
  if (clock.size() < other.size()) clock.resize(other.size(), 0);
  for (size_t i = 0; i < other.size(); i++) clock[i] = std::max(clock[i], other[i]);
}

void RaceCheck::found(const std::string& who, const Range& range, const Access& other) {
  if (!(other.write || range.write) || races_.size() == kMost) return;
  races_.push_back(c10::str(
      who, range.write ? " writes" : " reads", " what ", other.kernel, " on stream ", other.stream,
      other.write ? " writes" : " reads", ", and no wait orders them"));
}

void RaceCheck::host_access(const Clock& seen, const std::string& what, const Range& range) {
  for (const Access& other : accesses_)
    if (range.meets(other.low, other.high) && !other.before(seen)) found(c10::str(what, " on the host"), range, other);
}

void RaceCheck::access(
    int64_t stream, const Clock& now, const std::string& kernel, const std::vector<Range>& ranges) {
  if (!on) return;
  for (const Range& range : ranges) {
    drop_if(accesses_, [&](const Access& other) {
      if (!range.meets(other.low, other.high)) return false;
      bool ordered = other.before(now);
      if (!ordered) found(c10::str(kernel, " on stream ", stream), range, other);
      // What is ordered after this access is ordered after the other one too: that need not be kept.
      bool covered = range.low <= other.low && other.high <= range.high;
      return ordered && covered && (range.write || (!other.write && other.stream == stream));
    });
    accesses_.push_back({range.low, range.high, range.write, stream, now[stream], kernel});
  }
}

void RaceCheck::hand_on(uintptr_t low, uintptr_t high, const Clock& clock) {
  Range gone{low, high, true};
  drop_if(accesses_, [&](const Access& other) { return gone.meets(other.low, other.high) && other.before(clock); });
}

void RaceCheck::forget(uintptr_t low, uintptr_t high) {
  Range gone{low, high, true};
  drop_if(accesses_, [&](const Access& other) { return gone.meets(other.low, other.high); });
}

void RaceCheck::clear() {
  accesses_.clear();
  races_.clear();
}

void RaceCheck::raise_first() {
  if (!raises || races_.empty()) return;
  std::string first = races_.front();
  races_.clear();
  TORCH_CHECK(false, "emulated device: race: ", first);
}

}  // namespace emulated
