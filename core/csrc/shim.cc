// Functions of libtorch that tch does not offer: the backward pass from several tensors, gradient
// hooks, memory statistics of the allocator, global settings, and states of random number
// generators.
//
// Every function returns null on success, or the text of an error, which the caller frees with
// reprpo_free. No exception leaves this file, and no callback may unwind into it.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/csrc/autograd/autograd.h>

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "guarded.h"

namespace {
const at::Generator& generator(int device) {
  return at::globalContext().defaultGenerator(
      device < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, device));
}
}  // namespace

extern "C" {
// Returns a new tensor that replaces the gradient, or null to keep it.
typedef at::Tensor* (*reprpo_call)(void* context, at::Tensor* grad);
typedef void (*reprpo_drop)(void* context);

void reprpo_free(char* text) { std::free(text); }

void reprpo_end_process(int code) { _exit(code); }

// The context is dropped with the tensor's graph, or immediately if this function fails.
char* reprpo_register_hook(at::Tensor* tensor, void* context, reprpo_call call, reprpo_drop drop) {
  std::shared_ptr<void> owner(context, drop);
  return guarded([&] {
    tensor->register_hook([owner, call](at::Tensor grad) -> at::Tensor {
      std::unique_ptr<at::Tensor> mapped(call(owner.get(), new at::Tensor(grad)));
      return mapped ? *mapped : grad;
    });
  });
}

// Runs the backward pass from `count` tensors with the given gradients.
char* reprpo_backward(at::Tensor* const* tensors, at::Tensor* const* gradients, size_t count) {
  return guarded([&] {
    torch::autograd::variable_list roots, grads;
    for (size_t i = 0; i < count; i++) {
      roots.push_back(*tensors[i]);
      grads.push_back(*gradients[i]);
    }
    torch::autograd::backward(roots, grads);
  });
}

// Writes four numbers of bytes to out: allocated by tensors, peak of allocated, reserved from the
// device, peak of reserved.
char* reprpo_cuda_memory(int device, int64_t* out) {
  return guarded([&] {
    auto stats = at::getDeviceAllocator(c10::kCUDA)->getDeviceStats(device);
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    out[0] = stats.allocated_bytes[all].current;
    out[1] = stats.allocated_bytes[all].peak;
    out[2] = stats.reserved_bytes[all].current;
    out[3] = stats.reserved_bytes[all].peak;
  });
}

char* reprpo_cuda_reset_peak(int device) {
  return guarded([&] { at::getDeviceAllocator(c10::kCUDA)->resetPeakStats(device); });
}

char* reprpo_cuda_empty_cache() {
  return guarded([&] { at::getDeviceAllocator(c10::kCUDA)->emptyCache(); });
}

// Sets *out to the path of libtorch's CPU library. The dynamic loader owns the text.
char* reprpo_libtorch_file(const char** out) {
  return guarded([&] {
    Dl_info info;
    const auto symbol = reinterpret_cast<const void*>(&at::globalContext);
    if (dladdr(symbol, &info) == 0 || info.dli_fname == nullptr)
      throw std::runtime_error("dladdr cannot find libtorch");
    *out = info.dli_fname;
  });
}

// Sets *out to the version of the CUDA runtime, e.g. 13000. Fails if libtorch's CUDA library has
// not registered its hooks.
char* reprpo_cuda_version(int64_t* out) {
  return guarded([&] { *out = at::detail::getCUDAHooks().versionCUDART(); });
}

char* reprpo_set_deterministic(bool on) {
  return guarded([&] {
    // cuBLAS reads this variable when its first handle is created. Without it, results are not
    // reproducible.
    if (on) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    auto& context = at::globalContext();
    // With `warn_only`, libtorch would still run kernels that are not reproducible, for example in
    // the backward pass of attention.
    context.setDeterministicAlgorithms(on, /*warn_only=*/false);
    // Filling new memory takes time, but does not change results, because kernels overwrite the
    // memory.
    context.setDeterministicFillUninitializedMemory(false);
    context.setBenchmarkCuDNN(!on);
  });
}

// Sets `out` to true if libtorch raises an error for every operation that has no reproducible
// kernel.
char* reprpo_deterministic(bool* out) {
  return guarded([&] {
    auto& context = at::globalContext();
    *out = context.deterministicAlgorithms() && !context.deterministicAlgorithmsWarnOnly();
  });
}

char* reprpo_set_tf32(bool on) {
  return guarded([&] { at::globalContext().setFloat32MatmulPrecision(on ? "high" : "highest"); });
}

char* reprpo_set_sdp(bool flash, bool memory_efficient, bool cudnn, bool math) {
  return guarded([&] {
    auto& context = at::globalContext();
    context.setSDPUseFlash(flash);
    context.setSDPUseMemEfficient(memory_efficient);
    context.setSDPUseCuDNN(cudnn);
    context.setSDPUseMath(math);
  });
}

// Sets *out to a new tensor with the state of the device's generator. Device −1 is the CPU.
char* reprpo_rng_state(int device, at::Tensor** out) {
  return guarded([&] {
    auto generator_ = generator(device);
    std::lock_guard<std::mutex> lock(generator_.mutex());
    *out = new at::Tensor(generator_.get_state());
  });
}

char* reprpo_set_rng_state(int device, at::Tensor* state) {
  return guarded([&] {
    auto generator_ = generator(device);
    std::lock_guard<std::mutex> lock(generator_.mutex());
    generator_.set_state(*state);
  });
}
}
