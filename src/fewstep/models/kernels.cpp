// What a Conv4 spends its time on, for maps with the channels last in memory: 3×3 convolutions, and batch norm with
// max-pooling and activation. All is a template of the number type; loops run over vectors of channels, so that the
// number of channels is a multiple of a vector register's width. Python sees the functions at the end, by ctypes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads() { return 1; }
static int omp_get_thread_num() { return 0; }
#endif

#ifdef __AVX512F__
constexpr int BYTES = 64;  // of a vector register
#else
constexpr int BYTES = 32;
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

using Size = int64_t;

template <class T> struct Kernels {
  typedef T Vec __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
  static constexpr Size W = BYTES / sizeof(T);

  static INLINE Vec load(const T *p) { return *(const Vec *)p; }
  static INLINE void store(T *p, Vec v) { *(Vec *)p = v; }

  // Memory that outlives the call, of this thread and this purpose.
  enum Purpose { SHARED, OWN };
  template <Purpose> static T *scratch(Size count) {
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

  // --- Winograd's convolution F(2×2, 3×3) ----------------------------------------------------------------------------
  //
  //     Y = Aᵀ [ (G w Gᵀ) ⊙ (Bᵀ x B) ] A: four pixels for 16 products a channel instead of 36
  //
  // Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016.

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
#pragma omp parallel for
    for (Size k = 0; k < filters; k += W)
      for (Size c = 0; c < channels; c += W) {
        Vec u[16];
        T block[16][W][W];  // W channels of W filters
        for (Size l = 0; l < W; l++) {
          filter_in(w + (k + l) * 9 * channels + c, channels, turned, u);
          for (int i = 0; i < 16; i++) store(turned ? out + i * step + (k + l) * channels + c : block[i][l], u[i]);
        }
        for (int i = 0; i < 16 && !turned; i++)
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
#pragma omp parallel for
    for (Size k = 0; k < filters; k += W)
      for (Size c = 0; c < channels; c += W) {
        T block[9][W][W];
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

  struct Sizes {
    Size images, height, width, in, out, groups;
    Shape shape() const { return {images, height, width}; }
  };

  // y = Σ_p w_p ∗ x_p + bias over `pairs` of maps and filters; turned: the gradient of the maps
  static INLINE void convolve_many(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, bool turned, Sizes z) {
    const Shape s = z.shape();
    const Size in = z.in, out = z.out, maps_size = apart(TILES * in), sums_size = apart(TILES * out);
    T *filters = scratch<SHARED>(16 * pairs * in * out);
    for (Size g = 0; g < z.groups; g++) {
      for (Size p = 0; p < pairs; p++)
        filters_in(w[p] + g * 9 * in * out, turned ? in : out, turned ? out : in, turned, filters + p * 16 * in * out);
#pragma omp parallel for schedule(dynamic)
      for (Size first = 0; first < s.tiles(); first += TILES) {
        Size count = std::min(TILES, s.tiles() - first);
        T *maps = scratch<OWN>(16 * (maps_size + sums_size) + in), *sums = maps + 16 * maps_size, *zeros = sums + 16 * sums_size;
        std::fill(zeros, zeros + in, T(0));
        for (Size p = 0; p < pairs; p++) {
          maps_in(s, x[p] + g * in, in, z.groups * in, first, count, zeros, maps);
          for (Size i = 0; i < 16; i++)
            product(count, out, in, maps + i * apart(count * in), in, 1, filters + (p * 16 + i) * in * out, out,
                    sums + i * apart(count * out), out, p > 0);
        }
        maps_out(s, sums, out, bias ? bias + g * out : nullptr, y + g * out, z.groups * out, first, count);
      }
    }
  }

  // dw = Σ_p a_p ⋆ x_p
  static INLINE void correlate_many(Size pairs, const T *const *x, const T *const *a, T *dw, Sizes z) {
    const Shape s = z.shape();
    const Size in = z.in, out = z.out, size = 16 * in * out, maps_size = apart(TILES * in), gradients_size = apart(TILES * out);
    const Size blocks = (s.tiles() + TILES - 1) / TILES, threads = std::min<Size>(omp_get_max_threads(), blocks);
    T *sums = scratch<SHARED>(threads * size);
    for (Size g = 0; g < z.groups; g++) {
#pragma omp parallel for num_threads(threads)
      for (Size t = 0; t < threads; t++) {
        T *maps = scratch<OWN>(16 * (maps_size + gradients_size) + in + out), *gradients = maps + 16 * maps_size,
          *zeros = gradients + 16 * gradients_size, *own = sums + t * size;
        std::fill(zeros, zeros + in + out, T(0));
        bool add = false;
        for (Size p = 0; p < pairs; p++)
          for (Size block = t * blocks / threads; block < (t + 1) * blocks / threads; block++, add = true) {
            Size first = block * TILES, count = std::min(TILES, s.tiles() - first);
            maps_in(s, x[p] + g * in, in, z.groups * in, first, count, zeros, maps);
            gradients_in(s, a[p] + g * out, out, z.groups * out, first, count, zeros, gradients);
            for (Size i = 0; i < 16; i++)
              product(in, out, count, maps + i * apart(count * in), 1, in, gradients + i * apart(count * out), out,
                      own + i * in * out, out, add);
          }
      }
      for (Size t = 1; t < threads; t++) add(sums, sums + t * size, size);
      filters_out(sums, out, in, dw + g * 9 * in * out);
    }
  }

  // total += part, part = 0
  static INLINE void add(T *total, T *part, Size count) {
    for (Size i = 0; i < count; i++) total[i] += part[i], part[i] = 0;
  }

  // --- convolutions of images with few channels: patches times filters -------------------------------------------------

  // The patches of a row of pixels, (width, 9 · channels), rows counted through all images; `lines` is room for three rows with a margin.
  static INLINE void patches(const Shape &s, const T *x, Size channels, Size pixel, Size row, T *lines, T *out) {
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
    if (channels == 1) gather(3);  // a number known to the compiler
    else if (channels == 3) gather(9);
    else gather(3 * channels);
  }

  static INLINE void transpose(const T *a, Size rows, Size columns, T *out) {
    for (Size i = 0; i < rows; i++)
      for (Size j = 0; j < columns; j++) out[j * rows + i] = a[i * columns + j];
  }

  static INLINE void convolve_few(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, Sizes z) {
    const Shape s = z.shape();
    const Size in = z.in, out = z.out, depth = 9 * in, wide = z.groups * out, width = z.width;
    T *filters = scratch<SHARED>(depth * out);
    for (Size g = 0; g < z.groups; g++)
      for (Size p = 0; p < pairs; p++) {
        transpose(w[p] + g * depth * out, out, depth, filters);
#pragma omp parallel for
        for (Size row = 0; row < z.images * z.height; row++) {
          T *block = scratch<OWN>(depth * width + 3 * (width + 2) * in), *to = y + row * width * wide + g * out;
          patches(s, x[p] + g * in, in, z.groups * in, row, block + depth * width, block);
          for (Size j = 0; p == 0 && bias && j < width; j++) std::copy(bias + g * out, bias + (g + 1) * out, to + j * wide);
          product(width, out, depth, block, depth, 1, filters, out, to, wide, bias || p > 0);
        }
      }
  }

  static INLINE void correlate_few(Size pairs, const T *const *x, const T *const *a, T *dw, Sizes z) {
    const Shape s = z.shape();
    const Size in = z.in, out = z.out, depth = 9 * in, wide = z.groups * out, width = z.width, size = depth * out;
    const Size rows = z.images * z.height, threads = std::min<Size>(omp_get_max_threads(), rows);
    T *sums = scratch<SHARED>(threads * size);
    for (Size g = 0; g < z.groups; g++) {
#pragma omp parallel for num_threads(threads)
      for (Size t = 0; t < threads; t++) {
        T *block = scratch<OWN>(depth * width + 3 * (width + 2) * in), *own = sums + t * size;
        bool add = false;
        for (Size p = 0; p < pairs; p++)
          for (Size row = t * rows / threads; row < (t + 1) * rows / threads; row++, add = true) {
            patches(s, x[p] + g * in, in, z.groups * in, row, block + depth * width, block);
            product(depth, out, width, block, 1, depth, a[p] + row * width * wide + g * out, wide, own, out, add);
          }
      }
      for (Size t = 1; t < threads; t++) add(sums, sums + t * size, size);
      transpose(sums, depth, out, dw + g * size);
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

  static INLINE void pool_norm(const T *x, const T *weight, const T *bias, T eps, T slope, T *y, T *kept, uint8_t *corner,
                               T *mean, T *var, T *rstd, Pooled s) {
    const Size channels = s.channels, pixels = s.height * s.width;
    T *moments = scratch<SHARED>((s.images + 1) * 2 * channels);  // mean and squared deviations of each image
#pragma omp parallel for
    for (Size n = 0; n < s.images; n++) {
      T *own = moments + n * 2 * channels, *squares = own + channels;
      std::fill(own, own + 2 * channels, T(0));
      for (Size p = 0; p < pixels; p++)
        for (Size c = 0; c < channels; c += W) store(own + c, load(own + c) + load(x + (n * pixels + p) * channels + c));
      for (Size c = 0; c < channels; c++) own[c] /= pixels;
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
      s.rest(n, [&](Size p) {
        for (Size c = 0; c < channels; c += W) {
          Vec d = load(x + p + c) - load(own + c);
          store(squares + c, load(squares + c) + d * d);
        }
      });
    }
    T *scale = moments + s.images * 2 * channels, *shift = scale + channels;
    for (Size c = 0; c < channels; c++) {
      T all = 0, squares = 0;
      for (Size n = 0; n < s.images; n++) {  // the moments of two parts, as of the whole
        T *own = moments + n * 2 * channels + c, delta = own[0] - all;
        all += delta / (n + 1);
        squares += own[channels] + delta * delta * pixels * n / (n + 1);
      }
      mean[c] = all;
      var[c] = squares / (s.images * pixels);
      rstd[c] = 1 / std::sqrt(var[c] + eps);
      scale[c] = weight[c] * rstd[c];
      shift[c] = bias[c] - all * scale[c];
    }
#pragma omp parallel for
    for (Size n = 0; n < s.images; n++)
      for (Size p = s.kept(n, 0, 0); p < s.kept(n + 1, 0, 0); p += channels)
        for (Size c = 0; c < channels; c += W) {
          Vec v = load(scale + c) * load(kept + p + c) + load(shift + c);
          store(y + p + c, active(v, v, slope));
        }
  }

  // Sums over images, in the order of the images whatever the number of threads.
  static INLINE void total(const T *of_each, Size images, Size count, T *out) {
    std::fill(out, out + count, T(0));
    for (Size n = 0; n < images; n++)
      for (Size c = 0; c < count; c++) out[c] += of_each[n * count + c];
  }

  static INLINE void pool_norm_first(const T *a, const T *x, const T *weight, const T *bias, const T *kept, const uint8_t *corner,
                                     const T *mean, const T *rstd, T slope, T *dx, T *d_weight, T *d_bias, Pooled s) {
    const Size channels = s.channels, count = s.images * s.height * s.width;
    T *scale = scratch<SHARED>((4 + 2 + 2 * s.images) * channels), *shift = scale + channels, *of_x = shift + channels,
      *constant = of_x + channels, *sums = constant + channels, *of_each = sums + 2 * channels;
    for (Size c = 0; c < channels; c++) scale[c] = weight[c] * rstd[c], shift[c] = bias[c] - mean[c] * scale[c];
#pragma omp parallel for
    for (Size n = 0; n < s.images; n++) {
      T *s1 = of_each + n * 2 * channels, *s2 = s1 + channels;
      std::fill(s1, s1 + 2 * channels, T(0));
      for (Size p = s.kept(n, 0, 0); p < s.kept(n + 1, 0, 0); p += channels)
        for (Size c = 0; c < channels; c += W) {
          Vec v = load(kept + p + c), own = active(load(scale + c) * v + load(shift + c), load(a + p + c), slope);
          store(s1 + c, load(s1 + c) + own);
          store(s2 + c, load(s2 + c) + own * (v - load(mean + c)));
        }
    }
    total(of_each, s.images, 2 * channels, sums);
    for (Size c = 0; c < channels; c++) {
      d_bias[c] = sums[c];
      d_weight[c] = sums[channels + c] * rstd[c];
      of_x[c] = -scale[c] * rstd[c] * d_weight[c] / count;
      constant[c] = -scale[c] * d_bias[c] / count - of_x[c] * mean[c];
    }
#pragma omp parallel for
    for (Size n = 0; n < s.images; n++) {
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
      s.rest(n, [&](Size p) {
        for (Size c = 0; c < channels; c += W) store(dx + p + c, load(of_x + c) * load(x + p + c) + load(constant + c));
      });
    }
  }

  static INLINE void pool_norm_second(const T *u, const T *u_weight, const T *u_bias, const T *a, const T *x, const T *weight,
                                      const T *bias, const T *kept, const uint8_t *corner, const T *mean, const T *rstd,
                                      const T *d_weight, const T *d_bias, T slope, T *g_a, T *g_x, T *g_weight, Pooled s) {
    const Size channels = s.channels;
    const T count = s.images * s.height * s.width;
    T *scale = scratch<SHARED>((7 + 3 + 3 * s.images) * channels), *shift = scale + channels, *shared = shift + channels,
      *of_u = shared + channels, *of_x = of_u + channels, *for_a = of_x + channels, *for_x = for_a + channels,
      *sums = for_x + channels, *of_each = sums + 3 * channels;
    for (Size c = 0; c < channels; c++) scale[c] = weight[c] * rstd[c], shift[c] = bias[c] - mean[c] * scale[c];
#pragma omp parallel for
    for (Size n = 0; n < s.images; n++) {
      T *t1 = of_each + n * 3 * channels, *t2 = t1 + channels, *ua = t2 + channels;
      std::fill(t1, t1 + 3 * channels, T(0));
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
      s.rest(n, [&](Size p) {
        for (Size c = 0; c < channels; c += W) {
          Vec v = load(u + p + c);
          store(t1 + c, load(t1 + c) + v);
          store(t2 + c, load(t2 + c) + v * (load(x + p + c) - load(mean + c)));
        }
      });
    }
    total(of_each, s.images, 3 * channels, sums);
    for (Size c = 0; c < channels; c++) {
      T r = rstd[c], m1 = sums[c] / count, m2 = sums[channels + c] * r / count, s1 = d_bias[c] / count, s2 = d_weight[c] / count;
      T q = sums[2 * channels + c] / count - m1 * s1 - m2 * s2;
      shared[c] = r * ((u_weight ? u_weight[c] : 0) - scale[c] * m2);
      for_a[c] = (u_bias ? u_bias[c] : 0) - scale[c] * m1 - shared[c] * mean[c];
      of_u[c] = -scale[c] * r * s2;
      of_x[c] = -r * (scale[c] * r * q + of_u[c] * m2 + shared[c] * s2);
      for_x[c] = -of_u[c] * m1 - shared[c] * s1 - of_x[c] * mean[c];
      g_weight[c] = count * r * q;
    }
#pragma omp parallel for
    for (Size n = 0; n < s.images; n++) {
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
      s.rest(n, [&](Size p) {
        for (Size c = 0; c < channels; c += W)
          store(g_x + p + c, load(of_u + c) * load(u + p + c) + load(of_x + c) * load(x + p + c) + load(for_x + c));
      });
    }
  }

  // --- what Python calls -------------------------------------------------------------------------------------------------

  static void convolve(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, bool turned, Sizes z) {
    if (z.in % W) convolve_few(pairs, x, w, bias, y, z);
    else convolve_many(pairs, x, w, bias, y, turned, z);
  }

  static void correlate(Size pairs, const T *const *x, const T *const *a, T *dw, Sizes z) {
    if (z.in % W) correlate_few(pairs, x, a, dw, z);
    else correlate_many(pairs, x, a, dw, z);
  }

  static Sizes turned(Sizes z) { return {z.images, z.height, z.width, z.out, z.in, z.groups}; }
  static Pooled pooled(Sizes z) { return {z.images, z.height, z.width, z.groups * z.out}; }

  static void block(const T *x, const T *w, const T *shift, const T *weight, const T *bias, T eps, T slope, T *z, T *y, T *kept,
                    uint8_t *corner, T *mean, T *var, T *rstd, Sizes s) {
    convolve(1, &x, &w, shift, z, false, s);
    pool_norm(z, weight, bias, eps, slope, y, kept, corner, mean, var, rstd, pooled(s));
  }

  static void block_first(const T *a, const T *x, const T *w, const T *weight, const T *bias, const T *mean, const T *rstd,
                          const T *z, const T *kept, const uint8_t *corner, T slope, T *dx, T *dw, T *d_weight, T *d_bias, T *dz,
                          Sizes s) {
    pool_norm_first(a, z, weight, bias, kept, corner, mean, rstd, slope, dz, d_weight, d_bias, pooled(s));
    const T *maps = dz;
    if (dx) convolve(1, &maps, &w, nullptr, dx, true, turned(s));
    correlate(1, &x, &maps, dw, s);
  }

  // Cotangents that are null are zero; room: for two maps like z
  static void block_second(const T *u_x, const T *u_w, const T *u_weight, const T *u_bias, const T *a, const T *x, const T *w,
                           const T *weight, const T *bias, const T *mean, const T *rstd, const T *z, const T *kept,
                           const uint8_t *corner, const T *d_weight, const T *d_bias, const T *dz, T slope, T *g_a, T *g_x, T *g_w,
                           T *g_weight, T *room, Sizes s) {
    const Size map = s.images * s.height * s.width * s.groups * s.out;
    T *u_z = room, *g_z = room + map;
    const T *maps[2] = {u_x, x}, *filters[2] = {w, u_w};
    if (u_x || u_w) convolve((u_x != nullptr) + (u_w != nullptr), maps + !u_x, filters + !u_x, nullptr, u_z, false, s);
    else std::fill(u_z, u_z + map, T(0));
    pool_norm_second(u_z, u_weight, u_bias, a, z, weight, bias, kept, corner, mean, rstd, d_weight, d_bias, slope, g_a, g_z,
                     g_weight, pooled(s));
    const T *inputs[2] = {x, u_x}, *outputs[2] = {g_z, dz};
    if (g_x) convolve(1 + (u_w != nullptr), outputs, filters, nullptr, g_x, true, turned(s));
    correlate(1 + (u_x != nullptr), inputs, outputs, g_w, s);
  }
};

}  // namespace

extern "C" {
Size vector_bytes() { return BYTES; }

#define FUNCTIONS(T, S)                                                                                                  \
  void convolve_##S(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, Size turned, Size n, Size h,  \
                    Size width, Size in, Size out, Size groups) {                                                       \
    Kernels<T>::convolve(pairs, x, w, bias, y, turned, {n, h, width, in, out, groups});                                 \
  }                                                                                                                     \
  void correlate_##S(Size pairs, const T *const *x, const T *const *a, T *dw, Size n, Size h, Size width, Size in,       \
                     Size out, Size groups) {                                                                           \
    Kernels<T>::correlate(pairs, x, a, dw, {n, h, width, in, out, groups});                                             \
  }                                                                                                                     \
  void block_##S(const T *x, const T *w, const T *shift, const T *weight, const T *bias, double eps, double slope, T *z, \
                 T *y, T *kept, uint8_t *corner, T *mean, T *var, T *rstd, Size n, Size h, Size width, Size in,          \
                 Size out, Size groups) {                                                                               \
    Kernels<T>::block(x, w, shift, weight, bias, eps, slope, z, y, kept, corner, mean, var, rstd,                       \
                      {n, h, width, in, out, groups});                                                                  \
  }                                                                                                                     \
  void block_first_##S(const T *a, const T *x, const T *w, const T *weight, const T *bias, const T *mean,               \
                       const T *rstd, const T *z, const T *kept, const uint8_t *corner, double slope, T *dx, T *dw,      \
                       T *d_weight, T *d_bias, T *dz, Size n, Size h, Size width, Size in, Size out, Size groups) {      \
    Kernels<T>::block_first(a, x, w, weight, bias, mean, rstd, z, kept, corner, slope, dx, dw, d_weight, d_bias, dz,    \
                            {n, h, width, in, out, groups});                                                            \
  }                                                                                                                     \
  void block_second_##S(const T *u_x, const T *u_w, const T *u_weight, const T *u_bias, const T *a, const T *x,         \
                        const T *w, const T *weight, const T *bias, const T *mean, const T *rstd, const T *z,           \
                        const T *kept, const uint8_t *corner, const T *d_weight, const T *d_bias, const T *dz,          \
                        double slope, T *g_a, T *g_x, T *g_w, T *g_weight, T *room, Size n, Size h, Size width,         \
                        Size in, Size out, Size groups) {                                                               \
    Kernels<T>::block_second(u_x, u_w, u_weight, u_bias, a, x, w, weight, bias, mean, rstd, z, kept, corner, d_weight,  \
                             d_bias, dz, slope, g_a, g_x, g_w, g_weight, room, {n, h, width, in, out, groups});         \
  }
FUNCTIONS(float, f32)
FUNCTIONS(double, f64)
}
