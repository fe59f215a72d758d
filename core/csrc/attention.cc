// Attention over a stream of tokens on the CPU, forward and backward.
//
// libtorch's fused attention computes the products of bfloat16 with a library that is slow on some
// processors, and needs every key head once for each query head. Here, the query heads that share a
// key head are rows of one product. The products of a block of queries with all of its keys are one
// product for each key head, or one batched product if they are small, and a kernel computes the
// softmax in float32. The backward pass computes the weights again, so they are not stored.
//
// Only called from core/src/ffi/attention.rs, which checks dtypes, shapes and strides.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "guarded.h"
#include "lanes.h"
#include "product.h"
#include "rows.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// Maximum number of queries in a block. The scores of one key head should fit into the cache.
constexpr int64_t BLOCK = 128;

// Key heads with at least this many scores are processed one at a time, so that the scores stay in
// the cache. Otherwise, calling libtorch once for each key head would take longer.
constexpr int64_t LARGE = 1 << 16;

// The rows of one softmax: `rows` score rows of `keys` values. Row i belongs to query i / group,
// which sees the keys [seen + 1 − window, seen], where seen = before + query.
struct SoftmaxArgs {
  // Overwritten by the softmax; null for the gradient.
  float* scores;
  // Softmax: the weights are written here, possibly over the scores. Gradient: the weights, and
  // then the gradients of the scores.
  void* weights;
  // Gradient of the weights; null for the softmax.
  const void* gradients;
  int64_t rows_of_head, keys, group, before, window;
  float scale;
};

INLINE void visible(const SoftmaxArgs& a, int64_t row, int64_t& begin, int64_t& end) {
  const int64_t query = row % a.rows_of_head / a.group;
  end = std::min(a.keys, a.before + query + 1);
  begin = std::max<int64_t>(0, end - a.window);
}

// Writes softmax(scale·scores) of each row. Hidden keys have the weight 0.
template <typename T, bool>
INLINE void softmax_rows(const SoftmaxArgs& a, int64_t first, int64_t last) {
  typedef typename T::Value Value;
  for (int64_t row = first; row < last; row++) {
    int64_t begin, end;
    visible(a, row, begin, end);
    float* s = a.scores + row * a.keys;
    Value* w = static_cast<Value*>(a.weights) + row * a.keys;
    const int64_t count = end - begin;
    float highest = -std::numeric_limits<float>::infinity();
    Lanes highs = Lanes{} + highest;
    FOR_BLOCKS(j, n, count) {
      Lanes v = load_block<Single>(s + begin + j, n);
      // The missing lanes of the last block are 0, which could be higher than all scores.
      for (int64_t i = n; i < LANES; i++) v[i] = highest;
      highs = v > highs ? v : highs;
    }
    for (int64_t i = 0; i < LANES; i++) highest = std::max(highest, highs[i]);
    // A NaN among the scores makes all weights NaN, because `exponential` keeps it.
    Lanes sums = {};
    FOR_BLOCKS(j, n, count) {
      Lanes e = exponential((load_block<Single>(s + begin + j, n) - highest) * a.scale);
      for (int64_t i = n; i < LANES; i++) e[i] = 0.0f;
      sums += e;
      store_block<Single>(s + begin + j, e, n);
    }
    const float factor = 1.0f / sum(sums);
    std::fill(w, w + begin, Value(0));
    FOR_BLOCKS(j, n, count)
    store_block<T>(w + begin + j, load_block<Single>(s + begin + j, n) * factor, n);
    std::fill(w + end, w + a.keys, Value(0));
  }
}

// Replaces the weights p by the gradient of the scores: scale·p·(g − Σ p·g), where g is the
// gradient of the weights.
template <typename T, bool>
INLINE void softmax_rows_backward(const SoftmaxArgs& a, int64_t first, int64_t last) {
  typedef typename T::Value Value;
  for (int64_t row = first; row < last; row++) {
    int64_t begin, end;
    visible(a, row, begin, end);
    Value* w = static_cast<Value*>(a.weights) + row * a.keys + begin;
    const Value* g = static_cast<const Value*>(a.gradients) + row * a.keys + begin;
    Lanes products = {};
    FOR_BLOCKS(j, n, end - begin) products += load_block<T>(w + j, n) * load_block<T>(g + j, n);
    const float mean = sum(products);
    FOR_BLOCKS(j, n, end - begin) {
      const Lanes p = load_block<T>(w + j, n);
      store_block<T>(w + j, p * (load_block<T>(g + j, n) - mean) * a.scale, n);
    }
  }
}

