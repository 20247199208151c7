// Numbers of half precision and the exponential, in operations that compilers vectorise.

#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>

inline float wide(float x) { return x; }
inline float wide(at::BFloat16 x) {
  uint32_t bits = uint32_t(x.x) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

template <class T>
inline T narrow(float x) {
  if constexpr (sizeof(T) == 4) return x;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits += 0x7fff + ((bits >> 16) & 1);  // to the nearest, ties to even
  return T(uint16_t(bits >> 16), T::from_bits());
}
template <>
inline float narrow<float>(float x) {
  return x;
}

// exp within 2 units in the last place from -87 to 88.3, and infinity above. The polynomial is that
// of Cephes.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;  // a NaN stays one
  x = x > 89.0f ? 89.0f : x;
  float n = __builtin_rintf(x * 1.44269504f);
  float r = x - n * 0.693359375f;
  r += n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  int32_t bits = (int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return y * power;
}
