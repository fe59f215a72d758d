// Creates a process group of NCCL, for cards. This is a library of its own, because the class needs
// the headers of CUDA and NCCL, and symbols of libtorch_cuda.so. The program opens that library
// first. The headers of other CUDA libraries, which libtorch's headers only include for the names
// of types, are in csrc/cuda.

#define USE_C10D_NCCL
#include <torch/csrc/cuda/nccl.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <c10/cuda/CUDAException.h>

#include <chrono>
#include <cstdint>

#include "guarded.h"
#include "world.h"

using Nccl = c10d::ProcessGroupNCCL;

// The layout of both classes depends on the version of NCCL. libtorch allocates these sizes.
#ifdef __x86_64__
static_assert(sizeof(Nccl) == 1112 && sizeof(Nccl::Options) == 248,
              "the headers do not match libtorch 2.11.0");
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

// Writes the bus address of a card to the 32 bytes of `out`. Fails if libtorch was built with
// another version of NCCL than this library.
EXPORT char* reprpo_nccl_card(int device, char* out) {
  return guarded([&] {
    const auto found = torch::cuda::nccl::version();
    constexpr auto own = uint64_t{NCCL_MAJOR} << 32 | uint64_t{NCCL_MINOR} << 16 | NCCL_PATCH;
    TORCH_CHECK(found == own, "libtorch was built with NCCL ", found >> 32, ".",
                found >> 16 & 0xffff, ".", found & 0xffff, ", but this program with NCCL ",
                NCCL_MAJOR, ".", NCCL_MINOR, ".", NCCL_PATCH);
    C10_CUDA_CHECK(cudaDeviceGetPCIBusId(out, 32, device));
  });
}

EXPORT char* reprpo_nccl_open(const reprpo_store* store, int rank, int size, int64_t timeout_ms,
                              reprpo_group** out) {
  return guarded([&] {
    auto options = Nccl::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    // Threads of the group use the store at any time, so they need a connection of their own.
    auto keys = c10::make_intrusive<c10d::PrefixStore>("nccl", store->store->clone());
    *out = new reprpo_group{c10::make_intrusive<Nccl>(keys, rank, size, options)};
  });
}
