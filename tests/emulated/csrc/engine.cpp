#include "engine.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

namespace emulated {
namespace {

// Kernels are the CPU's own, whatever mode the caller is in when it happens to wait for them.
struct PlainKernels {
  c10::InferenceMode no_tracking;
  c10::impl::ExcludeDispatchKeyGuard no_modes{
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}) |
      c10::autocast_dispatch_keyset};
};

}  // namespace

Engine& engine() {
  static auto* instance = [] {
    auto* fresh = new Engine();
    fresh->new_stream();  // the default stream is 0
    return fresh;
  }();
  return *instance;
}

int64_t Engine::new_stream() {
  Locked locked(device_lock());
  streams_.push_back(std::make_unique<Stream>());
  return int64_t(streams_.size()) - 1;
}

int64_t& Engine::current_stream() {
  static thread_local int64_t stream = 0;
  return stream;
}

// What the host has waited for comes before all that it enqueues.
Engine::Stream& Engine::advance(int64_t id) {
  Stream& stream = *streams_.at(size_t(id));
  join(stream.clock, host_);
  if (stream.clock.size() < streams_.size()) stream.clock.resize(streams_.size(), 0);
  return stream;
}

void Engine::enqueue(int64_t id, Task task) {
  Stream& stream = *streams_.at(size_t(id));
  stream.queue.push_back(std::move(task));
  if (order_ != Order::kSync) return;
  while (!stream.queue.empty()) run_first(stream);
}

void Engine::launch(int64_t id, std::string name, const std::vector<Range>& ranges, std::function<void()> kernel) {
  Locked locked(device_lock());
  Stream& stream = advance(id);
  stream.clock[size_t(id)]++;
  launches_++;
  races.access(id, stream.clock, name, ranges);
  Task task;
  task.kernel = std::move(kernel);
  enqueue(id, std::move(task));
  if (order_ == Order::kSync) raise_error();
  races.raise_first();
}

void Engine::record(int64_t id, const std::shared_ptr<Event>& event) {
  Locked locked(device_lock());
  event->clock = advance(id).clock;
  enqueue(id, Task{Task::kRecord, nullptr, event, ++event->recorded});
}

void Engine::wait(int64_t id, const std::shared_ptr<Event>& event) {
  Locked locked(device_lock());
  join(advance(id).clock, event->clock);
  enqueue(id, Task{Task::kWait, nullptr, event, event->recorded});
}

void Engine::run_first(Stream& stream) {
  Task task = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (task.kind == Task::kRecord) {
    task.event->done = std::max(task.event->done, task.version);
    task.event->reached = std::chrono::steady_clock::now();
  } else if (task.kind == Task::kKernel) {
    PlainKernels plain;
    try {
      task.kernel();
    } catch (...) {
      if (!error_) error_ = std::current_exception();  // raised where the host waits next
    }
  }
}

void Engine::run_until(c10::function_ref<bool()> done) {
  while (!done()) {
    std::vector<Stream*> ready;
    for (auto& stream : streams_)
      if (!stream->queue.empty() && stream->queue.front().ready()) ready.push_back(stream.get());
    TORCH_CHECK(!ready.empty(), "emulated device: every stream waits for an event that nothing will record");
    run_first(*(order_ == Order::kSideLast    ? ready.front()
                : order_ == Order::kSideFirst ? ready.back()
                                              : ready[random_() % ready.size()]));
  }
}

void Engine::raise_error() {
  if (auto error = std::exchange(error_, nullptr)) std::rethrow_exception(error);
}

void Engine::synchronize(int64_t id) {
  Locked locked(device_lock());
  run_until([&] { return idle(id); });
  join(host_, streams_[size_t(id)]->clock);
  raise_error();
}

void Engine::synchronize(Event& event) {
  Locked locked(device_lock());
  run_until([&] { return event.complete(); });
  join(host_, event.clock);
  raise_error();
}

void Engine::synchronize_all() {
  Locked locked(device_lock());
  drain();
  for (auto& stream : streams_) join(host_, stream->clock);
  raise_error();
}

void Engine::drain() {
  Locked locked(device_lock());
  run_until([&] { return queued() == 0; });
}

void Engine::host_access(const std::string& what, const Range& range) {
  Locked locked(device_lock());
  races.host_access(host_, what, range);
  races.raise_first();
}

bool Engine::query(int64_t id) {
  Locked locked(device_lock());
  if (!idle(id)) run_one();
  if (idle(id)) join(host_, streams_[size_t(id)]->clock);
  return idle(id);
}

bool Engine::query(Event& event) {
  Locked locked(device_lock());
  if (!event.complete()) run_one();
  if (event.complete()) join(host_, event.clock);
  return event.complete();
}

// For a host that polls: it gets there in the end.
void Engine::run_one() {
  int64_t before = queued();
  run_until([&] { return queued() < before; });
}

void Engine::set_order(Order order, uint64_t seed) {
  Locked locked(device_lock());
  synchronize_all();
  order_ = order;
  random_.seed(seed);
}

int64_t Engine::queued() const {
  Locked locked(device_lock());
  int64_t count = 0;
  for (auto& stream : streams_) count += int64_t(stream->queue.size());
  return count;
}

}  // namespace emulated
