// Fused elementwise kernels for the CPU: RMS norm, the gate of an MLP, and rotary embeddings. Each
// replaces a chain of libtorch operations and rounds at the same places as the chain. The backward
// pass reads the inputs again, so no intermediate result is stored.
//
// Only called from core/src/ffi/fused.rs, which checks dtypes, shapes and strides.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "guarded.h"
#include "lanes.h"
#include "rows.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// RMS norm of one row. With `twice`, x·scale is rounded to the dtype before the product with the
// weight, which is in the same dtype. Otherwise, the weight is float32.
template <typename T, bool twice>
INLINE float norm_row(const typename T::Value* x, const void* weight, float eps, int64_t width,
                      typename T::Value* y) {
  Lanes squares = {};
  FOR_BLOCKS(j, n, width) {
    const Lanes v = load_block<T>(x + j, n);
    squares += v * v;
  }
  const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps);
  FOR_BLOCKS(j, n, width) {
    const Lanes v = load_block<T>(x + j, n) * scale;
    if constexpr (twice) {
      const Lanes w = load_block<T>(static_cast<const typename T::Value*>(weight) + j, n);
      store_block<T>(y + j, T::round(v) * w, n);
    } else {
      const Lanes w = load_block<Single>(static_cast<const float*>(weight) + j, n);
      store_block<T>(y + j, v * w, n);
    }
  }
  return scale;
}

// ∂x = s·(g − x·s²·mean(g·x)), where g is the gradient of x·s and s the scale. If the squares
// overflowed, s is 0 and the gradient is NaN, so that training stops.
template <typename T, bool twice>
INLINE void norm_row_backward(const typename T::Value* x, const void* weight, float scale,
                              const typename T::Value* gy, int64_t width,
                              typename T::Value* gx) {
  const auto gradient = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    const Lanes g = load_block<T>(gy + j, n);
    if constexpr (twice)
      return T::round(g * load_block<T>(static_cast<const typename T::Value*>(weight) + j, n));
    else
      return g * load_block<Single>(static_cast<const float*>(weight) + j, n);
  };
  if (scale == 0.0f) scale = std::numeric_limits<float>::quiet_NaN();
  Lanes products = {};
  FOR_BLOCKS(j, n, width) products += gradient(j, n) * load_block<T>(x + j, n);
  const float factor = sum(products) * scale * scale / static_cast<float>(width);
  FOR_BLOCKS(j, n, width) {
    const Lanes v = load_block<T>(x + j, n);
    store_block<T>(gx + j, scale * (gradient(j, n) - factor * v), n);
  }
}

// silu(gate)·up for `n` values in blocks; both factors are rounded to the dtype.
template <typename T>
INLINE void gate_values(const typename T::Value* gate, const typename T::Value* up, int64_t width,
                        typename T::Value* y) {
  FOR_BLOCKS(j, n, width) {
    const Lanes g = load_block<T>(gate + j, n);
    const Lanes active = T::round(g / (1.0f + exponential(-g)));
    store_block<T>(y + j, active * load_block<T>(up + j, n), n);
  }
}

template <typename T>
INLINE void gate_values_backward(const typename T::Value* gate, const typename T::Value* up,
                                 const typename T::Value* gy, int64_t width,
                                 typename T::Value* ggate, typename T::Value* gup) {
  FOR_BLOCKS(j, n, width) {
    const Lanes g = load_block<T>(gate + j, n), dy = load_block<T>(gy + j, n);
    const Lanes s = 1.0f / (1.0f + exponential(-g));
    const Lanes active = T::round(g * s);
    const Lanes inner = T::round(dy * load_block<T>(up + j, n));
    store_block<T>(gup + j, dy * active, n);
    store_block<T>(ggate + j, inner * (s * (1.0f + g * (1.0f - s))), n);
  }
}

