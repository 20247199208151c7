// Transposition of words of four bytes, in squares of the processor's vectors.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int SQUARE = 16;
#else
constexpr int SQUARE = 8;
#endif

// Transpose SQUARE x SQUARE words.
template <class Word>
inline void transpose_square(const Word* from, int64_t step, Word* to, int64_t to_step) {
  static_assert(sizeof(Word) == 4);
#ifdef __clang__  // which has no shuffle of two vectors by a third
  for (int i = 0; i < SQUARE; ++i)
    for (int j = 0; j < SQUARE; ++j) to[j * to_step + i] = from[i * step + j];
#else
  typedef uint32_t Row __attribute__((vector_size(SQUARE * 4)));
  Row rows[SQUARE];
  for (int i = 0; i < SQUARE; ++i) std::memcpy(&rows[i], from + i * step, sizeof(Row));
#pragma GCC unroll 4
  for (int s = 1; s < SQUARE; s *= 2) {  // swap the off-diagonal quarters of squares of 2 s words
    Row upper, lower;
    for (int c = 0; c < SQUARE; ++c) {
      upper[c] = c & s ? SQUARE + c - s : c;
      lower[c] = c & s ? SQUARE + c : c + s;
    }
#pragma GCC unroll 16
    for (int i = 0; i < SQUARE; ++i)
      if (!(i & s)) {
        Row a = rows[i], b = rows[i + s];
        rows[i] = __builtin_shuffle(a, b, upper);
        rows[i + s] = __builtin_shuffle(a, b, lower);
      }
  }
  for (int i = 0; i < SQUARE; ++i) std::memcpy(to + i * to_step, &rows[i], sizeof(Row));
#endif
}

// to (columns, rows) = from (rows, columns) transposed; rows of each lie `step` and `to_step` words
// apart.
template <class Word>
void transpose_words(const Word* from, int64_t step, int64_t rows, int64_t columns, Word* to,
                     int64_t to_step) {
  int64_t tiled_rows = rows / SQUARE * SQUARE, tiled_columns = columns / SQUARE * SQUARE;
  for (int64_t r = 0; r < tiled_rows; r += SQUARE)
    for (int64_t c = 0; c < tiled_columns; c += SQUARE)
      transpose_square(from + r * step + c, step, to + c * to_step + r, to_step);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < tiled_rows ? tiled_columns : 0; c < columns; ++c)
      to[c * to_step + r] = from[r * step + c];
}
