// Products of float32 matrices on the CPU.
//
// libtorch computes them with MKL, which does not use AVX-512 on processors that are not Intel's.
// oneDNN, which is part of libtorch too, then takes half the time.

#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string_view>

namespace {

// oneDNN's product of libtorch, with an optional activation.
using Pointwise = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                             std::string_view, c10::List<std::optional<at::Scalar>>,
                             std::optional<std::string_view>);

// oneDNN's product, or null if MKL is as fast or if this libtorch does not contain oneDNN.
const c10::TypedOperatorHandle<Pointwise>* onednn() {
  static const auto found = []() -> std::optional<c10::TypedOperatorHandle<Pointwise>> {
    if (__builtin_cpu_is("intel") || !__builtin_cpu_supports("avx512f")) return std::nullopt;
    const auto schema =
        c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    if (!schema || !schema->hasKernelForDispatchKey(c10::DispatchKey::CPU)) return std::nullopt;
    return schema->typed<Pointwise>();
  }();
  return found ? &*found : nullptr;
}

// xWᵀ + b for float32 matrices on the CPU. Not differentiable.
at::Tensor float_product(const at::Tensor& x, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias = std::nullopt) {
  const auto* product = onednn();
  if (product == nullptr || x.numel() == 0 || weight.numel() == 0)
    return at::linear(x, weight, bias);
  return product->call(x, weight, bias, "none", c10::List<std::optional<at::Scalar>>(), "");
}
}  // namespace
