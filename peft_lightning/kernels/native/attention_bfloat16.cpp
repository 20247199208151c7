// Causal attention within each sequence of a flat batch, forward and backward, in bfloat16.
//
// Query blocks meet key blocks of the same fixed size, so that the matrix library makes one kernel
// for each kind of product whatever the lengths of the sequences are. Products are summed in
// float32. What is kept for the backward pass is the output and, for each query, its largest score
// and the inverse of the sum of its softmax. (Dao et al. 2022, "FlashAttention", appendix B, keep
// one number for the two, which is too coarse where a run that goes astray has scores of 1e8.) The
// backward pass holds keys in rows and queries in columns, where none of its operands has to be
// transposed.

#include <ATen/native/CPUBlas.h>

#include <cmath>
#include <cstring>

#include "attention.h"
#include "numbers.h"
#include "transpose.h"

namespace {

using at::native::cpublas::brgemm;
using T = at::BFloat16;

constexpr int64_t B = 64;  // queries, and keys, of a block

// ---- operands -----------------------------------------------------------------------------------

// Copy `rows` rows of `dim` numbers into a block of B rows; the others are zero.
void copy_rows(const T* from, int64_t step, int64_t rows, int64_t dim, T* to) {
  for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * dim, from + i * step, dim * sizeof(T));
  std::memset(static_cast<void*>(to + rows * dim), 0, (B - rows) * dim * sizeof(T));
}

// The block (B, dim) as a right operand with its rows as rows, two of them interleaved.
void pack_rows(const T* block, int64_t dim, T* to) {
  const auto* from = reinterpret_cast<const uint16_t*>(block);
  auto* pairs = reinterpret_cast<uint32_t*>(to);
  for (int64_t i = 0; i < B; i += 2)
    for (int64_t d = 0; d < dim; ++d)
      pairs[i / 2 * dim + d] = from[i * dim + d] | uint32_t(from[(i + 1) * dim + d]) << 16;
}

// The block (B, dim) as a right operand with its rows as columns.
void pack_columns(const T* block, int64_t dim, T* to) {
  const auto* from = reinterpret_cast<const uint32_t*>(block);
  transpose_words(from, dim / 2, B, dim / 2, reinterpret_cast<uint32_t*>(to), B);
}

// The block (B, dim) as a left operand with its rows as columns.
void transpose(const T* block, int64_t dim, T* to) {
  for (int64_t d = 0; d < dim; ++d)
    for (int64_t i = 0; i < B; ++i) to[d * B + i] = block[i * dim + d];
}

void narrow_row(const float* from, int64_t dim, T* to) {
  for (int64_t d = 0; d < dim; ++d) to[d] = narrow<T>(from[d]);
}

// The first block of keys that any of the queries from `query` on sees.
inline int64_t first_block(const Shape& shape, int64_t query) {
  return std::max<int64_t>(0, query - shape.window + 1) / B;
}

inline int64_t blocks_of(int64_t keys) { return (keys + B - 1) / B; }

// Outputs of one sequence and head of keys at a time.
struct Forward {
  const Shape& shape;
  View query, key, value, out;
  float *largest, *inverses;  // of each query: (heads, tokens)
  int64_t tokens, D = shape.dim, E = shape.value_dim;
  Room<T> block, packed_keys, packed_values, weights;
  Room<float> scores, sums;

  Forward(const Shape& shape, int64_t longest, const View* views, float* kept)
      : shape(shape),
        query(views[0]),
        key(views[1]),
        value(views[2]),
        out(views[3]),
        largest(kept),
        inverses(kept + shape.heads * total(shape)),
        tokens(total(shape)),
        block(B * std::max(D, E)),
        packed_keys(blocks_of(longest) * B * D),
        packed_values(blocks_of(longest) * B * E),
        weights(blocks_of(longest) * B * B),
        scores(blocks_of(longest) * B * B),
        sums(B * E) {}

  ~Forward() { at::native::cpublas::brgemm_release(); }

  void operator()(const Task& task) {
    for (int64_t j = 0; j * B < task.keys; ++j) {
      int64_t rows = std::min(B, task.keys - j * B), at = task.first_key + j * B;
      copy_rows(row<T>(key, task.group, at), key.token, rows, D, block.get());
      pack_columns(block.get(), D, packed_keys.get() + j * B * D);
      copy_rows(row<T>(value, task.group, at), value.token, rows, E, block.get());
      pack_rows(block.get(), E, packed_values.get() + j * B * E);
    }
    int64_t repeats = shape.heads / shape.groups;
    for (int64_t h = task.group * repeats; h < (task.group + 1) * repeats; ++h)
      for (int64_t i = 0; i < task.length; i += B) queries(task, h, i);
  }