DISPATCHED(softmax_rows, SoftmaxArgs)
DISPATCHED(softmax_rows_backward, SoftmaxArgs)

// Adjacent queries of one segment, and the ranges of rows that contain their keys. The last range
// ends with the block itself.
struct Block {
  int64_t start, len, before;
  std::vector<std::pair<int64_t, int64_t>> keys;
};

// `segments` contains for each segment: its length, the number of its ancestors, and their indices.
std::vector<Block> blocks_of(const std::vector<int64_t>& segments) {
  std::vector<std::pair<int64_t, int64_t>> rows;
  std::vector<Block> blocks;
  for (size_t at = 0; at < segments.size();) {
    const int64_t len = segments[at], ancestors = segments[at + 1];
    const int64_t start = rows.empty() ? 0 : rows.back().first + rows.back().second;
    rows.emplace_back(start, len);
    std::vector<std::pair<int64_t, int64_t>> keys;
    int64_t before = 0;
    for (int64_t i = 0; i < ancestors; i++) {
      keys.push_back(rows.at(segments[at + 2 + i]));
      before += keys.back().second;
    }
    for (int64_t from = 0; from < len; from += BLOCK) {
      const int64_t n = std::min(BLOCK, len - from);
      auto of_block = keys;
      of_block.emplace_back(start, from + n);
      blocks.push_back({start + from, n, before + from, of_block});
    }
    at += 2 + ancestors;
  }
  return blocks;
}

struct Heads {
  int64_t key_heads, group, width;
};

// [len heads d] → [key_heads len·group d]
at::Tensor by_key_head(const at::Tensor& t, const Heads& h) {
  return t.reshape({t.size(0), h.key_heads, h.group, h.width})
      .permute({1, 0, 2, 3})
      .reshape({h.key_heads, t.size(0) * h.group, h.width});
}

// The rows of a block in a contiguous tensor [n heads d], as a view [key_heads len group d].
at::Tensor by_key_head_view(const at::Tensor& t, const Block& block, const Heads& h) {
  return t.narrow(0, block.start, block.len)
      .view({block.len, h.key_heads, h.group, h.width})
      .permute({1, 0, 2, 3});
}

// The keys of a block: [n key_heads d] → [key_heads keys d]
at::Tensor keys_of(const at::Tensor& t, const Block& block) {
  std::vector<at::Tensor> parts;
  for (const auto& [start, len] : block.keys) parts.push_back(t.narrow(0, start, len));
  const auto all = parts.size() == 1 ? parts[0] : at::cat(parts, 0);
  return all.permute({1, 0, 2}).contiguous();
}

// abᵀ for each head: [heads n k], [heads m k] → [heads n m]
at::Tensor products(const at::Tensor& a, const at::Tensor& b) {
  if (a.size(0) == 1 && a.scalar_type() == at::kFloat)
    return float_product(a[0], b[0]).unsqueeze(0);
  return at::bmm(a, b.transpose(1, 2));
}

// Softmax of the products of all queries in a block with its keys. `q` and `k` are ordered by key
// head. The products are computed in float32, because a rounding error of a score is an error of
// the same size in the exponent.
at::Tensor weights_of(const at::Tensor& q, const at::Tensor& k, const Block& block,
                      const Heads& h, double scale, int64_t window) {
  const auto scores = products(q.to(at::kFloat), k.to(at::kFloat));
  auto weights =
      q.scalar_type() == at::kFloat ? scores : at::empty(scores.sizes(), q.options());
  const SoftmaxArgs args{scores.mutable_data_ptr<float>(),
                         weights.mutable_data_ptr(),
                         nullptr,
                         scores.size(1),
                         scores.size(2),
                         h.group,
                         block.before,
                         window,
                         static_cast<float>(scale)};
  RUN(softmax_rows, weights, false, args, scores.size(0) * scores.size(1), 4 * scores.size(2));
  return weights;
}

// Calls f(first, count) for the key heads of a block, with all of them or one at a time.
template <typename F>
void for_heads(const Block& block, const Heads& h, int64_t keys, F f) {
  if (block.len * h.group * keys < LARGE) return f(0, h.key_heads);
  for (int64_t head = 0; head < h.key_heads; head++) f(head, 1);
}

