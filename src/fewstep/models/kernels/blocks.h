// Blocks one after another: convolution, batch norm, max-pooling, activation; with two derivatives.
//
// Every block has as many filters. Vectors are rows, one a block: weights γ, then biases β, then the shifts that
// convolutions add and norms take away; of moments: means with the shift, then variances, then 1/√(σ² + ε), then means
// without. What lies between the blocks (`inner`), the convolutions' maps z and the corners lie one after another, the
// first block's first.
#pragma once

#include "patches.h"
#include "pool_norm.h"
#include "winograd.h"

namespace fewstep {

template <class T>
void convolve(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, bool turned, Sizes s) {
  if (s.in % W<T>)
    patchwise(pairs, x, w, bias, y, s);
  else if (s.out % W<T>)
    patchwise_turned(pairs, x, w, y, s);
  else
    winograd(pairs, x, w, bias, y, turned, s);
}

template <class T>
void correlate(Size pairs, const T *const *x, const T *const *a, T *dw, Sizes s) {
  if (s.in % W<T>)
    patchwise_gradient(pairs, x, a, dw, s);
  else
    winograd_gradient(pairs, x, a, dw, s);
}

struct Blocks {
  Size count;
  Sizes first;

  Size channels() const { return first.groups * first.out; }
  Sizes operator[](Size i) const {
    return {first.images, first.height >> i, first.width >> i, i ? first.out : first.in, first.out, first.groups};
  }
  Sizes turned(Size i) const {
    Sizes s = (*this)[i];
    return {s.images, s.height, s.width, s.out, s.in, s.groups};
  }
  Pooled pooled(Size i) const { return {first.images, first.height >> i, first.width >> i, channels()}; }
  // Numbers of the maps z of block i, and of those that block i − 1 gives
  Size map(Size i) const { return first.images * (first.height >> i) * (first.width >> i) * channels(); }
  // Where the maps z of block i begin, and what block i gives
  Size at(Size i, Size from = 0) const { return i ? at(i - 1, from) + map(i - 1 + from) : 0; }
  Size after(Size i) const { return at(i, 1); }
};

enum Kind { WEIGHT, BIAS, SHIFT };              // of vectors
enum Moment { SHIFTED_MEAN, VAR, RSTD, MEAN };  // of moments

// The rows of a block, by kind
template <class T>
struct Rows {
  T *vectors;
  Size block;
  const Blocks &b;
  INLINE T *operator[](int kind) const { return vectors ? vectors + (kind * b.count + block) * b.channels() : nullptr; }
};

// The first block of images with few channels goes strip by strip, with the maps of one strip at a time in the cache,
// as far as they need not stay.

// Where `corner` is null nothing is kept for a derivative, and z is room for the maps of one block, or none for the
// first of images with few channels. Where the moments are given, their first two kinds are there.
template <class T>
void blocks(const T *x, const T *vectors, const T *const *filters, T eps, T slope, bool given, T *inner, T *y,
            T *moments, T *z, uint8_t *corner, Blocks b) {
  for (Size i = 0; i < b.count; i++) {
    const Rows<const T> own{vectors, i, b};
    const Rows<T> m{moments, i, b};
    const Pooled s = b.pooled(i);
    T *maps = corner ? z + b.at(i) : z, *out = i + 1 < b.count ? inner + b.after(i) : y;
    for (Size c = 0; given && c < b.channels(); c++) m[MEAN][c] = m[SHIFTED_MEAN][c] - own[SHIFT][c];
    auto norm = [&](const auto &maps) __attribute__((always_inline)) {
      pool_norm<T>(maps, own[WEIGHT], own[BIAS], eps, slope, given, out, corner ? corner + b.after(i) : nullptr,
                   m[MEAN], m[VAR], m[RSTD], s);
    };
    if (b[i].in < W<T>) {
      const Patchwise<T> convolution(1, &x, filters + i, nullptr, b[i]);
      norm([&](Size n, Size j) {
        T *to = corner ? maps + n * s.image() + s.strip(j) : scratch<T, STRIP>(s.strip(1));
        convolution.rows(n * s.height + 2 * j, s.rows(j), to);
        return to;
      });
    } else {
      convolve<T>(1, &x, filters + i, nullptr, maps, false, b[i]);
      norm([&](Size n, Size j) { return maps + n * s.image() + s.strip(j); });
    }
    for (Size c = 0; !given && c < b.channels(); c++) m[SHIFTED_MEAN][c] = m[MEAN][c] + own[SHIFT][c];
    x = out;
  }
}

// a_inner: gradients of what lies between the blocks, beside those from the block after it; null for none.
// room: for the largest dz, without the first block's where images have few channels and dx is null
template <class T>
void blocks_first(const T *a, const T *a_inner, const T *x, const T *vectors, const T *inner, const T *moments,
                  const T *z, const uint8_t *corner, const T *const *filters, T slope, T *dx, T *d_vectors, T *d_inner,
                  T *const *d_filters, T *room, Blocks b) {
  std::fill(d_vectors + 2 * b.count * b.channels(), d_vectors + 3 * b.count * b.channels(), T(0));
  for (Size i = b.count - 1; i >= 0; i--) {
    const Rows<const T> own{vectors, i, b}, m{moments, i, b};
    const Rows<T> d{d_vectors, i, b};
    const Pooled s = b.pooled(i);
    const T *in = i ? inner + b.after(i - 1) : x, *maps = z + b.at(i), *dz = room;
    const uint8_t *corners = corner + b.after(i);
    pool_norm_sums(a, maps, own[WEIGHT], own[BIAS], corners, m[MEAN], m[RSTD], slope, d[WEIGHT], d[BIAS], s);
    auto norm = [&](const auto &place, const auto &use) __attribute__((always_inline)) {
      pool_norm_first<T>(a, maps, own[WEIGHT], own[BIAS], corners, m[MEAN], m[RSTD], d[WEIGHT], d[BIAS], slope, place,
                         use, s);
    };
    T *down = i ? d_inner + b.after(i - 1) : dx;
    if (!down && b[i].in < W<T>) {
      const PatchwiseGradient<T> gradient(b[i], s.parts());
      norm([&](Size, Size) { return scratch<T, STRIP>(s.strip(1)); },
           [&](Size part, Size n, Size j, const T *dz) {
             gradient.rows(n * s.height + 2 * j, s.rows(j), in, dz, part, j > s.first(part));
           });
      gradient.finish(d_filters[i]);
    } else {
      norm([&](Size n, Size j) { return room + n * s.image() + s.strip(j); }, [](Size, Size, Size, const T *) {});
      correlate<T>(1, &in, &dz, d_filters[i], b[i]);
      if (down) convolve<T>(1, &dz, filters + i, nullptr, down, true, b.turned(i));
    }
    const Size between = i && a_inner ? b.map(i) : 0;
#pragma omp parallel for if (between)
    for (Size k = 0; k < between; k++) down[k] += a_inner[b.after(i - 1) + k];
    a = down;
  }
}

template <class T>
bool zero(const T *row, Size count) {
  return !row || std::all_of(row, row + count, [](T value) { return value == 0; });
}

// Cotangents that are null are zero. d_inner and d_vectors: from `blocks_first`. room: for two maps like the largest
// dz; for one where u_x and g_x are null, since the first block's dz is then not asked for
template <class T>
void blocks_second(const T *u_x, const T *u_vectors, const T *const *u_filters, const T *a, const T *x,
                   const T *vectors, const T *inner, const T *moments, const T *z, const uint8_t *corner,
                   const T *const *filters, const T *d_vectors, const T *d_inner, T slope, T *g_a, T *g_a_inner, T *g_x,
                   T *g_vectors, T *g_inner, T *const *g_filters, T *room, Blocks b) {
  const T *u = u_x;
  std::fill(g_vectors + b.count * b.channels(), g_vectors + 3 * b.count * b.channels(), T(0));
  for (Size i = 0; i < b.count; i++) {
    const bool last = i + 1 == b.count;
    const Rows<const T> own{vectors, i, b}, m{moments, i, b}, d{d_vectors, i, b}, us{u_vectors, i, b};
    const Pooled s = b.pooled(i);
    const T *in = i ? inner + b.after(i - 1) : x, *maps = z + b.at(i), *of_out = last ? a : d_inner + b.after(i);
    const uint8_t *corners = corner + b.after(i);
    T *g_z = room, *dz = room + b.map(i), *g_out = last ? g_a : g_a_inner + b.after(i),
      *g_in = i ? g_inner + b.after(i - 1) : g_x;
    auto norm = [&](const auto &make, const auto &use) __attribute__((always_inline)) {
      pool_norm_second<T>(g_z, make, us[WEIGHT], us[BIAS], of_out, maps, own[WEIGHT], own[BIAS], corners, m[MEAN],
                          m[RSTD], d[WEIGHT], d[BIAS], slope, g_out, g_vectors + i * b.channels(), use, s);
    };
    const T *u_w = u_filters[i], *given[2] = {u, in}, *through[2] = {filters[i], u_w};
    if (!u && !u_w && zero(us[WEIGHT], b.channels()) &&
        zero(us[BIAS], b.channels())) {  // nobody asked for its gradient
      std::fill_n(g_out, b.map(i + 1), T(0));
      std::fill_n(g_vectors + i * b.channels(), b.channels(), T(0));
      std::fill_n(g_filters[i], 9 * b[i].in * b.channels(), T(0));
      if (g_in) std::fill_n(g_in, s.images * s.height * s.width * b[i].in * b[i].groups, T(0));
      continue;
    }
    if (!u && !g_in && b[i].in < W<T>) {
      const Patchwise<T> convolution(u_w != nullptr, given + 1, through + 1, nullptr, b[i]);
      const PatchwiseGradient<T> gradient(b[i], s.parts());
      norm(
          [&](Size n, Size j, T *u_z) {
            if (u_w)
              convolution.rows(n * s.height + 2 * j, s.rows(j), u_z);
            else
              std::fill(u_z, u_z + s.rows(j) * s.width * s.channels, T(0));
          },
          [&](Size part, Size n, Size j, const T *g_z) {
            gradient.rows(n * s.height + 2 * j, s.rows(j), in, g_z, part, j > s.first(part));
          });
      gradient.finish(g_filters[i]);
    } else {
      if (u || u_w)
        convolve<T>((u != nullptr) + (u_w != nullptr), given + !u, through + !u, nullptr, g_z, false, b[i]);
      else
        std::fill(g_z, g_z + b.map(i), T(0));
      norm([](Size, Size, T *) {}, [](Size, Size, Size, const T *) {});
      if (u || (u_w && g_in))  // cheaper to compute again than to keep
        pool_norm_first<T>(
            of_out, maps, own[WEIGHT], own[BIAS], corners, m[MEAN], m[RSTD], d[WEIGHT], d[BIAS], slope,
            [&](Size n, Size j) { return dz + n * s.image() + s.strip(j); }, [](Size, Size, Size, const T *) {}, s);
      const T *inputs[2] = {in, u}, *outputs[2] = {g_z, dz};
      if (g_in) convolve<T>(1 + (u_w != nullptr), outputs, through, nullptr, g_in, true, b.turned(i));
      correlate<T>(1 + (u != nullptr), inputs, outputs, g_filters[i], b[i]);
    }
    u = g_out;
  }
}

}  // namespace fewstep
