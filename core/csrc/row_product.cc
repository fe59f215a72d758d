// W·x for one x. It takes as long as reading W, and the library behind libtorch's own product reads slowly on some
// processors: a third of what one core of an AMD Zen 5 reads. Called from core/src/ffi/row_product.rs alone, which holds
// the lengths to what is there.

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

namespace {

// Sixteen lanes whatever the machine's vectors hold, so that the order of the sums is the same on all.
typedef float Lanes __attribute__((vector_size(64)));
constexpr int64_t LANES = 16;

#define INLINE static inline __attribute__((always_inline))

// y of R rows of W that stand together: x is loaded once for all of them.
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
    // In halves, as wide vectors are added up.
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

__attribute__((target("avx512f"))) void with_avx512(const float *w, const float *x, float *y, int64_t rows, int64_t columns) {
  all_rows(w, x, y, rows, columns);
}

__attribute__((target("avx2,fma"))) void with_avx2(const float *w, const float *x, float *y, int64_t rows, int64_t columns) {
  all_rows(w, x, y, rows, columns);
}

}  // namespace

// Writes W·x [rows] into y, of W [rows columns] and x [columns]; false, and nothing written, where the processor has none
// of the vectors that it is made for.
extern "C" bool reprpo_row_product(const float *w, const float *x, float *y, int64_t rows, int64_t columns) {
  if (__builtin_cpu_supports("avx512f"))
    with_avx512(w, x, y, rows, columns);
  else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    with_avx2(w, x, y, rows, columns);
  else
    return false;
  return true;
}

#else

extern "C" bool reprpo_row_product(const float *, const float *, float *, int64_t, int64_t) { return false; }

#endif
