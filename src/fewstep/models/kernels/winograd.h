// Winograd's convolution F(2×2, 3×3), its gradients and the gradient of its filters.
//
//     Y = Aᵀ [ (G w Gᵀ) ⊙ (Bᵀ x B) ] A: four pixels for 16 products a channel instead of 36
//
// Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016.

#pragma once

#include "product.h"

namespace fewstep {

constexpr Size CHUNK = 24;  // tiles at a time, at most: what they need stays in the second-level cache

constexpr Size MANY = 48;  // for the gradient of filters, which goes through all products once for every so many tiles

// As many tiles at a time as give every thread some, by the six rows that a product takes at once
inline Size chunk(Size tiles) {
  const Size threads = omp_get_max_threads();
  return std::min(CHUNK, (tiles + 6 * threads - 1) / (6 * threads) * 6);
}

// Sixteen matrices begin a cache line further apart than they are long: powers of two would share few lines.
template <class T>
constexpr Size apart(Size size) {
  return size + 64 / sizeof(T);
}

struct Tile {
  const Sizes &s;
  Size image, y, x;
  INLINE Tile(const Sizes &s, Size i) : s(s), image(i / (s.down() * s.right())) {
    Size rest = i % (s.down() * s.right());
    y = rest / s.right() * 2, x = rest % s.right() * 2;
  }
  INLINE bool has(Size i, Size j) const { return y + i >= 0 && y + i < s.height && x + j >= 0 && x + j < s.width; }
  INLINE Size at(Size i, Size j) const { return (image * s.height + y + i) * s.width + x + j; }
};

// Bᵀ x B of `count` tiles from the first on, (16, count, channels), or some of its four rows; a pixel is so many
// numbers from the next
template <class T, int BEGIN = 0, int END = 4>
INLINE void maps_in(const Sizes &s, const T *x, Size channels, Size pixel, Size first, Size count, const T *zeros,
                    T *out) {
  Size step = apart<T>(count * channels);
  for (Size p = 0; p < count; p++) {
    Tile t(s, first + p);
    const T *from[4][4];
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 4; j++) from[i][j] = t.has(i - 1, j - 1) ? x + t.at(i - 1, j - 1) * pixel : zeros;
    for (Size c = 0; c < channels; c += W<T>) {
      Vec<T> e[4][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        Vec<T> d0 = load(from[0][j] + c), d1 = load(from[1][j] + c), d2 = load(from[2][j] + c),
               d3 = load(from[3][j] + c);
        e[0][j] = d0 - d2, e[1][j] = d1 + d2, e[2][j] = d2 - d1, e[3][j] = d1 - d3;
      }
      T *to = out + BEGIN * 4 * step + p * channels + c;
#pragma GCC unroll 4
      for (int i = BEGIN; i < END; i++, to += 4 * step) {
        store(to, e[i][0] - e[i][2]);
        store(to + step, e[i][1] + e[i][2]);
        store(to + 2 * step, e[i][2] - e[i][1]);
        store(to + 3 * step, e[i][1] - e[i][3]);
      }
    }
  }
}

// A a Aᵀ of `count` tiles, (16, count, channels), or some of its four rows: the transpose of `maps_out`
template <class T, int BEGIN, int END>
INLINE void gradients_in(const Sizes &s, const T *a, Size channels, Size pixel, Size first, Size count, const T *zeros,
                         T *out) {
  Size step = apart<T>(count * channels);
  for (Size p = 0; p < count; p++) {
    Tile t(s, first + p);
    const T *from[2][2];
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 2; j++) from[i][j] = t.has(i, j) ? a + t.at(i, j) * pixel : zeros;
    for (Size c = 0; c < channels; c += W<T>) {
      Vec<T> e[4][2];
      for (int j = 0; j < 2; j++) {
        Vec<T> d0 = load(from[0][j] + c), d1 = load(from[1][j] + c);
        e[0][j] = d0, e[1][j] = d0 + d1, e[2][j] = d0 - d1, e[3][j] = -d1;
      }
      T *to = out + BEGIN * 4 * step + p * channels + c;
      for (int i = BEGIN; i < END; i++, to += 4 * step) {
        store(to, e[i][0]);
        store(to + step, e[i][0] + e[i][1]);
        store(to + 2 * step, e[i][0] - e[i][1]);
        store(to + 3 * step, -e[i][1]);
      }
    }
  }
}