struct Attention : torch::autograd::Function<Attention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, std::vector<int64_t> segments, double scale,
                            int64_t window) {
    const Heads h{k.size(1), q.size(1) / k.size(1), q.size(2)};
    auto out = at::empty_like(q);
    for (const auto& block : blocks_of(segments)) {
      const auto queries = by_key_head(q.narrow(0, block.start, block.len), h);
      const auto keys = keys_of(k, block), values = keys_of(v, block);
      const auto out_of_block = by_key_head_view(out, block, h);
      for_heads(block, h, keys.size(1), [&](int64_t first, int64_t count) {
        const auto of = [&](const at::Tensor& t) { return t.narrow(0, first, count); };
        const auto weights = weights_of(of(queries), of(keys), block, h, scale, window);
        const auto product = products(weights, of(values).transpose(1, 2));
        of(out_of_block).copy_(product.view({count, block.len, h.group, h.width}));
      });
    }
    ctx->save_for_backward({q, k, v});
    ctx->saved_data["segments"] = segments;
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["window"] = window;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    check_once();
    const auto saved = ctx->get_saved_variables();
    const auto &q = saved[0], &k = saved[1], &v = saved[2];
    const double scale = ctx->saved_data["scale"].toDouble();
    const int64_t window = ctx->saved_data["window"].toInt();
    const Heads h{k.size(1), q.size(1) / k.size(1), q.size(2)};
    auto gq = at::empty_like(q);
    // Sums over many queries, so they are not rounded until the end.
    auto gk = at::zeros(k.sizes(), k.options().dtype(at::kFloat));
    auto gv = at::zeros_like(gk);
    for (const auto& block : blocks_of(ctx->saved_data["segments"].toIntVector())) {
      const auto queries = by_key_head(q.narrow(0, block.start, block.len), h);
      const auto keys = keys_of(k, block), values = keys_of(v, block);
      const auto gout = by_key_head(grads[0].narrow(0, block.start, block.len), h);
      const auto gq_of_block = by_key_head_view(gq, block, h);
      for_heads(block, h, keys.size(1), [&](int64_t first, int64_t count) {
        const auto of = [&](const at::Tensor& t) { return t.narrow(0, first, count); };
        // Adds values [count keys d] to the sums of the keys.
        const auto add = [&](at::Tensor& sums, const at::Tensor& of_keys) {
          const auto by_key = of_keys.permute({1, 0, 2});
          int64_t at = 0;
          for (const auto& [start, len] : block.keys) {
            sums.narrow(0, start, len).narrow(1, first, count).add_(by_key.narrow(0, at, len));
            at += len;
          }
        };
        auto weights = weights_of(of(queries), of(keys), block, h, scale, window);
        add(gv, products(weights.transpose(1, 2), of(gout).transpose(1, 2)));
        const auto gweights = products(of(gout), of(values));
        const SoftmaxArgs args{nullptr,
                               weights.mutable_data_ptr(),
                               gweights.const_data_ptr(),
                               weights.size(1),
                               weights.size(2),
                               h.group,
                               block.before,
                               window,
                               static_cast<float>(scale)};
        RUN(softmax_rows_backward, weights, false, args, weights.size(0) * weights.size(1),
            2 * weights.size(2));
        add(gk, products(weights.transpose(1, 2), of(queries).transpose(1, 2)));
        const auto product = products(weights, of(keys).transpose(1, 2));
        of(gq_of_block).copy_(product.view({count, block.len, h.group, h.width}));
      });
    }
    return {gq,         gk.to(k.scalar_type()), gv.to(v.scalar_type()),
            Variable(), Variable(),             Variable()};
  }
};
}  // namespace

extern "C" {
// Sets *out to the attention of q [n heads d] over k and v [n key_heads d]. `segments` has `count`
// numbers: for each segment its length, the number of its ancestors, and their indices.
char* reprpo_attention(at::Tensor* q, at::Tensor* k, at::Tensor* v, const int64_t* segments,
                       size_t count, double scale, int64_t window, at::Tensor** out) {
  return guarded([&] {
    std::vector<int64_t> all(segments, segments + count);
    *out = new at::Tensor(Attention::apply(*q, *k, *v, std::move(all), scale, window));
  });
}
}