  void queries(const Task& task, int64_t h, int64_t i) {
    int64_t rows = std::min(B, task.length - i), at = task.first + i;
    int64_t place = task.keys - task.length + i;  // of the first query among the keys
    int64_t start = first_block(shape, place), stop = (place + rows - 1) / B + 1;
    copy_rows(row<T>(query, h, at), query.token, rows, D, block.get());
    for (int64_t j = start; j < stop; ++j)
      brgemm(B, B, D, D, B, B, false, block.get(), packed_keys.get() + j * B * D,
             scores.get() + j * B * B);
    for (int64_t q = 0; q < rows; ++q) softmax(q, place + q, start, stop, h * tokens + at + q);
    for (int64_t j = start; j < stop; ++j)
      brgemm(B, E, B, B, E, E, j > start, weights.get() + j * B * B,
             packed_values.get() + j * B * E, sums.get());
    for (int64_t q = 0; q < rows; ++q) {
      T* o = row<T>(out, h, at + q);
      const float* sum = sums.get() + q * E;
      float inverse = inverses[h * tokens + at + q];
      for (int64_t e = 0; e < E; ++e) o[e] = narrow<T>(sum[e] * inverse);
    }
  }

  // Write the weights of query q of the block, not yet divided by their sum.
  void softmax(int64_t q, int64_t place, int64_t start, int64_t stop, int64_t number) {
    float most = -INFINITY, sum = 0;
    for (int64_t j = start; j < stop; ++j) {
      const float* s = scores.get() + j * B * B + q * B;
      auto [from, to] = seen(j, place);
      float here = -INFINITY;
#pragma omp simd reduction(max : here)
      for (int c = 0; c < B; ++c) {
        float x = (c >= from) & (c < to) ? s[c] : -INFINITY;
        here = x > here ? x : here;
      }
      most = here > most ? here : most;
    }
    for (int64_t j = start; j < stop; ++j) {
      const float* s = scores.get() + j * B * B + q * B;
      T* w = weights.get() + j * B * B + q * B;
      auto [from, to] = seen(j, place);
      float part = 0;
#pragma omp simd reduction(+ : part)
      for (int c = 0; c < B; ++c) {
        float e = exponential((s[c] - most) * shape.scaling);
        e = (c >= from) & (c < to) ? e : 0.0f;
        part += e;
        w[c] = narrow<T>(e);
      }
      sum += part;
    }
    largest[number] = most;
    inverses[number] = 1 / sum;
  }

  // The keys of block j that the query at `place` sees.
  std::pair<int, int> seen(int64_t j, int64_t place) const {
    int64_t oldest = place - shape.window + 1;
    return {std::max<int64_t>(0, oldest - j * B), std::min(B, place - j * B + 1)};
  }
};

// Gradients of one sequence and head of keys at a time.
struct Backward {
  const Shape& shape;
  View query, key, value, out, grad, d_query, d_key, d_value;
  const float *largest, *inverses;
  int64_t tokens, D = shape.dim, E = shape.value_dim;
  Room<T> key_rows, key_columns, value_rows;
  Room<float> d_keys, d_values;
  Room<T> query_block, query_rows, query_columns, grad_block, grad_rows, grad_columns;
  Room<float> scores, d_weights, d_query_columns, d_query_rows;
  Room<T> weights, d_scores, d_scores_packed;
  float most[B], inverse[B], along[B];  // of the block's queries

  Backward(const Shape& shape, int64_t longest, const View* v, const float* kept)
      : shape(shape),
        query(v[0]),
        key(v[1]),
        value(v[2]),
        out(v[3]),
        grad(v[4]),
        d_query(v[5]),
        d_key(v[6]),
        d_value(v[7]),
        largest(kept),
        inverses(kept + shape.heads * total(shape)),
        tokens(total(shape)),
        key_rows(blocks_of(longest) * B * D),
        key_columns(blocks_of(longest) * B * D),
        value_rows(blocks_of(longest) * B * E),
        d_keys(blocks_of(longest) * B * D),
        d_values(blocks_of(longest) * B * E),
        query_block(B * D),
        query_rows(B * D),
        query_columns(B * D),
        grad_block(B * E),
        grad_rows(B * E),
        grad_columns(B * E),
        scores(B * B),
        d_weights(B * B),
        d_query_columns(B * D),
        d_query_rows(B * D),
        weights(B * B),
        d_scores(B * B),
        d_scores_packed(B * B) {}

  ~Backward() { at::native::cpublas::brgemm_release(); }