// Aᵀ m A of `count` tiles, with the bias
template <class T>
INLINE void maps_out(const Sizes &s, const T *m, Size channels, const T *bias, T *y, Size pixel, Size first,
                     Size count) {
  for (Size p = 0; p < count; p++) {
    Tile t(s, first + p);
    bool right = t.has(0, 1), down = t.has(1, 0);
    for (Size c = 0; c < channels; c += W<T>) {
      const T *from = m + p * channels + c;
      Size step = apart<T>(count * channels);
      Vec<T> e[2][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++, from += step) {
        Vec<T> m0 = load(from), m1 = load(from + 4 * step), m2 = load(from + 8 * step), m3 = load(from + 12 * step);
        e[0][j] = m0 + m1 + m2, e[1][j] = m1 - m2 - m3;
      }
      Vec<T> b = bias ? load(bias + c) : Vec<T>{};
      store(y + t.at(0, 0) * pixel + c, e[0][0] + e[0][1] + e[0][2] + b);
      if (right) store(y + t.at(0, 1) * pixel + c, e[0][1] - e[0][2] - e[0][3] + b);
      if (down) store(y + t.at(1, 0) * pixel + c, e[1][0] + e[1][1] + e[1][2] + b);
      if (down && right) store(y + t.at(1, 1) * pixel + c, e[1][1] - e[1][2] - e[1][3] + b);
    }
  }
}

// G w Gᵀ of W<T> neighbouring channels of one filter, at (3, 3, channels)
template <class T>
INLINE void filter_in(const T *w, Size channels, bool turned, Vec<T> (&u)[16]) {
  Vec<T> g[9], e[4][3];
  for (int i = 0; i < 9; i++) g[i] = load(w + (turned ? 8 - i : i) * channels);
  for (int j = 0; j < 3; j++) {
    Vec<T> ends = (g[j] + g[6 + j]) / 2, middle = g[3 + j] / 2;
    e[0][j] = g[j], e[1][j] = ends + middle, e[2][j] = ends - middle, e[3][j] = g[6 + j];
  }
  for (int i = 0; i < 4; i++) {
    Vec<T> ends = (e[i][0] + e[i][2]) / 2, middle = e[i][1] / 2;
    u[4 * i] = e[i][0], u[4 * i + 1] = ends + middle, u[4 * i + 2] = ends - middle, u[4 * i + 3] = e[i][2];
  }
}

// Filters (filters, 3, 3, channels) -> (16, channels, filters), or turned: (16, filters, channels)
template <class T>
INLINE void filters_in(const T *w, Size filters, Size channels, bool turned, T *out) {
  Size step = apart<T>(filters * channels);
  // Neighbours in memory one after the other, so that a cache line is written at once
  const Size rows = (turned ? filters : channels) / W<T>, columns = (turned ? channels : filters) / W<T>;
  for (Size row = 0; row < rows; row++)
    for (Size column = 0; column < columns; column++) {
      const Size k = (turned ? row : column) * W<T>, c = (turned ? column : row) * W<T>;
      Vec<T> u[16], block[16][W<T>];  // W<T> channels of W<T> filters
      for (Size l = 0; l < W<T>; l++) {
        filter_in(w + (k + l) * 9 * channels + c, channels, turned, u);
        for (int i = 0; i < 16; i++)
          if (turned)
            store(out + i * step + (k + l) * channels + c, u[i]);
          else
            block[i][l] = u[i];
      }
      for (int i = 0; i < 16 && !turned; i++) {
        transpose<T>(block[i]);
        for (Size d = 0; d < W<T>; d++) store(out + i * step + (c + d) * filters + k, block[i][d]);
      }
    }
}

// (16, channels, filters) -> Gᵀ u G, filters (filters, 3, 3, channels)
template <class T>
INLINE void filters_out(const T *u, Size filters, Size channels, T *w) {
  Size step = apart<T>(filters * channels);
#pragma omp parallel for
  for (Size k = 0; k < filters; k += W<T>)
    for (Size c = 0; c < channels; c += W<T>) {
      Vec<T> block[9][W<T>];
      for (Size d = 0; d < W<T>; d++) {
        const T *from = u + (c + d) * filters + k;
        Vec<T> e[3][4];
        for (int j = 0; j < 4; j++, from += step) {
          Vec<T> u0 = load(from), u1 = load(from + 4 * step), u2 = load(from + 8 * step), u3 = load(from + 12 * step);
          e[0][j] = u0 + (u1 + u2) / 2, e[1][j] = (u1 - u2) / 2, e[2][j] = (u1 + u2) / 2 + u3;
        }
        for (int i = 0; i < 3; i++) {
          block[3 * i][d] = e[i][0] + (e[i][1] + e[i][2]) / 2;
          block[3 * i + 1][d] = (e[i][1] - e[i][2]) / 2;
          block[3 * i + 2][d] = (e[i][1] + e[i][2]) / 2 + e[i][3];
        }
      }
      for (int i = 0; i < 9; i++) {
        transpose<T>(block[i]);
        for (Size l = 0; l < W<T>; l++) store(w + ((k + l) * 9 + i) * channels + c, block[i][l]);
      }
    }
}

