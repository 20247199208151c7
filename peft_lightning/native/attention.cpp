// Causal attention within each sequence of a flat batch, forward and backward.
//
// Query blocks meet key blocks of the same fixed size, so that the matrix library makes one kernel
// for each kind of product whatever the lengths of the sequences are. Products are of the inputs'
// own type and summed in float32. What is kept for the backward pass is the output and, for each
// query, its largest score and the sum of its softmax. (Dao et al. 2022, "FlashAttention", appendix
// B, keep one number for the two, which is too coarse where a run that goes astray has scores of
// 1e8.) The backward pass holds keys in rows and queries in columns, where none of its operands has
// to be transposed.

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "numbers.h"

namespace {

using at::native::cpublas::brgemm;

constexpr int64_t B = 64;  // queries, and keys, of a block

// What the caller passes, with the same layout as in attention.py.
struct Shape {
  int64_t sequences, heads, groups, dim, value_dim;
  int64_t window;           // keys that a query sees, itself included
  const int64_t* lens;      // queries of each sequence
  const int64_t* key_lens;  // its keys, the last of which are its queries' own
  float scaling;
};

// (heads, tokens, numbers), the numbers next to each other.
struct View {
  void* data;
  int64_t head, token;  // steps, in numbers
};

template <class T>
T* row(const View& view, int64_t head, int64_t token) {
  return static_cast<T*>(view.data) + head * view.head + token * view.token;
}

// ---- operands -----------------------------------------------------------------------------------

// Transpose 16 x 16 words of four bytes.
void transpose_tile(const uint32_t* from, int64_t step, uint32_t* to, int64_t to_step) {
#ifdef __clang__  // which has no shuffle of two vectors by a third
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) to[j * to_step + i] = from[i * step + j];
#else
  typedef uint32_t Row __attribute__((vector_size(64)));
  Row rows[16];
  for (int i = 0; i < 16; ++i) std::memcpy(&rows[i], from + i * step, 64);
#pragma GCC unroll 4
  for (int s = 1; s < 16; s *= 2) {  // swap the off-diagonal quarters of squares of 2 s words
    Row upper, lower;
    for (int c = 0; c < 16; ++c) {
      upper[c] = c & s ? 16 + c - s : c;
      lower[c] = c & s ? 16 + c : c + s;
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      if (!(i & s)) {
        Row a = rows[i], b = rows[i + s];
        rows[i] = __builtin_shuffle(a, b, upper);
        rows[i + s] = __builtin_shuffle(a, b, lower);
      }
  }
  for (int i = 0; i < 16; ++i) std::memcpy(to + i * to_step, &rows[i], 64);
#endif
}

// Transpose (rows, columns) words of four bytes.
void transpose_words(const uint32_t* from, int64_t rows, int64_t columns, uint32_t* to) {
  int64_t tiled_rows = rows / 16 * 16, tiled_columns = columns / 16 * 16;
  for (int64_t r = 0; r < tiled_rows; r += 16)
    for (int64_t c = 0; c < tiled_columns; c += 16)
      transpose_tile(from + r * columns + c, columns, to + c * rows + r, rows);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < tiled_rows ? tiled_columns : 0; c < columns; ++c)
      to[c * rows + r] = from[r * columns + c];
}

template <class T>
constexpr int64_t PAIR = sizeof(T) == 2 ? 2 : 1;  // rows of a right operand that lie interleaved

// Copy `rows` rows of `dim` numbers into a block of B rows; the others are zero.
template <class T>
void copy_rows(const T* from, int64_t step, int64_t rows, int64_t dim, T* to) {
  for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * dim, from + i * step, dim * sizeof(T));
  std::memset(static_cast<void*>(to + rows * dim), 0, (B - rows) * dim * sizeof(T));
}

// The block (B, dim) as a right operand with its rows as rows.
template <class T>
void pack_rows(const T* block, int64_t dim, T* to) {
  if constexpr (PAIR<T> == 1) {
    std::memcpy(to, block, B * dim * sizeof(T));
  } else {
    const auto* from = reinterpret_cast<const uint16_t*>(block);
    auto* pairs = reinterpret_cast<uint32_t*>(to);
    for (int64_t i = 0; i < B; i += 2)
      for (int64_t d = 0; d < dim; ++d)
        pairs[i / 2 * dim + d] = from[i * dim + d] | uint32_t(from[(i + 1) * dim + d]) << 16;
  }
}

// The block (B, dim) as a right operand with its rows as columns.
template <class T>
void pack_columns(const T* block, int64_t dim, T* to) {
  transpose_words(reinterpret_cast<const uint32_t*>(block), B, dim / PAIR<T>,
                  reinterpret_cast<uint32_t*>(to));
}

// The block (B, dim) as a left operand with its rows as columns.
template <class T>
void transpose(const T* block, int64_t dim, T* to) {
  if constexpr (PAIR<T> == 1) return pack_columns(block, dim, to);
  for (int64_t d = 0; d < dim; ++d)
    for (int64_t i = 0; i < B; ++i) to[d * B + i] = block[i * dim + d];
}

