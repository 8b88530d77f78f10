// What a Conv4 spends its time on, for maps with the channels last in memory: 3×3 convolutions and batch norm with
// max-pooling. Everything is a template of the number type and of the width of a vector register; the loops run over
// vectors of channels, so the number of channels is a multiple of that width.
//
// Convolution is Winograd's F(2×2, 3×3): four pixels for 16 products a channel instead of 36.
//     Y = Aᵀ [ (G w Gᵀ) ⊙ (Bᵀ x B) ] A          Lavin and Gray, Fast algorithms for convolutional neural networks, 2016

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#define INLINE inline __attribute__((always_inline))

namespace {

using Size = int64_t;

template <class T, int BYTES> struct Code {
  typedef T Vec __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
  static constexpr Size W = BYTES / sizeof(T);  // numbers in a vector

  static INLINE Vec load(const T *p) { return *(const Vec *)p; }
  static INLINE void store(T *p, Vec v) { *(Vec *)p = v; }

  // Memory of this thread that outlives the call.
  static T *scratch(Size count) {
    static thread_local struct Block {
      T *data = nullptr;
      Size size = 0;
      ~Block() { std::free(data); }
    } block;
    if (count > block.size) {
      std::free(block.data);
      block.data = static_cast<T *>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
      block.size = count;
    }
    return block.data;
  }

  // --- matrix product ------------------------------------------------------------------------------------------------

  // MR rows and NV vectors of columns: c (+)= Σ_l a[i·row + l·deep] b[l·ldb + …]
  template <int MR, int NV>
  static INLINE void corner(Size depth, const T *a, Size row, Size deep, const T *b, Size ldb, T *c, Size ldc, bool add) {
    Vec sum[MR][NV];
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < NV; j++) sum[i][j] = Vec{};
    for (Size l = 0; l < depth; l++) {
      Vec right[NV];
      for (int j = 0; j < NV; j++) right[j] = load(b + l * ldb + j * W);
#pragma GCC unroll 6
      for (int i = 0; i < MR; i++) {
        T left = a[i * row + l * deep];
        for (int j = 0; j < NV; j++) sum[i][j] += left * right[j];
      }
    }
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < NV; j++) store(c + i * ldc + j * W, add ? load(c + i * ldc + j * W) + sum[i][j] : sum[i][j]);
  }

  template <int NV>
  static INLINE void column(Size rows, Size depth, const T *a, Size row, Size deep, const T *b, Size ldb, T *c, Size ldc, bool add) {
    Size i = 0;
    for (; i + 6 <= rows; i += 6) corner<6, NV>(depth, a + i * row, row, deep, b, ldb, c + i * ldc, ldc, add);
    a += i * row, c += i * ldc;
    switch (rows - i) {
      case 5: return corner<5, NV>(depth, a, row, deep, b, ldb, c, ldc, add);
      case 4: return corner<4, NV>(depth, a, row, deep, b, ldb, c, ldc, add);
      case 3: return corner<3, NV>(depth, a, row, deep, b, ldb, c, ldc, add);
      case 2: return corner<2, NV>(depth, a, row, deep, b, ldb, c, ldc, add);
      case 1: return corner<1, NV>(depth, a, row, deep, b, ldb, c, ldc, add);
    }
  }

  // c (rows × columns) (+)= a b, where a has any strides
  static INLINE void product(Size rows, Size columns, Size depth, const T *a, Size row, Size deep, const T *b, Size ldb, T *c, Size ldc, bool add) {
    Size j = 0;
    for (; j + 2 * W <= columns; j += 2 * W) column<2>(rows, depth, a, row, deep, b + j, ldb, c + j, ldc, add);
    if (j < columns) column<1>(rows, depth, a, row, deep, b + j, ldb, c + j, ldc, add);
  }

  // --- Winograd's transforms -----------------------------------------------------------------------------------------

  static constexpr Size TILES = 24;  // at a time: what they need stays in the second-level cache

  // Sixteen matrices begin a cache line further apart than they are long: powers of two would share few lines.
  static constexpr Size apart(Size size) { return size + 64 / sizeof(T); }

  struct Shape {
    Size images, height, width;
    Size down() const { return (height + 1) / 2; }
    Size right() const { return (width + 1) / 2; }
    Size tiles() const { return images * down() * right(); }
  };

  struct Tile {
    const Shape &s;
    Size image, y, x;
    INLINE Tile(const Shape &s, Size i) : s(s), image(i / (s.down() * s.right())) {
      Size rest = i % (s.down() * s.right());
      y = rest / s.right() * 2, x = rest % s.right() * 2;
    }
    INLINE bool has(Size i, Size j) const { return y + i >= 0 && y + i < s.height && x + j >= 0 && x + j < s.width; }
    INLINE Size at(Size i, Size j) const { return (image * s.height + y + i) * s.width + x + j; }
  };

  // Bᵀ x B of `count` tiles, (16, count, channels)
  static INLINE void maps_in(const Shape &s, const T *x, Size channels, Size pixel, Size first, Size count, const T *zeros, T *out) {
    Size step = apart(count * channels);
    for (Size p = 0; p < count; p++) {
      Tile t(s, first + p);
      const T *from[4][4];
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) from[i][j] = t.has(i - 1, j - 1) ? x + t.at(i - 1, j - 1) * pixel : zeros;
      for (Size c = 0; c < channels; c += W) {
        Vec e[4][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
          Vec d0 = load(from[0][j] + c), d1 = load(from[1][j] + c), d2 = load(from[2][j] + c), d3 = load(from[3][j] + c);
          e[0][j] = d0 - d2, e[1][j] = d1 + d2, e[2][j] = d2 - d1, e[3][j] = d1 - d3;
        }
        T *to = out + p * channels + c;
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++, to += 4 * step) {
          store(to, e[i][0] - e[i][2]);
          store(to + step, e[i][1] + e[i][2]);
          store(to + 2 * step, e[i][2] - e[i][1]);
          store(to + 3 * step, e[i][1] - e[i][3]);
        }
      }
    }
  }

  // A a Aᵀ of `count` tiles, (16, count, channels): the transpose of `maps_out`
  static INLINE void gradients_in(const Shape &s, const T *a, Size channels, Size pixel, Size first, Size count, const T *zeros, T *out) {
    Size step = apart(count * channels);
    for (Size p = 0; p < count; p++) {
      Tile t(s, first + p);
      const T *from[2][2];
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) from[i][j] = t.has(i, j) ? a + t.at(i, j) * pixel : zeros;
      for (Size c = 0; c < channels; c += W) {
        Vec e[4][2];
        for (int j = 0; j < 2; j++) {
          Vec d0 = load(from[0][j] + c), d1 = load(from[1][j] + c);
          e[0][j] = d0, e[1][j] = d0 + d1, e[2][j] = d0 - d1, e[3][j] = -d1;
        }
        T *to = out + p * channels + c;
        for (int i = 0; i < 4; i++, to += 4 * step) {
          store(to, e[i][0]);
          store(to + step, e[i][0] + e[i][1]);
          store(to + 2 * step, e[i][0] - e[i][1]);
          store(to + 3 * step, -e[i][1]);
        }
      }
    }
  }

  // Aᵀ m A of `count` tiles, with the bias
  static INLINE void maps_out(const Shape &s, const T *m, Size channels, const T *bias, T *y, Size pixel, Size first, Size count) {
    for (Size p = 0; p < count; p++) {
      Tile t(s, first + p);
      bool right = t.has(0, 1), down = t.has(1, 0);
      for (Size c = 0; c < channels; c += W) {
        const T *from = m + p * channels + c;
        Size step = apart(count * channels);
        Vec e[2][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++, from += step) {
          Vec m0 = load(from), m1 = load(from + 4 * step), m2 = load(from + 8 * step), m3 = load(from + 12 * step);
          e[0][j] = m0 + m1 + m2, e[1][j] = m1 - m2 - m3;
        }
        Vec b = bias ? load(bias + c) : Vec{};
        store(y + t.at(0, 0) * pixel + c, e[0][0] + e[0][1] + e[0][2] + b);
        if (right) store(y + t.at(0, 1) * pixel + c, e[0][1] - e[0][2] - e[0][3] + b);
        if (down) store(y + t.at(1, 0) * pixel + c, e[1][0] + e[1][1] + e[1][2] + b);
        if (down && right) store(y + t.at(1, 1) * pixel + c, e[1][1] - e[1][2] - e[1][3] + b);
      }
    }
  }

  // G w Gᵀ of W neighbouring channels of one filter, at (3, 3, channels)
  static INLINE void filter_in(const T *w, Size channels, bool turned, Vec (&u)[16]) {
    Vec g[9], e[4][3];
    for (int i = 0; i < 9; i++) g[i] = load(w + (turned ? 8 - i : i) * channels);
    for (int j = 0; j < 3; j++) {
      Vec ends = (g[j] + g[6 + j]) / 2, middle = g[3 + j] / 2;
      e[0][j] = g[j], e[1][j] = ends + middle, e[2][j] = ends - middle, e[3][j] = g[6 + j];
    }
    for (int i = 0; i < 4; i++) {
      Vec ends = (e[i][0] + e[i][2]) / 2, middle = e[i][1] / 2;
      u[4 * i] = e[i][0], u[4 * i + 1] = ends + middle, u[4 * i + 2] = ends - middle, u[4 * i + 3] = e[i][2];
    }
  }

  // Filters (filters, 3, 3, channels) -> (16, channels, filters), or turned: (16, filters, channels)
  static INLINE void filters_in(const T *w, Size filters, Size channels, bool turned, T *out) {
    Size step = filters * channels;
    Vec u[16];
    if (turned) {
      for (Size k = 0; k < filters; k++)
        for (Size c = 0; c < channels; c += W) {
          filter_in(w + k * 9 * channels + c, channels, true, u);
          for (int i = 0; i < 16; i++) store(out + i * step + k * channels + c, u[i]);
        }
      return;
    }
    T block[16][W][W];  // W channels of W filters
    for (Size k = 0; k < filters; k += W)
      for (Size c = 0; c < channels; c += W) {
        for (Size l = 0; l < W; l++) {
          filter_in(w + (k + l) * 9 * channels + c, channels, false, u);
          for (int i = 0; i < 16; i++) store(block[i][l], u[i]);
        }
        for (int i = 0; i < 16; i++)
          for (Size d = 0; d < W; d++) {
            Vec v;
            for (Size l = 0; l < W; l++) v[l] = block[i][l][d];
            store(out + i * step + (c + d) * filters + k, v);
          }
      }
  }

  // (16, channels, filters) -> Gᵀ u G, filters (filters, 3, 3, channels)
  static INLINE void filters_out(const T *u, Size filters, Size channels, T *w) {
    Size step = filters * channels;
    T block[9][W][W];
    for (Size k = 0; k < filters; k += W)
      for (Size c = 0; c < channels; c += W) {
        for (Size d = 0; d < W; d++) {
          const T *from = u + (c + d) * filters + k;
          Vec e[3][4];
          for (int j = 0; j < 4; j++, from += step) {
            Vec u0 = load(from), u1 = load(from + 4 * step), u2 = load(from + 8 * step), u3 = load(from + 12 * step);
            e[0][j] = u0 + (u1 + u2) / 2, e[1][j] = (u1 - u2) / 2, e[2][j] = (u1 + u2) / 2 + u3;
          }
          for (int i = 0; i < 3; i++) {
            store(block[3 * i][d], e[i][0] + (e[i][1] + e[i][2]) / 2);
            store(block[3 * i + 1][d], (e[i][1] - e[i][2]) / 2);
            store(block[3 * i + 2][d], (e[i][1] + e[i][2]) / 2 + e[i][3]);
          }
        }
        for (int i = 0; i < 9; i++)
          for (Size l = 0; l < W; l++) {
            Vec v;
            for (Size d = 0; d < W; d++) v[d] = block[i][d][l];
            store(w + ((k + l) * 9 + i) * channels + c, v);
          }
      }
  }

  // --- convolutions --------------------------------------------------------------------------------------------------


  // y = Σ_p w_p ∗ x_p + bias over `pairs` of maps and filters; turned: the gradient of the maps
  static INLINE void convolve(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, Size images, Size height,
                              Size width, Size in, Size out, Size groups, bool turned) {
    Shape s{images, height, width};
    T *filters = scratch(16 * (pairs * in * out + apart(TILES * in) + apart(TILES * out)) + in);
    T *maps = filters + 16 * pairs * in * out, *sums = maps + 16 * apart(TILES * in), *zeros = sums + 16 * apart(TILES * out);
    std::fill(zeros, zeros + in, T(0));
    for (Size g = 0; g < groups; g++) {
      for (Size p = 0; p < pairs; p++)
        filters_in(w[p] + g * 9 * in * out, turned ? in : out, turned ? out : in, turned, filters + p * 16 * in * out);
      for (Size first = 0; first < s.tiles(); first += TILES) {
        Size count = std::min(TILES, s.tiles() - first);
        for (Size p = 0; p < pairs; p++) {
          maps_in(s, x[p] + g * in, in, groups * in, first, count, zeros, maps);
          for (Size i = 0; i < 16; i++)
            product(count, out, in, maps + i * apart(count * in), in, 1, filters + (p * 16 + i) * in * out, out,
                    sums + i * apart(count * out), out, p > 0);
        }
        maps_out(s, sums, out, bias ? bias + g * out : nullptr, y + g * out, groups * out, first, count);
      }
    }
  }

  // dw = a ⋆ x
  static INLINE void correlate(Size pairs, const T *const *x, const T *const *a, T *dw, Size images, Size height, Size width, Size in, Size out, Size groups) {
    Shape s{images, height, width};
    T *filters = scratch(16 * (in * out + apart(TILES * in) + apart(TILES * out)) + in + out);
    T *maps = filters + 16 * in * out, *gradients = maps + 16 * apart(TILES * in), *zeros = gradients + 16 * apart(TILES * out);
    std::fill(zeros, zeros + std::max(in, out), T(0));
    for (Size g = 0; g < groups; g++) {
      for (Size p = 0; p < pairs; p++)
        for (Size first = 0; first < s.tiles(); first += TILES) {
          Size count = std::min(TILES, s.tiles() - first);
          maps_in(s, x[p] + g * in, in, groups * in, first, count, zeros, maps);
          gradients_in(s, a[p] + g * out, out, groups * out, first, count, zeros, gradients);
          for (Size i = 0; i < 16; i++)
            product(in, out, count, maps + i * apart(count * in), 1, in, gradients + i * apart(count * out), out,
                    filters + i * in * out, out, first + p > 0);
        }
      filters_out(filters, out, in, dw + g * 9 * in * out);
    }
  }

  // --- convolutions of images with few channels: patches times filters -------------------------------------------------

  static constexpr Size PIXELS = 96;  // at a time

  // (count, 9 · channels)
  static INLINE void patches(const Shape &s, const T *x, Size channels, Size pixel, Size first, Size count, T *out) {
    for (Size p = first; p < first + count; p++) {
      Size image = p / (s.height * s.width), i = p / s.width % s.height, j = p % s.width;
      for (Size y = i - 1; y <= i + 1; y++)
        for (Size z = j - 1; z <= j + 1; z++, out += channels) {
          bool there = y >= 0 && y < s.height && z >= 0 && z < s.width;
          const T *from = x + ((image * s.height + y) * s.width + z) * pixel;
          for (Size c = 0; c < channels; c++) out[c] = there ? from[c] : T(0);
        }
    }
  }

  static INLINE void transpose(const T *a, Size rows, Size columns, T *out) {
    for (Size i = 0; i < rows; i++)
      for (Size j = 0; j < columns; j++) out[j * rows + i] = a[i * columns + j];
  }

  static INLINE void convolve_few(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, Size images, Size height, Size width, Size in, Size out, Size groups) {
    Shape s{images, height, width};
    Size pixels = images * height * width, depth = 9 * in, wide = groups * out;
    T *filters = scratch(depth * (out + PIXELS)), *block = filters + depth * out;
    for (Size g = 0; g < groups; g++)
      for (Size p = 0; p < pairs; p++) {
        transpose(w[p] + g * depth * out, out, depth, filters);
        for (Size first = 0; first < pixels; first += PIXELS) {
          Size count = std::min(PIXELS, pixels - first);
          T *to = y + first * wide + g * out;
          patches(s, x[p] + g * in, in, groups * in, first, count, block);
          for (Size i = 0; p == 0 && bias && i < count; i++) std::copy(bias + g * out, bias + (g + 1) * out, to + i * wide);
          product(count, out, depth, block, depth, 1, filters, out, to, wide, bias || p > 0);
        }
      }
  }

  static INLINE void correlate_few(Size pairs, const T *const *x, const T *const *a, T *dw, Size images, Size height, Size width, Size in, Size out, Size groups) {
    Shape s{images, height, width};
    Size pixels = images * height * width, depth = 9 * in, wide = groups * out;
    T *filters = scratch(depth * (out + PIXELS)), *block = filters + depth * out;
    for (Size g = 0; g < groups; g++) {
      for (Size p = 0; p < pairs; p++)
        for (Size first = 0; first < pixels; first += PIXELS) {
          Size count = std::min(PIXELS, pixels - first);
          patches(s, x[p] + g * in, in, groups * in, first, count, block);
          product(depth, out, count, block, 1, depth, a[p] + first * wide + g * out, wide, filters, out, first + p > 0);
        }
      transpose(filters, depth, out, dw + g * depth * out);
    }
  }

  // --- batch norm, max-pooling, activation -----------------------------------------------------------------------------

  // The formulas are those of batch_norm.py. kept (images, h, w, channels) are the pixels of x that pooling keeps and
  // corner which of the four each is; the activation multiplies what is below zero by `slope`.

  typedef decltype(Vec{} < Vec{}) Mask;
  typedef uint8_t Bytes __attribute__((vector_size(W), aligned(1), may_alias));

  static INLINE Mask corners(const uint8_t *p) { return __builtin_convertvector(*(const Bytes *)p, Mask); }
  static INLINE Vec active(Vec y, Vec a, T slope) { return y > 0 ? a : slope * a; }

  struct Pooled {
    Size images, height, width, channels;
    Size h() const { return height / 2; }
    Size w() const { return width / 2; }
    INLINE Size kept(Size n, Size i, Size j) const { return ((n * h() + i) * w() + j) * channels; }
    INLINE Size pixel(Size n, Size i, Size j) const { return ((n * height + i) * width + j) * channels; }
    INLINE Size corner(Size n, Size i, Size j, int q) const { return pixel(n, 2 * i + q / 2, 2 * j + q % 2); }

    // f(place) for every pixel that no 2×2 window holds
    template <class F> INLINE void rest(Size n, F f) const {
      for (Size i = 0; i < height; i++)
        for (Size j = i < 2 * h() ? 2 * w() : 0; j < width; j++) f(pixel(n, i, j));
    }
  };

  static INLINE void add(T *total, T *part, Size count) {
    for (Size c = 0; c < count; c++) total[c] += part[c], part[c] = 0;
  }

  static INLINE void pool_norm(const T *x, const T *weight, const T *bias, T eps, T slope, T *y, T *kept, uint8_t *corner,
                               T *mean, T *rstd, Size images, Size height, Size width, Size channels) {
    Pooled s{images, height, width, channels};
    T *own = scratch(2 * channels), *squares = own + channels, *total = rstd;
    std::fill(own, own + 2 * channels, T(0));
    std::fill(mean, mean + channels, T(0));
    std::fill(total, total + channels, T(0));
    Size pixels = height * width;
    for (Size n = 0; n < images; n++) {
      for (Size p = 0; p < pixels; p++)
        for (Size c = 0; c < channels; c += W) store(own + c, load(own + c) + load(x + (n * pixels + p) * channels + c));
      for (Size c = 0; c < channels; c++) own[c] /= pixels;
      auto deviate = [&](Size c, Vec v) __attribute__((always_inline)) { v -= load(own + c); store(squares + c, load(squares + c) + v * v); };
      for (Size i = 0; i < s.h(); i++)
        for (Size j = 0; j < s.w(); j++)
          for (Size c = 0; c < channels; c += W) {
            Vec v[4], sum{}, sign = load(weight + c) < 0 ? Vec{} - 1 : Vec{} + 1;
            for (int q = 0; q < 4; q++) {
              v[q] = load(x + s.corner(n, i, j, q) + c);
              Vec d = v[q] - load(own + c);
              sum += d * d;
            }
            store(squares + c, load(squares + c) + sum);
            Vec most = v[0] * sign;
            Mask at{};
            for (int q = 1; q < 4; q++) {
              Mask more = v[q] * sign > most;
              most = more ? v[q] * sign : most;
              at = more ? Mask{} + q : at;
            }
            store(kept + s.kept(n, i, j) + c, most * sign);
            *(Bytes *)(corner + s.kept(n, i, j) + c) = __builtin_convertvector(at, Bytes);
          }
      s.rest(n, [&](Size p) __attribute__((always_inline)) { for (Size c = 0; c < channels; c += W) deviate(c, load(x + p + c)); });
      for (Size c = 0; c < channels; c++) {  // the moments of two parts of unequal size, as of the whole
        T delta = own[c] - mean[c];
        mean[c] += delta / (n + 1);
        total[c] += squares[c] + delta * delta * pixels * n / (n + 1);
        own[c] = squares[c] = 0;
      }
    }
    T *scale = own, *shift = squares;
    for (Size c = 0; c < channels; c++) {
      rstd[c] = 1 / std::sqrt(total[c] / (images * pixels) + eps);
      scale[c] = weight[c] * rstd[c];
      shift[c] = bias[c] - mean[c] * scale[c];
    }
    for (Size p = 0; p < images * s.h() * s.w(); p++)
      for (Size c = 0; c < channels; c += W) {
        Vec v = load(scale + c) * load(kept + p * channels + c) + load(shift + c);
        store(y + p * channels + c, active(v, v, slope));
      }
  }

  static INLINE void pool_norm_first(const T *a, const T *x, const T *weight, const T *bias, const T *kept, const uint8_t *corner,
                                     const T *mean, const T *rstd, T slope, T *dx, T *d_weight, T *d_bias,
                                     Size images, Size height, Size width, Size channels) {
    Pooled s{images, height, width, channels};
    T *scale = scratch(6 * channels), *shift = scale + channels, *of_x = shift + channels, *constant = of_x + channels,
      *s1 = constant + channels, *s2 = s1 + channels;
    std::fill(s1, s1 + 2 * channels, T(0));
    std::fill(d_weight, d_weight + channels, T(0));
    std::fill(d_bias, d_bias + channels, T(0));
    for (Size c = 0; c < channels; c++) scale[c] = weight[c] * rstd[c], shift[c] = bias[c] - mean[c] * scale[c];
    for (Size n = 0; n < images; n++) {
      for (Size p = s.kept(n, 0, 0); p < s.kept(n + 1, 0, 0); p += channels)
        for (Size c = 0; c < channels; c += W) {
          Vec v = load(kept + p + c), own = active(load(scale + c) * v + load(shift + c), load(a + p + c), slope);
          store(s1 + c, load(s1 + c) + own);
          store(s2 + c, load(s2 + c) + own * (v - load(mean + c)));
        }
      add(d_bias, s1, channels), add(d_weight, s2, channels);
    }
    Size count = images * height * width;
    for (Size c = 0; c < channels; c++) {
      d_weight[c] *= rstd[c];
      of_x[c] = -scale[c] * rstd[c] * d_weight[c] / count;
      constant[c] = -scale[c] * d_bias[c] / count - of_x[c] * mean[c];
    }
    for (Size n = 0; n < images; n++) {
      for (Size i = 0; i < s.h(); i++)
        for (Size j = 0; j < s.w(); j++)
          for (Size c = 0; c < channels; c += W) {
            Size p = s.kept(n, i, j) + c;
            Vec scaled = load(scale + c), own = scaled * active(scaled * load(kept + p) + load(shift + c), load(a + p), slope);
            Mask at = corners(corner + p);
            for (int q = 0; q < 4; q++) {
              Size to = s.corner(n, i, j, q) + c;
              store(dx + to, load(of_x + c) * load(x + to) + load(constant + c) + (at == q ? own : Vec{}));
            }
          }
      s.rest(n, [&](Size p) __attribute__((always_inline)) {
        for (Size c = 0; c < channels; c += W) store(dx + p + c, load(of_x + c) * load(x + p + c) + load(constant + c));
      });
    }
  }

  static INLINE void pool_norm_second(const T *u, const T *u_weight, const T *u_bias, const T *a, const T *x, const T *weight,
                                      const T *bias, const T *kept, const uint8_t *corner, const T *mean, const T *rstd,
                                      const T *d_weight, const T *d_bias, T slope, T *g_a, T *g_x, T *g_weight,
                                      Size images, Size height, Size width, Size channels) {
    Pooled s{images, height, width, channels};
    T *scale = scratch(13 * channels), *shift = scale + channels, *part = shift + channels, *total = part + 3 * channels,
      *shared = total + 3 * channels, *of_u = shared + channels, *of_x = of_u + channels, *for_a = of_x + channels,
      *for_x = for_a + channels;
    T *t1 = part, *t2 = part + channels, *ua = part + 2 * channels;
    std::fill(part, part + 6 * channels, T(0));
    for (Size c = 0; c < channels; c++) scale[c] = weight[c] * rstd[c], shift[c] = bias[c] - mean[c] * scale[c];
    for (Size n = 0; n < images; n++) {
      for (Size i = 0; i < s.h(); i++)
        for (Size j = 0; j < s.w(); j++)
          for (Size c = 0; c < channels; c += W) {
            Size p = s.kept(n, i, j) + c;
            Vec own = active(load(scale + c) * load(kept + p) + load(shift + c), load(a + p), slope), there{}, sum{}, moment{};
            Mask at = corners(corner + p);
            for (int q = 0; q < 4; q++) {
              Size from = s.corner(n, i, j, q) + c;
              Vec v = load(u + from);
              sum += v;
              moment += v * (load(x + from) - load(mean + c));
              there = at == q ? v : there;
            }
            store(t1 + c, load(t1 + c) + sum);
            store(t2 + c, load(t2 + c) + moment);
            store(ua + c, load(ua + c) + there * own);
          }
      s.rest(n, [&](Size p) __attribute__((always_inline)) {
        for (Size c = 0; c < channels; c += W) {
          Vec v = load(u + p + c);
          store(t1 + c, load(t1 + c) + v);
          store(t2 + c, load(t2 + c) + v * (load(x + p + c) - load(mean + c)));
        }
      });
      add(total, part, 3 * channels);
    }
    T count = images * height * width;
    for (Size c = 0; c < channels; c++) {
      T r = rstd[c], m1 = total[c] / count, m2 = total[channels + c] * r / count, s1 = d_bias[c] / count, s2 = d_weight[c] / count;
      T q = total[2 * channels + c] / count - m1 * s1 - m2 * s2;
      shared[c] = r * (u_weight[c] - scale[c] * m2);
      for_a[c] = u_bias[c] - scale[c] * m1 - shared[c] * mean[c];
      of_u[c] = -scale[c] * r * s2;
      of_x[c] = -r * (scale[c] * r * q + of_u[c] * m2 + shared[c] * s2);
      for_x[c] = -of_u[c] * m1 - shared[c] * s1 - of_x[c] * mean[c];
      g_weight[c] = count * r * q;
    }
    for (Size n = 0; n < images; n++) {
      for (Size i = 0; i < s.h(); i++)
        for (Size j = 0; j < s.w(); j++)
          for (Size c = 0; c < channels; c += W) {
            Size p = s.kept(n, i, j) + c;
            Vec scaled = load(scale + c), v = load(kept + p), y = scaled * v + load(shift + c), there{};
            Vec own = load(shared + c) * active(y, load(a + p), slope);
            Mask at = corners(corner + p);
            for (int q = 0; q < 4; q++) {
              Size to = s.corner(n, i, j, q) + c;
              Vec w = load(u + to);
              there = at == q ? w : there;
              store(g_x + to, load(of_u + c) * w + load(of_x + c) * load(x + to) + load(for_x + c) + (at == q ? own : Vec{}));
            }
            store(g_a + p, active(y, scaled * there + load(shared + c) * v + load(for_a + c), slope));
          }
      s.rest(n, [&](Size p) __attribute__((always_inline)) {
        for (Size c = 0; c < channels; c += W)
          store(g_x + p + c, load(of_u + c) * load(u + p + c) + load(of_x + c) * load(x + p + c) + load(for_x + c));
      });
    }
  }
};

}  // namespace

