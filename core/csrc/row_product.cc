// The product W·x for a single vector x. Its speed is limited by reading W, which the library
// behind libtorch's own product does slowly on some processors: on an AMD Zen 5, it reaches a third
// of the bandwidth of one core. Only called from core/src/ffi/row_product.rs, which checks the
// lengths.

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

namespace {

// Always sixteen lanes, independent of the width of the machine's vectors, so that the order of
// summation is the same on all machines.
typedef float Lanes __attribute__((vector_size(64)));
constexpr int64_t LANES = 16;

#define INLINE static inline __attribute__((always_inline))

// Computes y for R adjacent rows of W. x is only loaded once for all R rows.
template <int R>
INLINE void rows_at(const float *w, const float *x, float *y, int64_t columns) {
  Lanes sums[R] = {};
  int64_t j = 0;
  for (; j + LANES <= columns; j += LANES) {
    Lanes xs, ws;
    memcpy(&xs, x + j, sizeof xs);
    for (int r = 0; r < R; r++) {
      memcpy(&ws, w + r * columns + j, sizeof ws);
      sums[r] += ws * xs;
    }
  }
  for (int r = 0; r < R; r++) {
    // Adds the lanes by repeatedly adding the upper half to the lower half.
    for (int64_t half = LANES / 2; half > 0; half /= 2)
      for (int64_t i = 0; i < half; i++) sums[r][i] += sums[r][i + half];
    float sum = sums[r][0];
    for (int64_t k = j; k < columns; k++) sum += w[r * columns + k] * x[k];
    y[r] = sum;
  }
}

INLINE void all_rows(const float *w, const float *x, float *y, int64_t rows, int64_t columns) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) rows_at<4>(w + i * columns, x, y + i, columns);
  for (; i < rows; i++) rows_at<1>(w + i * columns, x, y + i, columns);
}

__attribute__((target("avx512f"))) void with_avx512(const float *w, const float *x, float *y,
                                                    int64_t rows, int64_t columns) {
  all_rows(w, x, y, rows, columns);
}

__attribute__((target("avx2,fma"))) void with_avx2(const float *w, const float *x, float *y,
                                                   int64_t rows, int64_t columns) {
  all_rows(w, x, y, rows, columns);
}

}  // namespace

// Writes W·x [rows] to y, given W [rows columns] and x [columns]. Returns false and writes nothing
// if the processor has neither AVX-512 nor AVX2 with FMA.
extern "C" bool reprpo_row_product(const float *w, const float *x, float *y, int64_t rows,
                                   int64_t columns) {
  if (__builtin_cpu_supports("avx512f"))
    with_avx512(w, x, y, rows, columns);
  else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    with_avx2(w, x, y, rows, columns);
  else
    return false;
  return true;
}

#else

extern "C" bool reprpo_row_product(const float *, const float *, float *, int64_t, int64_t) {
  return false;
}

#endif
