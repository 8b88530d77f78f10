// Convolution of images with few channels, and the gradient of its filters: patches times filters.
#pragma once

#include "product.h"

namespace fewstep {

// The patches of a row of pixels, (width, 9 · channels), rows counted through all images.
// `lines` is room for three rows with a margin.
template <class T>
INLINE void patches(const Sizes &s, const T *x, Size channels, Size pixel, Size row, T *lines, T *out) {
  Size line = (s.width + 2) * channels;
  for (Size i = 0; i < 3; i++) {
    T *to = lines + i * line;
    Size y = row % s.height + i - 1;
    std::fill(to, to + line, T(0));
    if (y < 0 || y >= s.height) continue;
    const T *from = x + (row + i - 1) * s.width * pixel;
    for (Size j = 0; j < s.width; j++)
      for (Size c = 0; c < channels; c++) to[(j + 1) * channels + c] = from[j * pixel + c];
  }
  auto gather = [&](Size around) __attribute__((always_inline)) {
    for (Size j = 0; j < s.width; j++)
      for (Size i = 0; i < 3; i++, out += around)
        for (Size c = 0; c < around; c++) out[c] = lines[i * line + j * channels + c];
  };
  if (channels == 1)
    gather(3);  // a number known to the compiler
  else if (channels == 3)
    gather(9);
  else
    gather(3 * channels);
}

template <class T>
INLINE void transpose(const T *a, Size rows, Size columns, T *out) {
  for (Size i = 0; i < rows; i++)
    for (Size j = 0; j < columns; j++) out[j * rows + i] = a[i * columns + j];
}

template <class T>
INLINE void patchwise(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, Sizes z) {
  const Size in = z.in, out = z.out, depth = 9 * in, wide = z.groups * out, width = z.width;
  T *filters = scratch<T, SHARED>(depth * out);
  for (Size g = 0; g < z.groups; g++)
    for (Size p = 0; p < pairs; p++) {
      transpose(w[p] + g * depth * out, out, depth, filters);
#pragma omp parallel for
      for (Size row = 0; row < z.images * z.height; row++) {
        T *block = scratch<T, OWN>(depth * width + 3 * (width + 2) * in), *to = y + row * width * wide + g * out;
        patches(z, x[p] + g * in, in, z.groups * in, row, block + depth * width, block);
        for (Size j = 0; p == 0 && bias && j < width; j++)
          std::copy(bias + g * out, bias + (g + 1) * out, to + j * wide);
        product(width, out, depth, block, depth, 1, filters, out, to, wide, bias || p > 0);
      }
    }
}

// Threads share out the filters, so that a sum is the same however many they are.
template <class T>
INLINE void patchwise_gradient(Size pairs, const T *const *x, const T *const *a, T *dw, Sizes z) {
  const Size in = z.in, out = z.out, depth = 9 * in, wide = z.groups * out, width = z.width;
  const Size threads = std::min<Size>(omp_get_max_threads(), out / W<T>);
  T *filters = scratch<T, SHARED>(depth * out);
  for (Size g = 0; g < z.groups; g++) {
#pragma omp parallel for num_threads(threads)
    for (Size t = 0; t < threads; t++) {
      const Size begin = share<T>(out, t, threads), own = share<T>(out, t + 1, threads) - begin;
      T *block = scratch<T, OWN>(depth * width + 3 * (width + 2) * in);
      for (Size p = 0; p < pairs; p++)
        for (Size row = 0; row < z.images * z.height; row++) {
          patches(z, x[p] + g * in, in, z.groups * in, row, block + depth * width, block);
          product(depth, own, width, block, 1, depth, a[p] + row * width * wide + g * out + begin, wide,
                  filters + begin, out, p + row > 0);
        }
    }
    transpose(filters, depth, out, dw + g * depth * out);
  }
}

// The gradient of images with few channels, seldom asked for: dx = Σ_p w_pᵀ a_p, where z.out are the channels of x
template <class T>
INLINE void patchwise_turned(Size pairs, const T *const *a, const T *const *w, T *dx, Sizes z) {
  const Size in = z.in, out = z.out, depth = 9 * out;
  T *filters = scratch<T, SHARED>(depth * in);
  for (Size g = 0; g < z.groups; g++)
    for (Size p = 0; p < pairs; p++) {
      transpose(w[p] + g * depth * in, in, depth, filters);
#pragma omp parallel for
      for (Size pixel = 0; pixel < z.images * z.height * z.width; pixel++) {
        Size y = pixel / z.width % z.height, x = pixel % z.width;
        T *to = dx + pixel * z.groups * out + g * out;
        if (p == 0) std::fill(to, to + out, T(0));
        for (Size i = 0; i < 9; i++) {
          Size down = 1 - i / 3, right = 1 - i % 3;
          if (y + down < 0 || y + down >= z.height || x + right < 0 || x + right >= z.width) continue;
          const T *from = a[p] + ((pixel + down * z.width + right) * z.groups + g) * in;
          for (Size c = 0; c < out; c++) {
            Vec<T> sum{};
            for (Size k = 0; k < in; k += W<T>) sum += load(from + k) * load(filters + (i * out + c) * in + k);
            for (Size k = 0; k < W<T>; k++) to[c] += sum[k];
          }
        }
      }
    }
}

}  // namespace fewstep