// Rotates one head of `width` values: y₁ = x₁·c₁ − x₂·s₁ and y₂ = x₂·c₂ + x₁·s₂ for both halves.
// All products are rounded. With `back`, computes the gradient instead: y₁ = x₁·c₁ + x₂·s₂ and
// y₂ = x₂·c₂ − x₁·s₁.
template <typename T, bool back>
INLINE void rotate_head(const typename T::Value* x, const typename T::Value* cosines,
                        const typename T::Value* sines, int64_t width, typename T::Value* y) {
  const int64_t half = width / 2;
  FOR_BLOCKS(j, n, half) {
    const Lanes x1 = load_block<T>(x + j, n), x2 = load_block<T>(x + half + j, n);
    const Lanes c1 = load_block<T>(cosines + j, n), c2 = load_block<T>(cosines + half + j, n);
    const Lanes s1 = load_block<T>(sines + j, n), s2 = load_block<T>(sines + half + j, n);
    const Lanes a = T::round(x2 * (back ? s2 : s1)), b = T::round(x1 * (back ? s1 : s2));
    const Lanes p = T::round(x1 * c1), q = T::round(x2 * c2);
    store_block<T>(y + j, back ? p + a : p - a, n);
    store_block<T>(y + half + j, back ? q - b : q + b, n);
  }
}

struct NormArgs {
  const void *x, *weight, *gy;
  void* y;
  float* scales;
  float eps;
  int64_t width;
};

struct GateArgs {
  const void *gate, *up, *gy;
  void *y, *ggate, *gup;
  int64_t width;
};

struct RotateArgs {
  const void *x, *cosines, *sines;
  void* y;
  int64_t heads, width;
};

template <typename T, bool twice>
INLINE void norm_rows(const NormArgs& a, int64_t begin, int64_t end) {
  typedef typename T::Value Value;
  for (int64_t i = begin; i < end; i++)
    a.scales[i] = norm_row<T, twice>(static_cast<const Value*>(a.x) + i * a.width, a.weight, a.eps,
                                     a.width, static_cast<Value*>(a.y) + i * a.width);
}

template <typename T, bool twice>
INLINE void norm_rows_backward(const NormArgs& a, int64_t begin, int64_t end) {
  typedef typename T::Value Value;
  for (int64_t i = begin; i < end; i++)
    norm_row_backward<T, twice>(
        static_cast<const Value*>(a.x) + i * a.width, a.weight, a.scales[i],
        static_cast<const Value*>(a.gy) + i * a.width, a.width,
        static_cast<Value*>(a.y) + i * a.width);
}

template <typename T, bool>
INLINE void gate_rows(const GateArgs& a, int64_t begin, int64_t end) {
  typedef typename T::Value Value;
  const int64_t at = begin * a.width, size = (end - begin) * a.width;
  gate_values<T>(static_cast<const Value*>(a.gate) + at, static_cast<const Value*>(a.up) + at, size,
                 static_cast<Value*>(a.y) + at);
}

template <typename T, bool>
INLINE void gate_rows_backward(const GateArgs& a, int64_t begin, int64_t end) {
  typedef typename T::Value Value;
  const int64_t at = begin * a.width, size = (end - begin) * a.width;
  gate_values_backward<T>(static_cast<const Value*>(a.gate) + at,
                          static_cast<const Value*>(a.up) + at,
                          static_cast<const Value*>(a.gy) + at, size,
                          static_cast<Value*>(a.ggate) + at, static_cast<Value*>(a.gup) + at);
}

template <typename T, bool back>
INLINE void rotate_rows(const RotateArgs& a, int64_t begin, int64_t end) {
  typedef typename T::Value Value;
  for (int64_t i = begin; i < end; i++)
    for (int64_t h = 0; h < a.heads; h++) {
      const int64_t at = (i * a.heads + h) * a.width;
      rotate_head<T, back>(static_cast<const Value*>(a.x) + at,
                           static_cast<const Value*>(a.cosines) + i * a.width,
                           static_cast<const Value*>(a.sines) + i * a.width, a.width,
                           static_cast<Value*>(a.y) + at);
    }
}

DISPATCHED(norm_rows, NormArgs)
DISPATCHED(norm_rows_backward, NormArgs)
DISPATCHED(gate_rows, GateArgs)
DISPATCHED(gate_rows_backward, GateArgs)
DISPATCHED(rotate_rows, RotateArgs)