  void operator()(const Task& task) {
    int64_t blocks = blocks_of(task.keys);
    for (int64_t j = 0; j < blocks; ++j) {
      int64_t rows = std::min(B, task.keys - j * B), at = task.first_key + j * B;
      copy_rows(row<T>(key, task.group, at), key.token, rows, D, key_rows.get() + j * B * D);
      transpose(key_rows.get() + j * B * D, D, key_columns.get() + j * B * D);
      copy_rows(row<T>(value, task.group, at), value.token, rows, E, value_rows.get() + j * B * E);
    }
    std::fill_n(d_keys.get(), blocks * B * D, 0.0f);
    std::fill_n(d_values.get(), blocks * B * E, 0.0f);
    int64_t repeats = shape.heads / shape.groups;
    for (int64_t h = task.group * repeats; h < (task.group + 1) * repeats; ++h)
      for (int64_t i = 0; i < task.length; i += B) queries(task, h, i);
    for (int64_t k = 0; k < task.keys; ++k) {
      narrow_row(d_keys.get() + k * D, D, row<T>(d_key, task.group, task.first_key + k));
      narrow_row(d_values.get() + k * E, E, row<T>(d_value, task.group, task.first_key + k));
    }
  }

  void queries(const Task& task, int64_t h, int64_t i) {
    int64_t rows = std::min(B, task.length - i), at = task.first + i;
    int64_t place = task.keys - task.length + i;
    int64_t start = first_block(shape, place), stop = (place + rows - 1) / B + 1;
    copy_rows(row<T>(query, h, at), query.token, rows, D, query_block.get());
    copy_rows(row<T>(grad, h, at), grad.token, rows, E, grad_block.get());
    pack_rows(query_block.get(), D, query_rows.get());
    pack_columns(query_block.get(), D, query_columns.get());
    pack_rows(grad_block.get(), E, grad_rows.get());
    pack_columns(grad_block.get(), E, grad_columns.get());
    for (int64_t q = 0; q < B; ++q) {
      float dot = 0;
      if (q < rows) {
        const T *o = row<T>(out, h, at + q), *g = grad_block.get() + q * E;
#pragma omp simd reduction(+ : dot)
        for (int64_t e = 0; e < E; ++e) dot += wide(o[e]) * wide(g[e]);
      }
      along[q] = dot;
      most[q] = q < rows ? largest[h * tokens + at + q] : 0;
      inverse[q] = q < rows ? inverses[h * tokens + at + q] : 0;
    }
    for (int64_t j = start; j < stop; ++j) {
      brgemm(B, B, D, D, B, B, false, key_rows.get() + j * B * D, query_columns.get(),
             scores.get());
      brgemm(B, B, E, E, B, B, false, value_rows.get() + j * B * E, grad_columns.get(),
             d_weights.get());
      for (int64_t k = 0; k < B; ++k) softmax_backward(k, j * B + k - place, rows);
      pack_rows(d_scores.get(), B, d_scores_packed.get());
      brgemm(B, E, B, B, E, E, true, weights.get(), grad_rows.get(), d_values.get() + j * B * E);
      brgemm(B, D, B, B, D, D, true, d_scores.get(), query_rows.get(), d_keys.get() + j * B * D);
      brgemm(D, B, B, B, B, B, j > start, key_columns.get() + j * B * D,
             d_scores_packed.get(), d_query_columns.get());
    }
    transpose_words(d_query_columns.get(), B, D, B, d_query_rows.get(), D);
    for (int64_t q = 0; q < rows; ++q)
      narrow_row(d_query_rows.get() + q * D, D, row<T>(d_query, h, at + q));
  }

  // Weights of key k and gradients of its scores. It lies `ahead` keys after the first query.
  void softmax_backward(int64_t k, int64_t ahead, int64_t rows) {
    int from = std::clamp<int64_t>(ahead, 0, B),
        to = std::clamp<int64_t>(ahead + shape.window, 0, rows);
    const float *s = scores.get() + k * B, *dw = d_weights.get() + k * B;
    T *w = weights.get() + k * B, *ds = d_scores.get() + k * B;
    for (int c = 0; c < B; ++c) {
      float x = (s[c] - most[c]) * shape.scaling;
      x = x > 0.0f ? 0.0f : x;  // by rounding alone
      float p = (c >= from) & (c < to) ? exponential(x) * inverse[c] : 0.0f;
      w[c] = narrow<T>(p);
      ds[c] = narrow<T>(p * (dw[c] - along[c]) * shape.scaling);
    }
  }
};

}  // namespace

extern "C" {
EXPORT_ATTENTION(bfloat16, Forward, Backward)
}
