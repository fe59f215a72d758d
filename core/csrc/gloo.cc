// Creates a process group of gloo, for CPUs. This is a library of its own, because the class needs
// gloo's headers, which are not a part of libtorch. No object of gloo is constructed here: the
// headers may be older than the gloo in libtorch.

#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <chrono>

#include "guarded.h"
#include "world.h"

// `interface` and `host` select the network: the interface of that name, or the one with the
// address of that host; by default, the one that belongs to the name of this machine. Empty texts
// are not set.
extern "C" __attribute__((visibility("default"))) char* reprpo_gloo_open(
    const reprpo_store* store, int rank, int size, int64_t timeout_ms, const char* interface,
    const char* host, reprpo_group** out) {
  return guarded([&] {
    using Gloo = c10d::ProcessGroupGloo;
    auto options = Gloo::Options::create(std::chrono::milliseconds(timeout_ms));
    if (*interface) {
      options->devices.push_back(Gloo::createDeviceForInterface(interface));
    } else if (*host) {
      options->devices.push_back(Gloo::createDeviceForHostname(host));
    } else {
      options->devices.push_back(Gloo::createDefaultDevice());
    }
    *out = new reprpo_group{c10::make_intrusive<Gloo>(store->store, rank, size, options)};
  });
}