struct Norm : torch::autograd::Function<Norm> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            double eps, bool twice) {
    const int64_t width = x.size(-1), rows = x.numel() / std::max<int64_t>(1, width);
    auto y = at::empty_like(x), scales = at::empty({rows}, x.options().dtype(at::kFloat));
    const NormArgs args{x.const_data_ptr(),         weight.const_data_ptr(),  nullptr,
                        y.mutable_data_ptr(),       scales.mutable_data_ptr<float>(),
                        static_cast<float>(eps),    width};
    RUN(norm_rows, x, twice, args, rows, width);
    ctx->save_for_backward({x, weight, scales});
    ctx->saved_data["twice"] = twice;
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    check_once();
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1], &scales = saved[2];
    const auto gy = grads[0].contiguous();
    auto gx = at::empty_like(x);
    const NormArgs args{x.const_data_ptr(),
                        weight.const_data_ptr(),
                        gy.const_data_ptr(),
                        gx.mutable_data_ptr(),
                        const_cast<float*>(scales.const_data_ptr<float>()),
                        0.0f,
                        x.size(-1)};
    RUN(norm_rows_backward, x, ctx->saved_data["twice"].toBool(), args, scales.size(0), x.size(-1));
    return {gx, Variable(), Variable(), Variable()};
  }
};

struct Gate : torch::autograd::Function<Gate> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate, const at::Tensor& up) {
    const int64_t width = gate.size(-1), rows = gate.numel() / std::max<int64_t>(1, width);
    auto y = at::empty_like(gate);
    const GateArgs args{gate.const_data_ptr(), up.const_data_ptr(), nullptr,
                        y.mutable_data_ptr(),  nullptr,             nullptr,
                        width};
    RUN(gate_rows, gate, false, args, rows, 8 * width);
    ctx->save_for_backward({gate, up});
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    check_once();
    const auto saved = ctx->get_saved_variables();
    const auto &gate = saved[0], &up = saved[1];
    const auto gy = grads[0].contiguous();
    auto ggate = at::empty_like(gate), gup = at::empty_like(up);
    const int64_t width = gate.size(-1), rows = gate.numel() / std::max<int64_t>(1, width);
    const GateArgs args{gate.const_data_ptr(),     up.const_data_ptr(),
                        gy.const_data_ptr(),       nullptr,
                        ggate.mutable_data_ptr(),  gup.mutable_data_ptr(),
                        width};
    RUN(gate_rows_backward, gate, false, args, rows, 8 * width);
    return {ggate, gup};
  }
};

struct Rotate : torch::autograd::Function<Rotate> {
  static at::Tensor turned(const at::Tensor& x, const at::Tensor& cosines, const at::Tensor& sines,
                           bool back) {
    auto y = at::empty_like(x);
    const RotateArgs args{x.const_data_ptr(),   cosines.const_data_ptr(), sines.const_data_ptr(),
                          y.mutable_data_ptr(), x.size(1),                x.size(2)};
    RUN(rotate_rows, x, back, args, x.size(0), x.size(1) * x.size(2));
    return y;
  }
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& cosines,
                            const at::Tensor& sines) {
    ctx->save_for_backward({cosines, sines});
    return turned(x, cosines, sines, false);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    check_once();
    const auto saved = ctx->get_saved_variables();
    return {turned(grads[0].contiguous(), saved[0], saved[1], true), Variable(), Variable()};
  }
};
}  // namespace

extern "C" {
// True if the processor supports the kernels.
bool reprpo_fused() { return level() != Level::NONE; }

// Sets *out to the RMS norm of x over its last axis.
char* reprpo_fused_norm(at::Tensor* x, at::Tensor* weight, double eps, bool twice,
                        at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(Norm::apply(*x, *weight, eps, twice)); });
}

// Sets *out to silu(gate)·up.
char* reprpo_fused_gate(at::Tensor* gate, at::Tensor* up, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(Gate::apply(*gate, *up)); });
}

// Sets *out to x [n heads d], rotated by the angles with these cosines and sines [n d].
char* reprpo_fused_rotation(at::Tensor* x, at::Tensor* cosines, at::Tensor* sines,
                            at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(Rotate::apply(*x, *cosines, *sines)); });
}
}
