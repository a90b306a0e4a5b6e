// The Python side's handles: settings, and what was observed.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "allocator.h"
#include "fallback.h"
#include "host_allocator.h"

namespace py = pybind11;

PYBIND11_MODULE(_emulated, m) {
  using namespace emulated;
  m.def("set_capacity", [](size_t bytes) { allocator().capacity = bytes; });
  m.def("set_pin_limit", [](size_t bytes) { host_allocator().limit = bytes; });
  m.def("set_poison", [](bool on) { allocator().poison = on; });
  m.def("set_expandable", [](bool on) {
    allocator().empty_cache();
    allocator().expandable = on;
  });
  m.def("set_order", [](int order, uint64_t seed) { engine().set_order(Order(order), seed); });
  m.def("set_races", [](bool on, bool raises) {
    engine().synchronize_all();
    engine().races.clear();
    engine().races.on = on;
    engine().races.raises = raises;
  });
  m.def("races", [] { return engine().races.races(); });
  m.def("host_access", [](uintptr_t address, size_t bytes, bool write) {
    engine().host_access("access", {address, address + bytes, write});
  });
  m.def("host_waits", [] { return host_waits(); });
  m.def("launches", [] { return engine().launches(); });
  m.def("queued", [] { return engine().queued(); });
  m.def("set_trace", [](bool on) {
    allocator().tracing = on;
    allocator().trace.clear();
  });
  m.def("trace", [] {
    std::vector<std::tuple<std::string, size_t, size_t, int64_t>> entries;
    for (const auto& entry : allocator().trace)
      entries.emplace_back(entry.action, entry.address, entry.bytes, entry.stream);
    return entries;
  });
  m.def("register_host_memory", [](uintptr_t address, size_t bytes) { host_allocator().register_memory(address, bytes); });
  m.def("unregister_host_memory", [](uintptr_t address) { host_allocator().unregister_memory(address); });
  m.def("empty_host_cache", [] { host_allocator().empty_cache(); });
  m.def("pinned_bytes", [] {
    auto stats = host_allocator().get_stats();
    return std::tuple(stats.active_bytes.current, stats.allocated_bytes.current, stats.allocated_bytes.peak);
  });
}
