// Products of activations with frozen float32 weights, in libtorch's autograd graph.
//
// Only called from core/src/ffi/float_product.rs, which checks dtypes and shapes.

#include "product.h"

#include <torch/csrc/autograd/custom_function.h>

#include <cstdlib>

#include "guarded.h"

namespace {

// oneDNN compiles a kernel for each shape of a product, and keeps 1,024 of them. Every batch has
// new shapes, so a run would fill 200 to 300 MB with kernels that it never uses again. One step
// needs fewer than 64. oneDNN reads the variable at its first product. It is set before `main`,
// because no other thread can read the environment then.
const bool limited = [] {
  const char* const older_name = "DNNL_PRIMITIVE_CACHE_CAPACITY";
  return std::getenv(older_name) != nullptr ||
         setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128", /*overwrite=*/0) == 0;
}();

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

struct Product : torch::autograd::Function<Product> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
    ctx->save_for_backward({weight});
    ctx->saved_data["bias"] = bias.has_value();
    return float_product(x, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto& g = grads[0];
    Variable of_x, of_bias;
    if (ctx->needs_input_grad(0))
      of_x = Product::apply(g, ctx->get_saved_variables()[0].t(), std::nullopt);
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)) of_bias = g.sum(0);
    return {of_x, Variable(), of_bias};
  }
};
}  // namespace

extern "C" {
// True if float_product is faster than at::linear.
bool reprpo_has_float_product() { return onednn() != nullptr; }

// Sets *out to xWᵀ + b. `bias` may be null.
char* reprpo_float_product(at::Tensor* x, at::Tensor* weight, at::Tensor* bias, at::Tensor** out) {
  return guarded([&] {
    std::optional<at::Tensor> b;
    if (bias != nullptr) b = *bias;
    *out = new at::Tensor(Product::apply(*x, *weight, b));
  });
}
}
