// Sixteen float32 values at a time, and their conversion from and to the dtypes of activations.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

#define INLINE static inline __attribute__((always_inline))

// Sixteen lanes, independent of the width of the machine's vectors.
typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
constexpr int64_t LANES = 16;

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
// for a sigmoid and a softmax. NaN stays NaN.
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
}  // namespace
