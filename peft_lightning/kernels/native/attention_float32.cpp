// Causal attention within each sequence of a flat batch, forward and backward, in float32.
//
// What is kept for the backward pass is the output and, for each query, its largest score and the
// inverse of the sum of its softmax, as in attention_bfloat16.cpp. No product is computed for keys
// that a query does not see, up to the size of a tile.

#include <cmath>

#include "attention.h"
#include "numbers.h"
#include "products.h"
#include "transpose.h"

namespace {

constexpr int64_t QUERIES = 48;  // of a block: whole tiles of 6 and of 8 rows

// Pack (rows, columns), rows `step` numbers apart, as a right operand: panels of (rows,
// TILE_COLUMNS), whose missing columns are zero.
void pack(const float* from, int64_t step, int64_t rows, int64_t columns, float* to) {
  for (int64_t c = 0; c < columns; c += TILE_COLUMNS) {
    int64_t count = std::min<int64_t>(TILE_COLUMNS, columns - c);
    for (int64_t i = 0; i < rows; ++i, to += TILE_COLUMNS) {
      const float* own = from + i * step + c;
      if (count == TILE_COLUMNS) {  // not by a call, which takes longer than the copy
        *(Vector*)to = *(const Vector*)own;
        *(Vector*)(to + VECTOR) = *(const Vector*)(own + VECTOR);
      } else {
        for (int64_t j = 0; j < TILE_COLUMNS; ++j) to[j] = j < count ? own[j] : 0.0f;
      }
    }
  }
}

// The same of a matrix whose columns are given as rows.
void pack_transposed(const float* from, int64_t step, int64_t rows, int64_t columns, float* to) {
  for (int64_t c = 0; c < columns; c += TILE_COLUMNS, to += rows * TILE_COLUMNS) {
    int64_t count = std::min<int64_t>(TILE_COLUMNS, columns - c);
    if (count < TILE_COLUMNS) std::fill_n(to, rows * TILE_COLUMNS, 0.0f);
    transpose_words(from + c * step, step, count, rows, to, TILE_COLUMNS);
  }
}

struct Range {
  int64_t from, to;
};

// Call work(k, lane, whether k is in the range) for the whole vectors that the range touches: a
// rest that is no vector would take as long as all others.
template <class Work>
inline void for_vectors(int64_t from, int64_t to, const Work& work) {
  for (int64_t first = from / VECTOR * VECTOR; first < to; first += VECTOR) {
    int begin = std::max<int64_t>(from - first, 0), end = std::min<int64_t>(to - first, VECTOR);
#pragma omp simd
    for (int lane = 0; lane < VECTOR; ++lane)
      work(first + lane, lane, (lane >= begin) & (lane < end));
  }
}

// A block of queries of one head: which keys its rows see. `place` is that of its first query among
// the keys.
struct Block {
  int64_t rows, place, window;

  Range keys(int64_t q) const {
    return {std::max<int64_t>(0, place + q - window + 1), place + q + 1};
  }
  // all that rows q to q + count see
  Range keys(int64_t q, int64_t count) const { return {keys(q).from, keys(q + count - 1).to}; }
  // the panels of keys that any row sees
  Range panels() const {
    return {keys(0).from / TILE_COLUMNS * TILE_COLUMNS, rounded_up(place + rows, TILE_COLUMNS)};
  }
  // the rows that see any of `count` keys from `key` on
  Range queries(int64_t key, int64_t count) const {
    return {std::max<int64_t>(0, key - place), std::min(rows, key + count - 1 - place + window)};
  }
};

// What forward and backward have in common: the scores of a block of queries.
struct Worker {
  const Shape& shape;
  int64_t tokens, D = shape.dim, E = shape.value_dim;
  int64_t step;  // of a row of scores: no power of two, so that columns do not share a cache line's
                 // place
  Room<float> key_columns, scores;

  Worker(const Shape& shape, int64_t longest)
      : shape(shape),
        tokens(total(shape)),
        step(rounded_up(longest, TILE_COLUMNS) + VECTOR),
        key_columns(D * rounded_up(longest, TILE_COLUMNS)),
        scores(QUERIES * step) {}

  // to = left (rows, depth) times packed columns, at the places that the block's rows see.
  void times_columns(const Block& block, Matrix left, int64_t depth, const float* panels,
                     float* to) const {
    auto [begin, end] = block.panels();
    for (int64_t c = begin; c < end; c += TILE_COLUMNS) {
      auto [first, last] = block.queries(c, TILE_COLUMNS);
      for (int64_t q = first / TILE_ROWS * TILE_ROWS; q < last; q += TILE_ROWS)
        tile_of<2>(std::min<int64_t>(TILE_ROWS, block.rows - q), depth, left.from(q, 0),
                   panels + c * depth, TILE_COLUMNS, to + q * step + c, step, false);
    }
  }

