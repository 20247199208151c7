// RMSNorm, rotary positions, and the product of a gated MLP with SiLU: one pass over the elements
// each, forward and backward, computed in float32 whatever the elements are.

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "numbers.h"

namespace {

constexpr int64_t GRAIN = 32768;  // elements that are worth a thread

template <class Work>
void for_rows(int64_t rows, int64_t width, const Work& work) {
  int64_t grain = std::max<int64_t>(1, GRAIN / width);
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) work(r * width, r);
  });
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

template <class T>
void gated(int64_t rows, int64_t width, const T* gate, const T* up, T* out) {
  for_rows(rows, width, [=](int64_t at, int64_t) {
    const T *g = gate + at, *u = up + at;
    T* o = out + at;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      float x = wide(g[i]);
      o[i] = narrow<T>(x * sigmoid(x) * wide(u[i]));
    }
  });
}

template <class T>
void gated_backward(int64_t rows, int64_t width, const T* gate, const T* up, const T* grad,
                    T* d_gate, T* d_up) {
  for_rows(rows, width, [=](int64_t at, int64_t) {
    const T *g = gate + at, *u = up + at, *d = grad + at;
    T *dg = d_gate + at, *du = d_up + at;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      float x = wide(g[i]), dy = wide(d[i]), s = sigmoid(x);
      dg[i] = narrow<T>(dy * wide(u[i]) * s * (1.0f + x * (1.0f - s)));
      du[i] = narrow<T>(dy * x * s);
    }
  });
}

template <class T>
void scaled_row(int64_t width, const T* x, const T* weight, float inverse, T* y) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    float normed = wide(narrow<T>(wide(x[i]) * inverse));  // rounded there, as transformers does
    y[i] = narrow<T>(wide(weight[i]) * normed);
  }
}

template <class T>
void norm(int64_t rows, int64_t width, const T* x, const T* weight, float eps, T* y,
          float* inverses) {
  for_rows(rows, width, [=](int64_t at, int64_t r) {
    const T* from = x + at;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += wide(from[i]) * wide(from[i]);
    inverses[r] = 1.0f / std::sqrt(sum / width + eps);
    scaled_row(width, from, weight, inverses[r], y + at);
  });
}

template <class T>
void scaled(int64_t rows, int64_t width, const T* x, const T* weight, const float* inverses, T* y) {
  for_rows(rows, width,
           [=](int64_t at, int64_t r) { scaled_row(width, x + at, weight, inverses[r], y + at); });
}

template <class T>
void backward_row(int64_t width, const T* x, const T* weight, float inverse, const T* grad,
                  T* d_x) {
  float along = 0;
#pragma omp simd reduction(+ : along)
  for (int64_t i = 0; i < width; ++i) along += wide(x[i]) * wide(grad[i]) * wide(weight[i]);
  float factor = along * inverse * inverse / width;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i)
    d_x[i] = narrow<T>((wide(grad[i]) * wide(weight[i]) - wide(x[i]) * factor) * inverse);
}

template <class T>
void norm_backward(int64_t rows, int64_t width, const T* x, const T* weight, const float* inverses,
                   const T* grad, T* d_x) {
  for_rows(rows, width, [=](int64_t at, int64_t r) {
    backward_row(width, x + at, weight, inverses[r], grad + at, d_x + at);
  });
}

// Turn the pairs of numbers (i, i + dim / 2) of each head by a token's angles, or with `way` -1
// turn gradients back. Tokens lie `step` numbers apart in x, and (tokens, heads, dim) in y.
template <class T>
void rotated(int64_t tokens, int64_t heads, int64_t dim, int64_t step, float way, const T* x,
             const T* cosines, const T* sines, T* y) {
  for_rows(tokens, heads * dim, [=](int64_t at, int64_t t) {
    const T *c = cosines + t * dim, *s = sines + t * dim;
    int64_t half = dim / 2;
    float turn = way;
    for (int64_t h = 0; h < heads; ++h) {
      const T* from = x + t * step + h * dim;
      T* to = y + at + h * dim;
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        float a = wide(from[i]), b = wide(from[i + half]);
        float first = wide(turn < 0 ? s[i + half] : s[i]),
              second = wide(turn < 0 ? s[i] : s[i + half]);
        to[i] = narrow<T>(a * wide(c[i]) - turn * b * first);
        to[i + half] = narrow<T>(b * wide(c[i + half]) + turn * a * second);
      }
    }
  });
}

}  // namespace

#define EXPORT(T, type)                                                                       \
  void gated_##type(int64_t rows, int64_t width, const T* gate, const T* up, T* out) {        \
    gated(rows, width, gate, up, out);                                                        \
  }                                                                                           \
  void gated_backward_##type(int64_t rows, int64_t width, const T* gate, const T* up,         \
                             const T* grad, T* d_gate, T* d_up) {                             \
    gated_backward(rows, width, gate, up, grad, d_gate, d_up);                                \
  }                                                                                           \
  void norm_##type(int64_t rows, int64_t width, const T* x, const T* weight, float eps, T* y, \
                   float* inverses) {                                                         \
    norm(rows, width, x, weight, eps, y, inverses);                                           \
  }                                                                                           \
  void scaled_##type(int64_t rows, int64_t width, const T* x, const T* weight,                \
                     const float* inverses, T* y) {                                           \
    scaled(rows, width, x, weight, inverses, y);                                              \
  }                                                                                           \
  void norm_backward_##type(int64_t rows, int64_t width, const T* x, const T* weight,         \
                            const float* inverses, const T* grad, T* d_x) {                   \
    norm_backward(rows, width, x, weight, inverses, grad, d_x);                               \
  }                                                                                           \
  void rotated_##type(int64_t tokens, int64_t heads, int64_t dim, int64_t step, float way,    \
                      const T* x, const T* cosines, const T* sines, T* y) {                   \
    rotated(tokens, heads, dim, step, way, x, cosines, sines, y);                             \
  }

extern "C" {
EXPORT(at::BFloat16, bfloat16)
EXPORT(float, float32)
}
