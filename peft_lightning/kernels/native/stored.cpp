// Products of a few rows with weights of two bytes, eight bits or four: each weight is read once, as
// it is stored, and multiplied in float32. And such weights as float32 numbers.

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "numbers.h"

namespace {

using ::wide;

#ifdef __AVX512F__
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif
typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef uint32_t Integers __attribute__((vector_size(LANES * 4)));
typedef float Loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));  // in memory

constexpr int64_t GRAIN = 65536;  // weights that are worth a thread
constexpr int64_t TOGETHER = 4;   // rows of weights that are multiplied at once

struct Half {
  uint16_t x;
};

// The exponent and mantissa of float16 in the places of float32's, whose bias is greater by 112:
// exact for subnormal numbers too. (No weight of a model is infinite.)
inline float wide(Half h) {
  uint32_t bits = uint32_t(h.x & 0x7fff) << 13;
  float result;
  std::memcpy(&result, &bits, 4);
  result *= 0x1p112f;
  std::memcpy(&bits, &result, 4);
  bits |= uint32_t(h.x & 0x8000) << 16;
  std::memcpy(&result, &bits, 4);
  return result;
}

// Each kind of weights writes `width` numbers of row `row` to `to`.

template <class T>
struct TwoBytes {
  const T* weight;
  void expand(int64_t row, int64_t width, float* to) const {
    const T* from = weight + row * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) to[i] = wide(from[i]);
  }
};

// LLM.int8(): whole numbers, and the largest absolute value of each row, which is 127.
struct EightBits {
  const int8_t* weight;
  const float* largest;
  void expand(int64_t row, int64_t width, float* to) const {
    const int8_t* from = weight + row * width;
    float scale = largest[row] * (1.0f / 127.0f);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) to[i] = float(from[i]) * scale;
  }
};

// Two numbers to a byte, the higher four bits first: places in a table of 16 values, scaled block by
// block of 32 or more. The scales may be places in a table of 256 themselves, scaled by 256s.
struct FourBits {
  const uint8_t* weight;
  const float* table;
  int64_t block;
  const float* scales;
  const uint8_t* places;
  const float* scales_table;
  const float* scales_of_scales;
  float offset;
  float scale(int64_t i) const {
    if (places == nullptr) return scales[i];
    return scales_table[places[i]] * scales_of_scales[i / 256] + offset;
  }
  void expand(int64_t row, int64_t width, float* to) const {  // rows are whole blocks
    const uint8_t* from = weight + row * width / 2;
    int64_t length = block, first = row * width / length;
    Vector low = *(const Loose*)table, high = *(const Loose*)(table + 16 - LANES);
    for (int64_t at = 0; at < width; at += length) {
      float s = scale(first + at / length);
      for (int64_t i = 0; i < length; i += LANES)
        *(Loose*)(to + at + i) = looked_up(from + (at + i) / 2, low, high) * s;
    }
  }
  // LANES numbers of the table: each lane has four bytes, of which it takes one half of one.
  static inline Vector looked_up(const uint8_t* from, Vector low, Vector high) {
    uint32_t a, b;
    std::memcpy(&a, from, 4);
#ifdef __AVX512F__
    std::memcpy(&b, from + 4, 4);
    const Integers second = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    Integers places = second != 0 ? Integers{} + b : Integers{} + a;
    places >>= Integers{4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24};
    return __builtin_shuffle(low, places & 15);
#else
    Integers places = Integers{} + a;
    places >>= Integers{4, 0, 12, 8, 20, 16, 28, 24};
    b = 8;
    Vector one = __builtin_shuffle(low, places & 7), other = __builtin_shuffle(high, places & 7);
    return (places & b) != 0 ? other : one;
#endif
  }
};

inline float sum(Vector v) {
  float result = 0;
  for (int64_t i = 0; i < LANES; ++i) result += v[i];
  return result;
}

