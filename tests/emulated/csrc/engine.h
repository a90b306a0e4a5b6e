// Streams and events: what was enqueued, and in which order it runs.
#pragma once
#include <c10/util/FunctionRef.h>

#include <chrono>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <random>

#include "races.h"

namespace emulated {

struct Event {
  uint64_t recorded = 0, done = 0;  // how often it was recorded, and how many of those have been reached
  Clock clock;                      // of the last record
  std::chrono::steady_clock::time_point reached;
  bool complete() const { return done >= recorded; }
};

// When a task runs: at once, or as late as the host allows, and then in the order that looks worst.
enum class Order { kSync, kLazyRandom, kSideLast, kSideFirst };

class Engine {
 public:
  RaceCheck races;

  int64_t new_stream();
  static int64_t& current_stream();  // of this thread

  // `kernel` runs on its stream after what was enqueued there. It owns no tensor of the device: as on a real card, a
  // queued kernel keeps nothing alive.
  void launch(int64_t stream, std::string name, const std::vector<Range>& ranges, std::function<void()> kernel);
  void record(int64_t stream, const std::shared_ptr<Event>& event);
  void wait(int64_t stream, const std::shared_ptr<Event>& event);

  // The host waits, so what it enqueues from now on is ordered after that.
  void synchronize(int64_t stream);
  void synchronize(Event& event);
  void synchronize_all();
  // Everything runs, and the host's order stays what it was: an allocator that has to wait tells nobody.
  void drain();
  // The host uses memory that tasks may still use: a race where it has not waited for them.
  void host_access(const std::string& what, const Range& range);
  bool query(int64_t stream);
  bool query(Event& event);

  void set_order(Order order, uint64_t seed);
  int64_t launches() const { return launches_; }
  int64_t queued() const;

 private:
  struct Task {
    enum Kind { kKernel, kRecord, kWait } kind = kKernel;
    std::function<void()> kernel;
    std::shared_ptr<Event> event;
    uint64_t version = 0;  // of the event
    bool ready() const { return kind != kWait || event->done >= version; }
  };
  struct Stream {
    std::deque<Task> queue;
    Clock clock;
  };

  Stream& advance(int64_t stream);
  void enqueue(int64_t stream, Task task);
  void run_first(Stream& stream);
  void run_until(c10::function_ref<bool()> done);
  void run_one();
  bool idle(int64_t stream) const { return streams_.at(size_t(stream))->queue.empty(); }
  void raise_error();

  std::vector<std::unique_ptr<Stream>> streams_;
  Order order_ = Order::kSync;
  std::mt19937_64 random_{0};
  Clock host_;  // one for all threads: what one of them waited for, all count as having seen
  std::exception_ptr error_;
  int64_t launches_ = 0;
};

Engine& engine();

}  // namespace emulated
