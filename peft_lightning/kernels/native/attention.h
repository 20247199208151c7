// What both kernels of causal attention take, and how their work is divided.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

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

// Memory that is not set to anything.
template <class T>
struct Room : std::unique_ptr<T[]> {
  explicit Room(int64_t count) : std::unique_ptr<T[]>(new T[count]) {}
};

// A sequence and a head of keys.
struct Task {
  int64_t group, length, keys;
  int64_t first, first_key;  // their places in the flat batch
};

inline int64_t total(const Shape& shape) {
  return std::accumulate(shape.lens, shape.lens + shape.sequences, int64_t(0));
}

// Run a worker of each thread, made for the longest sequence's keys, on every sequence and head of
// keys, the longest sequences first.
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
    Worker worker(shape, longest, arguments...);
    for (size_t i; (i = next++) < tasks.size();) worker(tasks[i]);
  });
}

template <class Call>
int guarded(const Call& call) {  // no exception may pass through C
  try {
    call();
    return 0;
  } catch (...) {
    return 1;
  }
}

// Each returns 0, or 1 if the matrix library has no such product on this processor.
// Views: query, key, value, out; backward also the gradient of out, and to be written those of
// query, key and value.
#define EXPORT_ATTENTION(type, Forward, Backward)                                           \
  int attention_##type(const Shape* shape, const View* views, float* kept) {                \
    return guarded([&] { run<Forward>(*shape, views, kept); });                             \
  }                                                                                         \
  int attention_backward_##type(const Shape* shape, const View* views, const float* kept) { \
    return guarded([&] { run<Backward>(*shape, views, kept); });                            \
  }
