// Products of float32 matrices that lie in the processor's cache, in vectors of its width.
//
// The left operand may have any layout, since its numbers are broadcast one by one: it is never
// transposed or copied. The right one is packed into panels of TILE_COLUMNS columns.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int VECTOR = 16;     // numbers of a vector
constexpr int TILE_ROWS = 8;   // 16 sums in 32 registers
#else
constexpr int VECTOR = 8;
constexpr int TILE_ROWS = 6;   // 12 sums in 16 registers
#endif
constexpr int TILE_COLUMNS = 2 * VECTOR;

typedef float Vector __attribute__((vector_size(VECTOR * 4), aligned(4), may_alias));

// Number (i, j) of a matrix is data[i * row + j * column].
struct Matrix {
  const float* data;
  int64_t row, column;
  Matrix from(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
};

inline int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// to (ROWS, VECTORS * VECTOR) = or += left (ROWS, depth) right (depth, VECTORS * VECTOR).
template <int ROWS, int VECTORS>
inline void tile(int64_t depth, Matrix left, const float* right, int64_t right_row, float* to,
                 int64_t to_row, bool add) {
  Vector sums[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v)
      sums[i][v] = add ? *(const Vector*)(to + i * to_row + v * VECTOR) : Vector{};
  for (int64_t k = 0; k < depth; ++k) {
    Vector columns[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v)
      columns[v] = *(const Vector*)(right + k * right_row + v * VECTOR);
    const float* numbers = left.data + k * left.column;
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sums[i][v] += numbers[i * left.row] * columns[v];
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) *(Vector*)(to + i * to_row + v * VECTOR) = sums[i][v];
}

template <int VECTORS>
void tile_of(int64_t rows, int64_t depth, Matrix left, const float* right, int64_t right_row,
             float* to, int64_t to_row, bool add) {
  switch (rows) {
#define ROWS(n) \
  case n: return tile<n, VECTORS>(depth, left, right, right_row, to, to_row, add);
    ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if defined(__AVX512F__)
    ROWS(7) ROWS(8)
#endif
#undef ROWS
  }
}

// The columns of a right operand, VECTOR or TILE_COLUMNS of them, are `right_row` numbers a row
// apart; `to` has room for as many.
inline void tile_product(int64_t rows, int64_t columns, int64_t depth, Matrix left,
                         const float* right, int64_t right_row, float* to, int64_t to_row,
                         bool add) {
  if (columns > VECTOR) return tile_of<2>(rows, depth, left, right, right_row, to, to_row, add);
  tile_of<1>(rows, depth, left, right, right_row, to, to_row, add);
}
