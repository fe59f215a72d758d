// Fused elementwise kernels for the CPU: RMS norm, the gate of an MLP, and rotary embeddings. Each
// replaces a chain of libtorch operations and rounds at the same places as the chain. The backward
// pass reads the inputs again, so no intermediate result is stored.
//
// Only called from core/src/ffi/fused.rs, which checks dtypes, shapes and strides.

#include <ATen/ATen.h>
#include <ATen/TensorIterator.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "guarded.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

#define INLINE static inline __attribute__((always_inline))

// Sixteen lanes, independent of the width of the machine's vectors.
typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
constexpr int64_t LANES = 16;

// Calls work(begin, end) on parts of [0, rows). TensorIterator divides the rows, because it uses
// libtorch's threads. `cost` is the number of elements per row.
template <typename F>
void for_rows(int64_t rows, int64_t cost, const F& work) {
  if (rows == 0) return;
  auto marks = at::empty({rows}, at::kByte);
  const char* base = static_cast<const char*>(marks.data_ptr());
  auto iterator = at::TensorIteratorConfig()
                      .set_check_mem_overlap(false)
                      .check_all_same_dtype(false)
                      .resize_outputs(false)
                      .add_output(marks)
                      .build();
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, cost));
  iterator.for_each(
      [&](char** data, const int64_t*, int64_t n) {
        const int64_t begin = data[0] - base;
        work(begin, begin + n);
      },
      grain);
}