  // to (rows, columns) = weights (rows, keys) times packed rows of `keys` keys.
  void times_rows(const Block& block, const float* weights, int64_t keys, const float* panels,
                  int64_t columns, float* to, int64_t to_row) const {
    for (int64_t c = 0; c < columns; c += TILE_COLUMNS)
      for (int64_t q = 0; q < block.rows; q += TILE_ROWS) {
        int64_t count = std::min<int64_t>(TILE_ROWS, block.rows - q);
        auto [from, end] = block.keys(q, count);
        tile_product(count, columns - c, end - from, {weights + q * step + from, step, 1},
                     panels + c * keys + from * TILE_COLUMNS, TILE_COLUMNS, to + q * to_row + c,
                     to_row, false);
      }
  }

  // Rows of a block see nothing outside their range, in all that the products read.
  void clear_unseen(const Block& block, int64_t q, float* row) const {
    auto [begin, end] = block.panels();
    auto [from, to] = block.keys(q);
    std::fill(row + begin, row + from, 0.0f);
    std::fill(row + to, row + end, 0.0f);
  }

  Block block_of(const Task& task, int64_t i) const {
    return {std::min(QUERIES, task.length - i), task.keys - task.length + i, shape.window};
  }
};

struct Forward : Worker {
  View query, key, value, out;
  float *largest, *inverses;  // of each query: (heads, tokens)
  Room<float> value_rows, sums;

  Forward(const Shape& shape, int64_t longest, const View* views, float* kept)
      : Worker(shape, longest),
        query(views[0]),
        key(views[1]),
        value(views[2]),
        out(views[3]),
        largest(kept),
        inverses(kept + shape.heads * tokens),
        value_rows(longest * rounded_up(E, TILE_COLUMNS)),
        sums(QUERIES * rounded_up(E, TILE_COLUMNS)) {}

  void operator()(const Task& task) {
    pack_transposed(row<float>(key, task.group, task.first_key), key.token, D, task.keys,
                    key_columns.get());
    pack(row<float>(value, task.group, task.first_key), value.token, task.keys, E,
         value_rows.get());
    int64_t repeats = shape.heads / shape.groups;
    for (int64_t h = task.group * repeats; h < (task.group + 1) * repeats; ++h)
      for (int64_t i = 0; i < task.length; i += QUERIES) queries(task, h, i);
  }

  void queries(const Task& task, int64_t h, int64_t i) {
    Block block = block_of(task, i);
    int64_t at = task.first + i, sums_row = rounded_up(E, TILE_COLUMNS);
    times_columns(block, {row<float>(query, h, at), query.token, 1}, D, key_columns.get(),
                  scores.get());
    for (int64_t q = 0; q < block.rows; ++q) softmax(block, q, h * tokens + at + q);
    times_rows(block, scores.get(), task.keys, value_rows.get(), E, sums.get(), sums_row);
    for (int64_t q = 0; q < block.rows; ++q) {
      float *o = row<float>(out, h, at + q), inverse = inverses[h * tokens + at + q];
      const float* sum = sums.get() + q * sums_row;
      for (int64_t e = 0; e < E; ++e) o[e] = sum[e] * inverse;
    }
  }

  // Make the scores of query q weights that are not yet divided by their sum.
  void softmax(const Block& block, int64_t q, int64_t number) {
    auto [from, to] = block.keys(q);
    float *s = scores.get() + q * step, most = -INFINITY, sum = 0, scaling = shape.scaling;
    float tops[VECTOR], sums[VECTOR] = {};
    std::fill_n(tops, VECTOR, -INFINITY);
    for_vectors(from, to, [&](int64_t k, int lane, bool seen) {
      float x = seen ? s[k] : -INFINITY;
      tops[lane] = x > tops[lane] ? x : tops[lane];
    });
    for (float top : tops) most = top > most ? top : most;
    for_vectors(from, to, [&](int64_t k, int lane, bool seen) {
      float e = exponential((s[k] - most) * scaling);
      s[k] = e = seen ? e : 0.0f;
      sums[lane] += e;
    });
    for (float part : sums) sum += part;
    clear_unseen(block, q, s);
    largest[number] = most;
    inverses[number] = 1 / sum;
  }
};

struct Backward : Worker {
  View query, key, value, out, grad, d_query, d_key, d_value;
  const float *largest, *inverses;
  int64_t wide_D = rounded_up(D, TILE_COLUMNS), wide_E = rounded_up(E, TILE_COLUMNS);
  Room<float> value_columns, key_rows, d_keys, d_values;
  Room<float> query_rows, grad_rows, d_scores, d_queries;

