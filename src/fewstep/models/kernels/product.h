// Products of matrices small enough for the caches.
#pragma once

#include "vectors.h"

namespace fewstep {

// MR rows and NV vectors of columns: c (+)= Σ_l a[i·row + l·deep] b[l·ldb + …]
template <class T, int MR, int NV>
INLINE void square(Size depth, const T *a, Size row, Size deep, const T *b, Size ldb, T *c, Size ldc, bool add) {
  Vec<T> sum[MR][NV];
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++) sum[i][j] = Vec<T>{};
  for (Size l = 0; l < depth; l++) {
    Vec<T> right[NV];
    for (int j = 0; j < NV; j++) right[j] = load(b + l * ldb + j * W<T>);
#pragma GCC unroll 6
    for (int i = 0; i < MR; i++) {
      T left = a[i * row + l * deep];
      for (int j = 0; j < NV; j++) sum[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NV; j++)
      store(c + i * ldc + j * W<T>, add ? load(c + i * ldc + j * W<T>) + sum[i][j] : sum[i][j]);
}

template <class T, int NV>
INLINE void column(Size rows, Size depth, const T *a, Size row, Size deep, const T *b, Size ldb, T *c, Size ldc,
                   bool add) {
  Size i = 0;
  for (; i + 6 <= rows; i += 6) square<T, 6, NV>(depth, a + i * row, row, deep, b, ldb, c + i * ldc, ldc, add);
  a += i * row, c += i * ldc;
  switch (rows - i) {
    case 5:
      return square<T, 5, NV>(depth, a, row, deep, b, ldb, c, ldc, add);
    case 4:
      return square<T, 4, NV>(depth, a, row, deep, b, ldb, c, ldc, add);
    case 3:
      return square<T, 3, NV>(depth, a, row, deep, b, ldb, c, ldc, add);
    case 2:
      return square<T, 2, NV>(depth, a, row, deep, b, ldb, c, ldc, add);
    case 1:
      return square<T, 1, NV>(depth, a, row, deep, b, ldb, c, ldc, add);
  }
}

// c (rows × columns) (+)= a b, where a has any strides
template <class T>
INLINE void product(Size rows, Size columns, Size depth, const T *a, Size row, Size deep, const T *b, Size ldb, T *c,
                    Size ldc, bool add) {
  Size j = 0;
  for (; j + 2 * W<T> <= columns; j += 2 * W<T>) column<T, 2>(rows, depth, a, row, deep, b + j, ldb, c + j, ldc, add);
  if (j < columns) column<T, 1>(rows, depth, a, row, deep, b + j, ldb, c + j, ldc, add);
}

template <class T>
INLINE void transpose(const T *a, Size rows, Size columns, T *out) {
  for (Size i = 0; i < rows; i++)
    for (Size j = 0; j < columns; j++) out[j * rows + i] = a[i * columns + j];
}

}  // namespace fewstep
