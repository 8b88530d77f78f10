// Products of matrices small enough for the caches.
#pragma once

#include "vectors.h"

namespace fewstep {

// The left side of a product, with any strides: row i has a[i·row + l·deep] for l < depth, then the same from `far` on,
// and so on, `times` times.
template <class T>
struct Left {
  const T *a;
  Size row, deep, depth, times = 1, far = 0;
  INLINE Left from(Size i) const { return {a + i * row, row, deep, depth, times, far}; }
};

// MR rows and NV vectors of columns: c (+)= a b
template <class T, int MR, int NV>
INLINE void square(Left<T> a, const T *b, Size ldb, T *c, Size ldc, bool add) {
  Vec<T> sum[MR][NV];
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++) sum[i][j] = Vec<T>{};
  for (Size t = 0; t < a.times; t++)
    for (Size l = 0; l < a.depth; l++, b += ldb) {
      Vec<T> right[NV];
      for (int j = 0; j < NV; j++) right[j] = load(b + j * W<T>);
#pragma GCC unroll 6
      for (int i = 0; i < MR; i++) {
        T left = a.a[i * a.row + l * a.deep + t * a.far];
        for (int j = 0; j < NV; j++) sum[i][j] += left * right[j];
      }
    }
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++)
      store(c + i * ldc + j * W<T>, add ? load(c + i * ldc + j * W<T>) + sum[i][j] : sum[i][j]);
}

template <class T, int NV>
INLINE void column(Size rows, Left<T> a, const T *b, Size ldb, T *c, Size ldc, bool add) {
  Size i = 0;
  for (; i + 6 <= rows; i += 6) square<T, 6, NV>(a.from(i), b, ldb, c + i * ldc, ldc, add);
  a = a.from(i), c += i * ldc;
  switch (rows - i) {
    case 5:
      return square<T, 5, NV>(a, b, ldb, c, ldc, add);
    case 4:
      return square<T, 4, NV>(a, b, ldb, c, ldc, add);
    case 3:
      return square<T, 3, NV>(a, b, ldb, c, ldc, add);
    case 2:
      return square<T, 2, NV>(a, b, ldb, c, ldc, add);
    case 1:
      return square<T, 1, NV>(a, b, ldb, c, ldc, add);
  }
}

// c (rows × columns) (+)= a b
template <class T>
INLINE void product(Size rows, Size columns, Left<T> a, const T *b, Size ldb, T *c, Size ldc, bool add) {
  Size j = 0;
  for (; j + 2 * W<T> <= columns; j += 2 * W<T>) column<T, 2>(rows, a, b + j, ldb, c + j, ldc, add);
  if (j < columns) column<T, 1>(rows, a, b + j, ldb, c + j, ldc, add);
}

template <class T>
INLINE void transpose(const T *a, Size rows, Size columns, T *out) {
  for (Size i = 0; i < rows; i++)
    for (Size j = 0; j < columns; j++) out[j * rows + i] = a[i * columns + j];
}

}  // namespace fewstep