  Backward(const Shape& shape, int64_t longest, const View* v, const float* kept)
      : Worker(shape, longest),
        query(v[0]),
        key(v[1]),
        value(v[2]),
        out(v[3]),
        grad(v[4]),
        d_query(v[5]),
        d_key(v[6]),
        d_value(v[7]),
        largest(kept),
        inverses(kept + shape.heads * tokens),
        value_columns(E * rounded_up(longest, TILE_COLUMNS)),
        key_rows(longest * wide_D),
        d_keys(longest * wide_D),
        d_values(longest * wide_E),
        query_rows(QUERIES * wide_D),
        grad_rows(QUERIES * wide_E),
        d_scores(QUERIES * step),
        d_queries(QUERIES * wide_D) {}

  void operator()(const Task& task) {
    const float *keys = row<float>(key, task.group, task.first_key),
                *values = row<float>(value, task.group, task.first_key);
    pack_transposed(keys, key.token, D, task.keys, key_columns.get());
    pack_transposed(values, value.token, E, task.keys, value_columns.get());
    pack(keys, key.token, task.keys, D, key_rows.get());
    std::fill_n(d_keys.get(), task.keys * wide_D, 0.0f);
    std::fill_n(d_values.get(), task.keys * wide_E, 0.0f);
    int64_t repeats = shape.heads / shape.groups;
    for (int64_t h = task.group * repeats; h < (task.group + 1) * repeats; ++h)
      for (int64_t i = 0; i < task.length; i += QUERIES) queries(task, h, i);
    for (int64_t k = 0; k < task.keys; ++k) {
      std::copy_n(d_keys.get() + k * wide_D, D, row<float>(d_key, task.group, task.first_key + k));
      std::copy_n(d_values.get() + k * wide_E, E,
                  row<float>(d_value, task.group, task.first_key + k));
    }
  }

  void queries(const Task& task, int64_t h, int64_t i) {
    Block block = block_of(task, i);
    int64_t at = task.first + i;
    Matrix own{row<float>(query, h, at), query.token, 1},
        d_out{row<float>(grad, h, at), grad.token, 1};
    pack(own.data, own.row, block.rows, D, query_rows.get());
    pack(d_out.data, d_out.row, block.rows, E, grad_rows.get());
    times_columns(block, own, D, key_columns.get(), scores.get());
    times_columns(block, d_out, E, value_columns.get(), d_scores.get());
    for (int64_t q = 0; q < block.rows; ++q) softmax_backward(block, q, h, at + q);
    times_rows(block, d_scores.get(), task.keys, key_rows.get(), D, d_queries.get(), wide_D);
    for (int64_t q = 0; q < block.rows; ++q)
      std::copy_n(d_queries.get() + q * wide_D, D, row<float>(d_query, h, at + q));
    add_transposed(block, scores.get(), grad_rows.get(), E, d_values.get(), wide_E);
    add_transposed(block, d_scores.get(), query_rows.get(), D, d_keys.get(), wide_D);
  }

  // Make the scores of query q weights, and the gradients of its weights those of its scores.
  void softmax_backward(const Block& block, int64_t q, int64_t h, int64_t token) {
    const float *o = row<float>(out, h, token), *g = row<float>(grad, h, token);
    float along = 0, most = largest[h * tokens + token], inverse = inverses[h * tokens + token];
    float scaling = shape.scaling;
#pragma omp simd reduction(+ : along)
    for (int64_t e = 0; e < E; ++e) along += o[e] * g[e];
    auto [from, to] = block.keys(q);
    float *s = scores.get() + q * step, *ds = d_scores.get() + q * step;
    for_vectors(from, to, [&](int64_t k, int, bool seen) {
      float x = (s[k] - most) * scaling;
      x = x > 0.0f ? 0.0f : x;  // by rounding alone
      float p = seen ? exponential(x) * inverse : 0.0f, d = ds[k];
      s[k] = p;
      ds[k] = seen ? p * (d - along) * scaling : 0.0f;
    });
    clear_unseen(block, q, s);
    clear_unseen(block, q, ds);
  }

  // to (keys, columns) += weights (rows, keys) transposed times packed rows of the block.
  void add_transposed(const Block& block, const float* weights, const float* panels,
                      int64_t columns, float* to, int64_t to_row) const {
    Range seen = block.keys(0, block.rows);
    for (int64_t c = 0; c < columns; c += TILE_COLUMNS)
      for (int64_t k = seen.from; k < seen.to; k += TILE_ROWS) {
        int64_t count = std::min<int64_t>(TILE_ROWS, seen.to - k);
        auto [first, last] = block.queries(k, count);
        tile_product(count, columns - c, last - first, {weights + first * step + k, 1, step},
                     panels + c * block.rows + first * TILE_COLUMNS, TILE_COLUMNS,
                     to + k * to_row + c, to_row, true);
      }
  }
};

}  // namespace

extern "C" {
EXPORT_ATTENTION(float32, Forward, Backward)
}
