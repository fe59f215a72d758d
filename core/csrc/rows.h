// Kernels over the rows of tensors, for every dtype and instruction set.

#pragma once

#include <ATen/ATen.h>
#include <ATen/TensorIterator.h>

#include <algorithm>
#include <cstdint>

#include "lanes.h"

namespace {

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

// The instruction sets for which the kernels are compiled.
enum class Level { AVX512, AVX2, NONE };

Level level() {
  static const Level found = __builtin_cpu_supports("avx512f") ? Level::AVX512
                             : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                                 ? Level::AVX2
                                 : Level::NONE;
  return found;
}

// A graph of the backward pass would lack the kernels, so second derivatives would be wrong.
void check_once() {
  TORCH_CHECK(!at::GradMode::is_enabled(), "the fused kernels have no second derivative");
}
}  // namespace

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
