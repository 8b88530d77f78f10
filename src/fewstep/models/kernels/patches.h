// Convolution of images with few channels, its gradient and that of its filters: patches times filters.
#pragma once

#include "product.h"

namespace fewstep {

// Rows of an image with few channels, between margins of zeros: a patch is then three pieces, a line apart.
template <class T>
struct Lines {
  Size line, piece;  // numbers
  T *lines;

  // Those that the convolution reads for `count` rows from `row` on, rows counted through all images
  INLINE Lines(const Sizes &s, const T *x, Size row, Size count)
      : line((s.width + 2) * s.in), piece(3 * s.in), lines(scratch<T, TILES>((count + 2) * line)) {
    const Size pixel = s.groups * s.in;
    for (Size i = 0; i < count + 2; i++) {
      T *to = lines + i * line;
      const Size y = row % s.height + i - 1;
      if (y < 0 || y >= s.height) {
        std::fill(to, to + line, T(0));
        continue;
      }
      std::fill(to, to + s.in, T(0));
      std::fill(to + line - s.in, to + line, T(0));
      const T *from = x + (row + i - 1) * s.width * pixel;
      if (s.groups == 1)
        std::copy(from, from + s.width * pixel, to + s.in);
      else
        for (Size j = 0; j < s.width; j++) std::copy(from + j * pixel, from + j * pixel + s.in, to + (j + 1) * s.in);
    }
  }
};

// Σ_p w_p ∗ x_p + bias, some rows at a time
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

  // Of one image: `count` rows from `row` on, rows counted through all images
  INLINE void rows(Size row, Size count, T *y) const {
    const Size out = s.out, wide = s.groups * out;
    for (Size g = 0; g < s.groups; g++) {
      for (Size j = 0; bias && j < count * s.width; j++)
        std::copy(bias + g * out, bias + (g + 1) * out, y + j * wide + g * out);
      for (Size p = 0; p < pairs; p++) {
        const Lines<T> in(s, x[p] + g * s.in, row, count);
        for (Size i = 0; i < count; i++)
          product<T>(s.width, out, {in.lines + i * in.line, s.in, 1, in.piece, 3, in.line},
                     filters + (p * s.groups + g) * 9 * s.in * out, out, y + i * s.width * wide + g * out, wide,
                     bias || p > 0);
      }
    }
  }
};

template <class T>
INLINE void patchwise(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, Sizes s) {
  const Patchwise<T> maps(pairs, x, w, bias, s);
#pragma omp parallel for
  for (Size row = 0; row < s.images * s.height; row++) maps.rows(row, 1, y + row * s.width * s.groups * s.out);
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

  // Of `count` rows of one image from `row` on, whose gradients are `a`, to a part
  INLINE void rows(Size row, Size count, const T *x, const T *a, Size part, bool add) const {
    const Size out = s.out, wide = s.groups * out;
    for (Size g = 0; g < s.groups; g++) {
      const Lines<T> in(s, x + g * s.in, row, count);
      for (Size i = 0; i < 3; i++)
        product<T>(in.piece, out, {in.lines + i * in.line, 1, s.in, s.width, count, in.line}, a + g * out, wide,
                   sums + part * size() + (3 * g + i) * in.piece * out, out, add);
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
  const Size parts = std::min<Size>(s.images, 16), row = s.width * s.groups * s.out;
  const PatchwiseGradient<T> gradient(s, parts);
#pragma omp parallel for
  for (Size part = 0; part < parts; part++) {
    const Size begin = part * s.images / parts * s.height, end = (part + 1) * s.images / parts * s.height;
    for (Size i = begin; i < end; i++)
      for (Size p = 0; p < pairs; p++) gradient.rows(i, 1, x[p], a[p] + i * row, part, i > begin || p > 0);
  }
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