// M rows of inputs times N rows of weights, (M, N) sums of `width` products each.
template <int M, int N>
void tile(int64_t width, const float* x, const float* w, const float* bias, float* y,
          int64_t step) {
  Vector sums[M][N] = {};
  int64_t at = 0;
  for (; at + LANES <= width; at += LANES) {
    Vector right[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) right[n] = *(const Loose*)(w + n * width + at);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      Vector left = *(const Loose*)(x + m * width + at);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[m][n] += left * right[n];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      float total = sum(sums[m][n]);
      for (int64_t i = at; i < width; ++i) total += x[m * width + i] * w[n * width + i];
      y[m * step + n] = total + (bias ? bias[n] : 0.0f);
    }
  }
}

template <int N>
void tiles(int64_t rows, int64_t width, const float* x, const float* w, const float* bias, float* y,
           int64_t step) {
  int64_t m = 0;
  for (; m + 4 <= rows; m += 4)
    tile<4, N>(width, x + m * width, w, bias, y + m * step, step);
  for (; m + 2 <= rows; m += 2)
    tile<2, N>(width, x + m * width, w, bias, y + m * step, step);
  if (m < rows) tile<1, N>(width, x + m * width, w, bias, y + m * step, step);
}

// y = x W^T + bias, x (rows, width), W (out, width), y (rows, out).
template <class Weights>
void few(int64_t rows, int64_t out, int64_t width, const float* x, const float* bias, float* y,
         const Weights& weights) {
  int64_t groups = (out + TOGETHER - 1) / TOGETHER;
  int64_t grain = std::max<int64_t>(1, GRAIN / (width * TOGETHER));
  at::parallel_for(0, groups, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(TOGETHER * width);
    for (int64_t g = begin; g < end; ++g) {
      int64_t first = g * TOGETHER, count = std::min(TOGETHER, out - first);
      for (int64_t n = 0; n < count; ++n)
        weights.expand(first + n, width, buffer.data() + n * width);
      if (count == TOGETHER) {
        if (LANES == 16 || rows < 2) {
          tiles<4>(rows, width, x, buffer.data(), bias ? bias + first : nullptr, y + first, out);
        } else {  // AVX2 has 16 registers
          for (int64_t n = 0; n < 4; n += 2)
            tiles<2>(rows, width, x, buffer.data() + n * width, bias ? bias + first + n : nullptr,
                     y + first + n, out);
        }
      } else {
        for (int64_t n = 0; n < count; ++n)
          tiles<1>(rows, width, x, buffer.data() + n * width, bias ? bias + first + n : nullptr,
                   y + first + n, out);
      }
    }
  });
}

template <class Weights>
void expanded(int64_t begin, int64_t end, int64_t width, float* to, const Weights& weights) {
  int64_t grain = std::max<int64_t>(1, GRAIN / width);
  at::parallel_for(begin, end, grain, [&](int64_t from, int64_t until) {
    for (int64_t row = from; row < until; ++row)
      weights.expand(row, width, to + (row - begin) * width);
  });
}

}  // namespace

#define ROWS int64_t rows, int64_t out, int64_t width, const float *x, const float *bias, float *y
#define FOUR                                                                                 \
  const uint8_t *weight, const float *table, int64_t block, const float *scales,             \
      const uint8_t *places, const float *scales_table, const float *scales_of_scales,       \
      float offset

extern "C" {
void few_bfloat16(ROWS, const at::BFloat16* weight) {
  few(rows, out, width, x, bias, y, TwoBytes<at::BFloat16>{weight});
}
void few_float16(ROWS, const Half* weight) {
  few(rows, out, width, x, bias, y, TwoBytes<Half>{weight});
}
void few_8bit(ROWS, const int8_t* weight, const float* largest) {
  few(rows, out, width, x, bias, y, EightBits{weight, largest});
}
void few_4bit(ROWS, FOUR) {
  few(rows, out, width, x, bias, y,
      FourBits{weight, table, block, scales, places, scales_table, scales_of_scales, offset});
}
void expanded_8bit(int64_t begin, int64_t end, int64_t width, float* to, const int8_t* weight,
                   const float* largest) {
  expanded(begin, end, width, to, EightBits{weight, largest});
}
void expanded_4bit(int64_t begin, int64_t end, int64_t width, float* to, FOUR) {
  expanded(begin, end, width, to,
           FourBits{weight, table, block, scales, places, scales_table, scales_of_scales, offset});
}
}