template <class T>
void narrow_row(const float* from, int64_t dim, T* to) {
  for (int64_t d = 0; d < dim; ++d) to[d] = narrow<T>(from[d]);
}

// Memory that is not set to anything.
template <class T>
struct Room : std::unique_ptr<T[]> {
  explicit Room(int64_t count) : std::unique_ptr<T[]>(new T[count]) {}
};

// ---- tasks --------------------------------------------------------------------------------------

// A sequence and a head of keys.
struct Task {
  int64_t group, length, keys;
  int64_t first, first_key;  // their places in the flat batch
};

inline int64_t total(const Shape& shape) {
  return std::accumulate(shape.lens, shape.lens + shape.sequences, int64_t(0));
}

// Run a worker of each thread, made for the longest sequence's blocks of keys, on every sequence
// and head of keys, the longest sequences first.
template <class Worker, class... Arguments>
void run(const Shape& shape, const Arguments&... arguments) {
  std::vector<Task> tasks;
  int64_t longest = *std::max_element(shape.key_lens, shape.key_lens + shape.sequences);
  int64_t first = 0, first_key = 0;
  for (int64_t s = 0; s < shape.sequences; ++s) {
    for (int64_t g = 0; g < shape.groups; ++g)
      tasks.push_back({g, shape.lens[s], shape.key_lens[s], first, first_key});
    first += shape.lens[s];
    first_key += shape.key_lens[s];
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](auto& a, auto& b) { return a.length * a.keys > b.length * b.keys; });
  std::atomic<size_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t begin, int64_t end) {
    Worker worker(shape, (longest + B - 1) / B, arguments...);
    for (size_t i; (i = next++) < tasks.size();) worker(tasks[i]);
    at::native::cpublas::brgemm_release();
  });
}

// The first block of keys that any of the queries from `query` on sees.
inline int64_t first_block(const Shape& shape, int64_t query) {
  return std::max<int64_t>(0, query - shape.window + 1) / B;
}

// Outputs of one sequence and head of keys at a time.
template <class T>
struct Forward {
  const Shape& shape;
  View query, key, value, out;
  float *largest, *inverses;  // of each query: (heads, tokens)
  int64_t tokens, D = shape.dim, E = shape.value_dim;
  Room<T> block, packed_keys, packed_values, weights;
  Room<float> scores, sums;

  Forward(const Shape& shape, int64_t blocks, const View* views, float* kept)
      : shape(shape),
        query(views[0]),
        key(views[1]),
        value(views[2]),
        out(views[3]),
        largest(kept),
        inverses(kept + shape.heads * total(shape)),
        tokens(total(shape)),
        block(B * std::max(D, E)),
        packed_keys(blocks * B * D),
        packed_values(blocks * B * E),
        weights(blocks * B * B),
        scores(blocks * B * B),
        sums(B * E) {}

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
template <class T>
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

  Backward(const Shape& shape, int64_t blocks, const View* v, const float* kept)
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
        key_rows(blocks * B * D),
        key_columns(blocks * B * D),
        value_rows(blocks * B * E),
        d_keys(blocks * B * D),
        d_values(blocks * B * E),
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

  void operator()(const Task& task) {
    int64_t blocks = (task.keys + B - 1) / B;
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
      const T* right = d_scores.get();
      if constexpr (PAIR<T> == 2) {
        pack_rows(right, B, d_scores_packed.get());
        right = d_scores_packed.get();
      }
      brgemm(B, E, B, B, E, E, true, weights.get(), grad_rows.get(), d_values.get() + j * B * E);
      brgemm(B, D, B, B, D, D, true, d_scores.get(), query_rows.get(), d_keys.get() + j * B * D);
      brgemm(D, B, B, B, B, B, j > start, key_columns.get() + j * B * D, right,
             d_query_columns.get());
    }
    transpose_words(reinterpret_cast<const uint32_t*>(d_query_columns.get()), D, B,
                    reinterpret_cast<uint32_t*>(d_query_rows.get()));
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

template <class Call>
int guarded(const Call& call) {  // no exception may pass through C
  try {
    call();
    return 0;
  } catch (...) {
    return 1;
  }
}

}  // namespace

// Each returns 0, or 1 if the matrix library has no such product on this processor.
// Views: query, key, value, out; backward also the gradient of out, and to be written those of
// query, key and value.
#define EXPORT(T, type)                                                                     \
  int attention_##type(const Shape* shape, const View* views, float* kept) {                \
    return guarded([&] { run<Forward<T>>(*shape, views, kept); });                          \
  }                                                                                         \
  int attention_backward_##type(const Shape* shape, const View* views, const float* kept) { \
    return guarded([&] { run<Backward<T>>(*shape, views, kept); });                         \
  }

extern "C" {
EXPORT(at::BFloat16, bfloat16)
EXPORT(float, float32)
}
