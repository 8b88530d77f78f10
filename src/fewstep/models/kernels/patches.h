// Convolution of images with few channels, its gradient and that of its filters: patches times filters.
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

// Σ_p w_p ∗ x_p + bias, an image at a time
template <class T>
struct Patchwise {
  Size pairs;
  const T *const *x, *bias;
  Sizes s;
  T *filters;  // of each pair and group, transposed

  INLINE Patchwise(Size pairs, const T *const *x, const T *const *w, const T *bias, Sizes s)
      : pairs(pairs), x(x), bias(bias), s(s), filters(scratch<T, FILTERS>(pairs * s.groups * 9 * s.in * s.out)) {
    const Size depth = 9 * s.in;
    for (Size p = 0; p < pairs; p++)
      for (Size g = 0; g < s.groups; g++)
        transpose(w[p] + g * depth * s.out, s.out, depth, filters + (p * s.groups + g) * depth * s.out);
  }

  INLINE void row(Size row, T *y) const {
    const Size in = s.in, out = s.out, depth = 9 * in;
    T *block = scratch<T, TILES>(depth * s.width + 3 * (s.width + 2) * in);
    for (Size g = 0; g < s.groups; g++, y += out) {
      for (Size j = 0; bias && j < s.width; j++)
        std::copy(bias + g * out, bias + (g + 1) * out, y + j * s.groups * out);
      for (Size p = 0; p < pairs; p++) {
        patches(s, x[p] + g * in, in, s.groups * in, row, block + depth * s.width, block);
        product(s.width, out, depth, block, depth, 1, filters + (p * s.groups + g) * depth * out, out, y,
                s.groups * out, bias || p > 0);
      }
    }
  }
  INLINE void image(Size n, T *y) const {
    for (Size i = 0; i < s.height; i++) row(n * s.height + i, y + i * s.width * s.groups * s.out);
  }
};

template <class T>
INLINE void patchwise(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, Sizes s) {
  const Patchwise<T> maps(pairs, x, w, bias, s);
#pragma omp parallel for
  for (Size row = 0; row < s.images * s.height; row++) maps.row(row, y + row * s.width * s.groups * s.out);
}

// dw = Σ a ⋆ x over images and pairs, in `parts` that threads share out
template <class T>
struct PatchwiseGradient {
  Sizes s;
  Size parts;
  T *sums;  // of each part and group, transposed

  INLINE PatchwiseGradient(Sizes s, Size parts)
      : s(s), parts(parts), sums(scratch<T, GRADIENT>((parts + 1) * size())) {}
  Size size() const { return s.groups * 9 * s.in * s.out; }

  // Of image n, whose gradients are `a`, to a part
  INLINE void image(Size n, const T *x, const T *a, Size part, bool add) const {
    const Size in = s.in, out = s.out, depth = 9 * in, wide = s.groups * out;
    T *block = scratch<T, TILES>(depth * s.width + 3 * (s.width + 2) * in);
    for (Size g = 0; g < s.groups; g++)
      for (Size i = 0; i < s.height; i++) {
        patches(s, x + g * in, in, s.groups * in, n * s.height + i, block + depth * s.width, block);
        product(depth, out, s.width, block, 1, depth, a + i * s.width * wide + g * out, wide,
                sums + part * size() + g * depth * out, out, add || i > 0);
      }
  }
  // In the order of the parts, whatever the number of threads
  INLINE void finish(T *dw) const {
    T *all = sums + parts * size();
    total(sums, parts, size(), all);
    for (Size g = 0; g < s.groups; g++)
      transpose(all + g * 9 * s.in * s.out, 9 * s.in, s.out, dw + g * 9 * s.in * s.out);
  }
};

template <class T>
INLINE void patchwise_gradient(Size pairs, const T *const *x, const T *const *a, T *dw, Sizes s) {
  const Size parts = std::min<Size>(s.images, 16), image = s.height * s.width * s.groups * s.out;
  const PatchwiseGradient<T> gradient(s, parts);
#pragma omp parallel for
  for (Size part = 0; part < parts; part++)
    for (Size begin = part * s.images / parts, n = begin; n < (part + 1) * s.images / parts; n++)
      for (Size p = 0; p < pairs; p++) gradient.image(n, x[p], a[p] + n * image, part, n > begin || p > 0);
  gradient.finish(dw);
}

// The gradient of images with few channels, seldom asked for: dx = Σ_p w_pᵀ a_p, where z.out are the channels of x
template <class T>
INLINE void patchwise_turned(Size pairs, const T *const *a, const T *const *w, T *dx, Sizes z) {
  const Size in = z.in, out = z.out, depth = 9 * out;
  T *filters = scratch<T, FILTERS>(depth * in);
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