extern "C" {
int runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

#define FOR(T, S, TARGET, BYTES) \
__attribute__((target(TARGET))) void convolve_##S(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, Size n, Size h, Size wd, Size in, Size out, Size groups, Size turned) { \
  if (in % Code<T, BYTES>::W) Code<T, BYTES>::convolve_few(pairs, x, w, bias, y, n, h, wd, in, out, groups); \
  else Code<T, BYTES>::convolve(pairs, x, w, bias, y, n, h, wd, in, out, groups, turned); \
} \
__attribute__((target(TARGET))) void correlate_##S(Size pairs, const T *const *x, const T *const *a, T *dw, Size n, Size h, Size w, Size in, Size out, Size groups) { \
  if (in % Code<T, BYTES>::W) Code<T, BYTES>::correlate_few(pairs, x, a, dw, n, h, w, in, out, groups); \
  else Code<T, BYTES>::correlate(pairs, x, a, dw, n, h, w, in, out, groups); \
} \
__attribute__((target(TARGET))) void pool_norm_##S(const T *x, const T *weight, const T *bias, double eps, double slope, T *y, T *kept, uint8_t *corner, T *mean, T *rstd, Size n, Size h, Size w, Size c) { \
  Code<T, BYTES>::pool_norm(x, weight, bias, eps, slope, y, kept, corner, mean, rstd, n, h, w, c); \
} \
__attribute__((target(TARGET))) void pool_norm_first_##S(const T *a, const T *x, const T *weight, const T *bias, const T *kept, const uint8_t *corner, const T *mean, const T *rstd, double slope, T *dx, T *dw, T *db, Size n, Size h, Size w, Size c) { \
  Code<T, BYTES>::pool_norm_first(a, x, weight, bias, kept, corner, mean, rstd, slope, dx, dw, db, n, h, w, c); \
} \
__attribute__((target(TARGET))) void pool_norm_second_##S(const T *u, const T *uw, const T *ub, const T *a, const T *x, const T *weight, const T *bias, const T *kept, const uint8_t *corner, const T *mean, const T *rstd, const T *dw, const T *db, double slope, T *ga, T *gx, T *gw, Size n, Size h, Size w, Size c) { \
  Code<T, BYTES>::pool_norm_second(u, uw, ub, a, x, weight, bias, kept, corner, mean, rstd, dw, db, slope, ga, gx, gw, n, h, w, c); \
}
FOR(float, f32, "avx2,fma", 32)
FOR(double, f64, "avx2,fma", 32)
}