// The dtypes of activations. `load` and `store` convert sixteen values, `load_part` and
// `store_part` fewer. Conversions to bfloat16 round to nearest even, and keep NaN.
struct Single {
  typedef float Value;
  INLINE Lanes load(const float* p) {
    Lanes v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  INLINE void store(float* p, Lanes v) { memcpy(p, &v, sizeof v); }
  INLINE Lanes round(Lanes v) { return v; }
};

struct Brain {
  typedef uint16_t Value;
  INLINE Lanes load(const uint16_t* p) {
    Halves h;
    memcpy(&h, p, sizeof h);
    return reinterpret_cast<Lanes>(__builtin_convertvector(h, Words) << 16);
  }
  INLINE Words bits(Lanes v) {
    const Words w = reinterpret_cast<Words>(v);
    const Words rounded = w + 0x7fffu + ((w >> 16) & 1u);
    const Words nan = reinterpret_cast<Words>(v != v);
    return (rounded & ~nan) | (nan & 0x7fc00000u);
  }
  INLINE void store(uint16_t* p, Lanes v) {
    const Halves h = __builtin_convertvector(bits(v) >> 16, Halves);
    memcpy(p, &h, sizeof h);
  }
  INLINE Lanes round(Lanes v) { return reinterpret_cast<Lanes>(bits(v) & 0xffff0000u); }
};

// The first `n` values; the other lanes are 0.
template <typename T>
INLINE Lanes load_part(const typename T::Value* p, int64_t n) {
  typename T::Value values[LANES] = {};
  memcpy(values, p, n * sizeof(*p));
  return T::load(values);
}

template <typename T>
INLINE void store_part(typename T::Value* p, Lanes v, int64_t n) {
  typename T::Value values[LANES];
  T::store(values, v);
  memcpy(p, values, n * sizeof(*p));
}

// Runs the next statement for blocks of n ≤ 16 values, which start at j, from 0 to `width`.
#define FOR_BLOCKS(j, n, width)                                  \
  for (int64_t j = 0, n; j < (width); j += LANES)                \
    if ((n = std::min<int64_t>(LANES, (width) - j), true))

template <typename T>
INLINE Lanes load_block(const typename T::Value* p, int64_t n) {
  return n == LANES ? T::load(p) : load_part<T>(p, n);
}

template <typename T>
INLINE void store_block(typename T::Value* p, Lanes v, int64_t n) {
  if (n == LANES)
    T::store(p, v);
  else
    store_part<T>(p, v, n);
}

INLINE float sum(Lanes v) {
  for (int64_t half = LANES / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; i++) v[i] += v[i + half];
  return v[0];
}

// eˣ with a relative error below 2e-7. Arguments beyond ±87 are clamped, which is accurate enough
// for a sigmoid. NaN stays NaN.
INLINE Lanes exponential(Lanes x) {
  const Lanes low = Lanes{} - 87.0f, high = Lanes{} + 87.0f;
  const Lanes clamped = x < low ? low : (x > high ? high : x);
  // n = round(x / ln 2), computed by adding and subtracting 1.5·2²³.
  const Lanes magic = Lanes{} + 12582912.0f;
  const Lanes shifted = clamped * 1.44269504088896341f + magic;
  const Lanes n = shifted - magic;
  // ln 2 in two parts, so that r = x − n·ln 2 is accurate.
  const Lanes r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  // Coefficients of the Cephes library.
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints exponent = __builtin_convertvector(n, Ints) + 127;
  return p * reinterpret_cast<Lanes>(exponent << 23);
}

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

// ∂x = s·(g − x·s²·mean(g·x)), where g is the gradient of x·s and s the scale.
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

// Rotates one head of `width` values: y₁ = x₁·c₁ − x₂·s₁ and y₂ = x₂·c₂ + x₁·s₂ for both halves. All
// products are rounded. With `back`, computes the gradient instead: y₁ = x₁·c₁ + x₂·s₂ and
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

// The loops over rows, once for each instruction set.
enum class Level { AVX512, AVX2, NONE };

Level level() {
  static const Level found = __builtin_cpu_supports("avx512f") ? Level::AVX512
                             : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                                 ? Level::AVX2
                                 : Level::NONE;
  return found;
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

// Defines run_NAME<T, flag>(args, begin, end), which calls NAME for the processor.
#define DISPATCHED(NAME, ARGS)                                                                \
  template <typename T, bool flag>                                                            \
  __attribute__((target("avx512f"))) void NAME##_avx512(const ARGS& a, int64_t b, int64_t e) { \
    NAME<T, flag>(a, b, e);                                                                   \
  }                                                                                           \
  template <typename T, bool flag>                                                            \
  __attribute__((target("avx2,fma"))) void NAME##_avx2(const ARGS& a, int64_t b, int64_t e) {  \
    NAME<T, flag>(a, b, e);                                                                   \
  }                                                                                           \
  template <typename T, bool flag>                                                            \
  void run_##NAME(const ARGS& a, int64_t rows, int64_t cost) {                                \
    const auto run = level() == Level::AVX512 ? NAME##_avx512<T, flag> : NAME##_avx2<T, flag>; \
    for_rows(rows, cost, [&](int64_t b, int64_t e) { run(a, b, e); });                        \
  }

DISPATCHED(norm_rows, NormArgs)
DISPATCHED(norm_rows_backward, NormArgs)
DISPATCHED(gate_rows, GateArgs)
DISPATCHED(gate_rows_backward, GateArgs)
DISPATCHED(rotate_rows, RotateArgs)

// Calls run_NAME for the dtype of `tensor` and the flag.
#define RUN(NAME, tensor, flag, ...)                       \
  do {                                                     \
    if ((tensor).scalar_type() == at::kFloat)              \
      (flag) ? run_##NAME<Single, true>(__VA_ARGS__)       \
             : run_##NAME<Single, false>(__VA_ARGS__);     \
    else                                                   \
      (flag) ? run_##NAME<Brain, true>(__VA_ARGS__)        \
             : run_##NAME<Brain, false>(__VA_ARGS__);      \
  } while (0)

// A graph of the backward pass would lack the kernels, so second derivatives would be wrong.
void check_once() {
  TORCH_CHECK(!at::GradMode::is_enabled(), "the fused kernels have no second derivative");
}

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