// y = Σ_p w_p ∗ x_p + bias over `pairs` of maps and filters; turned: the gradient of the maps
template <class T>
INLINE void winograd(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, bool turned, Sizes z) {
  const Size in = z.in, out = z.out, maps_size = apart<T>(CHUNK * in), sums_size = apart<T>(CHUNK * out);
  const Size filters_size = apart<T>(in * out), step = chunk(z.tiles());
#pragma omp parallel
  for (Size g = 0; g < z.groups; g++) {
    // Every thread transforms all filters: that takes less time than to fetch what others have
    T *filters = scratch<T, FILTERS>(16 * pairs * filters_size);
    for (Size p = 0; p < pairs; p++)
      filters_in(w[p] + g * 9 * in * out, turned ? in : out, turned ? out : in, turned,
                 filters + p * 16 * filters_size);
#pragma omp for schedule(dynamic) nowait
    for (Size first = 0; first < z.tiles(); first += step) {
      Size count = std::min(step, z.tiles() - first);
      T *maps = scratch<T, TILES>(16 * (maps_size + sums_size) + in), *sums = maps + 16 * maps_size,
        *zeros = sums + 16 * sums_size;
      std::fill(zeros, zeros + in, T(0));
      for (Size p = 0; p < pairs; p++) {
        maps_in(z, x[p] + g * in, in, z.groups * in, first, count, zeros, maps);
        for (Size i = 0; i < 16; i++)
          product<T>(count, out, {maps + i * apart<T>(count * in), in, 1, in}, filters + (p * 16 + i) * filters_size,
                     out, sums + i * apart<T>(count * out), out, p > 0);
      }
      maps_out(z, sums, out, bias ? bias + g * out : nullptr, y + g * out, z.groups * out, first, count);
    }
  }
}

// Σ_p a_p ⋆ x_p as sixteen products, or those of some rows, for filters from `begin` on
template <class T, int BEGIN, int END>
void filter_products(Size pairs, const T *const *x, const T *const *a, T *products, Size g, Size begin, Size own,
                     Sizes z) {
  const Size in = z.in, out = z.out, maps_size = apart<T>(MANY * in), gradients_size = apart<T>(MANY * own);
  T *maps = scratch<T, TILES>(16 * (maps_size + gradients_size) + in + own), *gradients = maps + 16 * maps_size,
    *zeros = gradients + 16 * gradients_size;
  std::fill(zeros, zeros + in + own, T(0));
  for (Size p = 0; p < pairs; p++)
    for (Size first = 0; first < z.tiles(); first += MANY) {
      Size count = std::min(MANY, z.tiles() - first);
      maps_in<T, BEGIN, END>(z, x[p] + g * in, in, z.groups * in, first, count, zeros, maps);
      gradients_in<T, BEGIN, END>(z, a[p] + g * out + begin, own, z.groups * out, first, count, zeros, gradients);
      for (Size i = 4 * BEGIN; i < 4 * END; i++)
        product<T>(in, own, {maps + i * apart<T>(count * in), 1, in, count}, gradients + i * apart<T>(count * own), own,
                   products + i * apart<T>(in * out) + begin, out, p + first > 0);
    }
}

// dw = Σ_p a_p ⋆ x_p. Threads share out the products, then the filters, so that a sum is the same however many they
// are.
template <class T>
INLINE void winograd_gradient(Size pairs, const T *const *x, const T *const *a, T *dw, Sizes z) {
  const Size in = z.in, out = z.out, threads = omp_get_max_threads();
  const Size rows = threads < 2 ? 1 : threads < 4 ? 2 : 4, parts = std::min((threads + 3) / 4, out / W<T>);
  // All rows, then halves, then one at a time
  static constexpr decltype(&filter_products<T, 0, 4>) of_rows[] = {
      filter_products<T, 0, 4>, filter_products<T, 0, 2>, filter_products<T, 2, 4>, filter_products<T, 0, 1>,
      filter_products<T, 1, 2>, filter_products<T, 2, 3>, filter_products<T, 3, 4>};
  T *products = scratch<T, FILTERS>(16 * apart<T>(in * out));
  for (Size g = 0; g < z.groups; g++) {
#pragma omp parallel for
    for (Size t = 0; t < rows * parts; t++) {
      const Size begin = share<T>(out, t / rows, parts), own = share<T>(out, t / rows + 1, parts) - begin;
      of_rows[rows - 1 + t % rows](pairs, x, a, products, g, begin, own, z);
    }
    filters_out(products, out, in, dw + g * 9 * in * out);
  }
}

}  // namespace fewstep
