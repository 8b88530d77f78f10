// Batch norm, max-pooling 2×2 and activation, with two derivatives.
//
// The formulas are those of batch_norm.py. corner (images, h, w, channels) says which of the four pixels of a window
// pooling keeps; the activation multiplies what is below zero by `slope`.
#pragma once

#include <cmath>

#include "vectors.h"

namespace fewstep {

template <class T>
using Mask = decltype(Vec<T>{} < Vec<T>{});
template <class T>
struct ByteRegister {
  typedef uint8_t type __attribute__((vector_size(W<T>), aligned(1), may_alias));
};
template <class T>
using Bytes = typename ByteRegister<T>::type;

template <class T>
INLINE Mask<T> corners(const uint8_t *p) {
  return __builtin_convertvector(*(const Bytes<T> *)p, Mask<T>);
}
template <class T>
INLINE Vec<T> active(Vec<T> y, Vec<T> a, T slope) {
  return y > 0 ? a : slope * a;
}

// Maps (images, height, width, channels) that are pooled. They are gone through by strips, two rows and all windows
// that lie in them: a strip stays in the first-level cache while each channel is done with.
struct Pooled {
  Size images, height, width, channels;
  Size h() const { return height / 2; }
  Size w() const { return width / 2; }
  Size image() const { return height * width * channels; }  // numbers
  Size strips() const { return (height + 1) / 2; }
  Size rows(Size strip) const { return strip < h() ? 2 : 1; }
  Size strip(Size strip) const { return 2 * strip * width * channels; }  // where it begins in an image
  INLINE Size kept(Size n, Size strip, Size j) const { return ((n * h() + strip) * w() + j) * channels; }
  INLINE Size corner(Size j, int q) const { return (q / 2 * width + 2 * j + q % 2) * channels; }  // in a strip

  // f(window, channel) for every 2×2 window of a strip, a register of channels at a time
  template <class T, class F>
  INLINE void windows(Size strip, F f) const {
    for (Size j = 0; strip < h() && j < w(); j++)
      for (Size c = 0; c < channels; c += W<T>) f(j, c);
  }
  // f(place in the strip, channel) for every pixel that no window holds
  template <class T, class F>
  INLINE void rest(Size strip, F f) const {
    for (Size i = 0; i < rows(strip); i++)
      for (Size j = strip < h() ? 2 * w() : 0; j < width; j++)
        for (Size c = 0; c < channels; c += W<T>) f((i * width + j) * channels + c, c);
  }

  // Parts of all images that threads share out, the same however many threads there are: some strips of an image each
  Size parts() const { return images * of_image(); }
  Size of_image() const { return std::min<Size>(strips(), images < 16 ? (16 + images - 1) / images : 1); }
  Size first(Size part) const { return part % of_image() * strips() / of_image(); }
  Size end(Size part) const { return (part % of_image() + 1) * strips() / of_image(); }
  Size pixels(Size part) const { return (std::min(2 * end(part), height) - 2 * first(part)) * width; }

  // f(part, image, strip) for all strips of all parts
  template <class F>
  INLINE void each(F f) const {
#pragma omp parallel for
    for (Size part = 0; part < parts(); part++)
      for (Size i = first(part); i < end(part); i++) f(part, part / of_image(), i);
  }
};

// maps: a function from n and i to strip i of image n of the maps x, called once for each. given: normalise by the mean
// and variance that are there; else they become those of x.
template <class T, class Maps>
INLINE void pool_norm(const Maps &maps, const T *weight, const T *bias, T eps, T slope, bool given, T *y,
                      uint8_t *corner, T *mean, T *var, T *rstd, Pooled s) {
  const Size channels = s.channels, parts = s.parts();
  T *moments = scratch<T, SUMS>((parts * 3 + 2) * channels);  // mean, squared deviations and the mean of the last strip
  s.each([&](Size part, Size n, Size i) __attribute__((always_inline)) {
    const T *x = maps(n, i);
    T *own = moments + part * 3 * channels, *squares = own + channels, *middle = squares + channels;
    const Size pixels = s.rows(i) * s.width, before = 2 * (i - s.first(part)) * s.width;
    if (!before) std::fill(own, own + 2 * channels, T(0));
    for (Size c = 0; c < channels; c += W<T>) {
      Vec<T> of[4]{};
      for (Size j = 0; !given && i < s.h() && j < s.w(); j++)
        for (int q = 0; q < 4; q++) of[q] += load(x + s.corner(j, q) + c);
      store(middle + c, of[0] + of[1] + of[2] + of[3]);
    }
    s.template rest<T>(i, [&](Size p, Size c) { store(middle + c, load(middle + c) + load(x + p)); });
    for (Size c = 0; c < channels; c++) middle[c] /= pixels;
    for (Size c = 0; c < channels; c += W<T>) {
      const Vec<T> sign = load(weight + c) < 0 ? Vec<T>{} - 1 : Vec<T>{} + 1, mid = load(middle + c);
      Vec<T> sum = load(squares + c);
      for (Size j = 0; i < s.h() && j < s.w(); j++) {
        Vec<T> v[4], deviation{};
        for (int q = 0; q < 4; q++) {
          v[q] = load(x + s.corner(j, q) + c);
          deviation += (v[q] - mid) * (v[q] - mid);
        }
        sum += deviation;
        Vec<T> most = v[0] * sign;
        Mask<T> at{};
        for (int q = 1; q < 4; q++) {
          Vec<T> next = v[q] * sign;
          Mask<T> more = next > most || next != next;  // what is no number stays
          most = more ? next : most;
          at = more ? Mask<T>{} + q : at;
        }
        const Size p = s.kept(n, i, j) + c;
        store(y + p, most * sign);
        if (corner) *(Bytes<T> *)(corner + p) = __builtin_convertvector(at, Bytes<T>);
      }
      store(squares + c, sum);
    }
    s.template rest<T>(i, [&](Size p, Size c) {
      Vec<T> d = load(x + p) - load(middle + c);
      store(squares + c, load(squares + c) + d * d);
    });
    const T portion = T(pixels) / (before + pixels);  // the moments of two parts, as of the whole
    for (Size c = 0; c < channels; c++) {
      T delta = middle[c] - own[c];
      own[c] += delta * portion;
      squares[c] += delta * delta * (before * portion);
    }
  });
  T *scale = moments + parts * 3 * channels, *shift = scale + channels;
  for (Size c = 0; c < channels; c++) {
    T all = 0, squares = 0;
    for (Size part = 0, before = 0; part < parts; part++) {
      T *own = moments + part * 3 * channels + c, delta = own[0] - all,
        portion = T(s.pixels(part)) / (before + s.pixels(part));
      all += delta * portion;
      squares += own[channels] + delta * delta * (before * portion);
      before += s.pixels(part);
    }
    if (!given) mean[c] = all, var[c] = squares / (s.images * s.height * s.width);
    rstd[c] = 1 / std::sqrt(var[c] + eps);
    scale[c] = weight[c] * rstd[c];
    shift[c] = bias[c] - mean[c] * scale[c];
  }
#pragma omp parallel for
  for (Size p = 0; p < s.images * s.h() * s.w(); p++)
    for (Size c = 0; c < channels; c += W<T>) {
      Vec<T> v = load(scale + c) * load(y + p * channels + c) + load(shift + c);
      store(y + p * channels + c, active(v, v, slope));
    }
}

// A window of 2×2 pixels of a strip x, and the one that pooling keeps
template <class T>
struct Window {
  Vec<T> v[4], kept{};
  INLINE Window(const T *x, Mask<T> at, Size j, Size c, Pooled s) {
    for (int q = 0; q < 4; q++) {
      v[q] = load(x + s.corner(j, q) + c);
      kept = at == q ? v[q] : kept;
    }
  }
};

// dγ and dβ
template <class T>
INLINE void pool_norm_sums(const T *a, const T *x, const T *weight, const T *bias, const uint8_t *corner, const T *mean,
                           const T *rstd, T slope, T *d_weight, T *d_bias, Pooled s) {
  const Size channels = s.channels;
  T *scale = scratch<T, SUMS>((2 + 2 + 2 * s.parts()) * channels), *shift = scale + channels, *sums = shift + channels,
    *of_each = sums + 2 * channels;
  for (Size c = 0; c < channels; c++) scale[c] = weight[c] * rstd[c], shift[c] = bias[c] - mean[c] * scale[c];
  s.each([&](Size part, Size n, Size i) __attribute__((always_inline)) {
    T *s1 = of_each + part * 2 * channels, *s2 = s1 + channels;
    if (i == s.first(part)) std::fill(s1, s1 + 2 * channels, T(0));
    s.template windows<T>(i, [&](Size j, Size c) {
      const Size p = s.kept(n, i, j) + c;
      Vec<T> v = Window<T>(x + n * s.image() + s.strip(i), corners<T>(corner + p), j, c, s).kept;
      Vec<T> own = active(load(scale + c) * v + load(shift + c), load(a + p), slope);
      store(s1 + c, load(s1 + c) + own);
      store(s2 + c, load(s2 + c) + own * (v - load(mean + c)));
    });
  });
  total(of_each, s.parts(), 2 * channels, sums);
  for (Size c = 0; c < channels; c++) d_bias[c] = sums[c], d_weight[c] = sums[channels + c] * rstd[c];
}

// dx from dγ and dβ. place: a function from n and i to where the gradient of strip i of image n shall lie;
// use(part, n, i, gradient) comes after it
template <class T, class Place, class Use>
INLINE void pool_norm_first(const T *a, const T *x, const T *weight, const T *bias, const uint8_t *corner,
                            const T *mean, const T *rstd, const T *d_weight, const T *d_bias, T slope,
                            const Place &place, const Use &use, Pooled s) {
  const Size channels = s.channels, count = s.images * s.height * s.width;
  T *scale = scratch<T, SUMS>(4 * channels), *shift = scale + channels, *of_x = shift + channels,
    *constant = of_x + channels;
  for (Size c = 0; c < channels; c++) {
    scale[c] = weight[c] * rstd[c], shift[c] = bias[c] - mean[c] * scale[c];
    of_x[c] = -scale[c] * rstd[c] * d_weight[c] / count;
    constant[c] = -scale[c] * d_bias[c] / count - of_x[c] * mean[c];
  }
  s.each([&](Size part, Size n, Size i) __attribute__((always_inline)) {
    const T *own_x = x + n * s.image() + s.strip(i);
    T *dx = place(n, i);
    s.template windows<T>(i, [&](Size j, Size c) {
      const Size p = s.kept(n, i, j) + c;
      const Mask<T> at = corners<T>(corner + p);
      Window<T> window(own_x, at, j, c, s);
      Vec<T> scaled = load(scale + c),
             own = scaled * active(scaled * window.kept + load(shift + c), load(a + p), slope);
      for (int q = 0; q < 4; q++)
        store(dx + s.corner(j, q) + c, load(of_x + c) * window.v[q] + load(constant + c) + (at == q ? own : Vec<T>{}));
    });
    s.template rest<T>(i,
                       [&](Size p, Size c) { store(dx + p, load(of_x + c) * load(own_x + p) + load(constant + c)); });
    use(part, n, i, dx);
  });
}

// What comes back to a, x and γ. all: the cotangents of dx, where make(n, i, u) has put those of strip i of image n;
// what comes back to x takes their place, and use(part, n, i, it) comes after it.
template <class T, class Make, class Use>
INLINE void pool_norm_second(T *all, const Make &make, const T *u_weight, const T *u_bias, const T *a, const T *x,
                             const T *weight, const T *bias, const uint8_t *corner, const T *mean, const T *rstd,
                             const T *d_weight, const T *d_bias, T slope, T *g_a, T *g_weight, const Use &use,
                             Pooled s) {
  const Size channels = s.channels;
  const T count = s.images * s.height * s.width;
  T *scale = scratch<T, SUMS>((7 + 3 + 3 * s.parts()) * channels), *shift = scale + channels,
    *shared = shift + channels, *of_u = shared + channels, *of_x = of_u + channels, *for_a = of_x + channels,
    *for_x = for_a + channels, *sums = for_x + channels, *of_each = sums + 3 * channels;
  for (Size c = 0; c < channels; c++) scale[c] = weight[c] * rstd[c], shift[c] = bias[c] - mean[c] * scale[c];
  s.each([&](Size part, Size n, Size i) __attribute__((always_inline)) {
    const T *own_x = x + n * s.image() + s.strip(i);
    T *u = all + n * s.image() + s.strip(i);
    make(n, i, u);
    T *t1 = of_each + part * 3 * channels, *t2 = t1 + channels, *ua = t2 + channels;
    if (i == s.first(part)) std::fill(t1, t1 + 3 * channels, T(0));
    s.template windows<T>(i, [&](Size j, Size c) {
      const Size p = s.kept(n, i, j) + c;
      const Mask<T> at = corners<T>(corner + p);
      Window<T> xs(own_x, at, j, c, s), us(u, at, j, c, s);
      Vec<T> own = active(load(scale + c) * xs.kept + load(shift + c), load(a + p), slope), sum{}, moment{};
      for (int q = 0; q < 4; q++) {
        sum += us.v[q];
        moment += us.v[q] * (xs.v[q] - load(mean + c));
      }
      store(t1 + c, load(t1 + c) + sum);
      store(t2 + c, load(t2 + c) + moment);
      store(ua + c, load(ua + c) + us.kept * own);
    });
    s.template rest<T>(i, [&](Size p, Size c) {
      Vec<T> v = load(u + p);
      store(t1 + c, load(t1 + c) + v);
      store(t2 + c, load(t2 + c) + v * (load(own_x + p) - load(mean + c)));
    });
  });
  total(of_each, s.parts(), 3 * channels, sums);
  for (Size c = 0; c < channels; c++) {
    T r = rstd[c], m1 = sums[c] / count, m2 = sums[channels + c] * r / count, s1 = d_bias[c] / count,
      s2 = d_weight[c] / count;
    T q = sums[2 * channels + c] / count - m1 * s1 - m2 * s2;
    shared[c] = r * ((u_weight ? u_weight[c] : 0) - scale[c] * m2);
    for_a[c] = (u_bias ? u_bias[c] : 0) - scale[c] * m1 - shared[c] * mean[c];
    of_u[c] = -scale[c] * r * s2;
    of_x[c] = -r * (scale[c] * r * q + of_u[c] * m2 + shared[c] * s2);
    for_x[c] = -of_u[c] * m1 - shared[c] * s1 - of_x[c] * mean[c];
    g_weight[c] = count * r * q;
  }
  s.each([&](Size part, Size n, Size i) __attribute__((always_inline)) {
    const T *own_x = x + n * s.image() + s.strip(i);
    T *u = all + n * s.image() + s.strip(i);
    s.template windows<T>(i, [&](Size j, Size c) {
      const Size p = s.kept(n, i, j) + c;
      const Mask<T> at = corners<T>(corner + p);
      Window<T> xs(own_x, at, j, c, s), us(u, at, j, c, s);
      Vec<T> scaled = load(scale + c), y = scaled * xs.kept + load(shift + c);
      Vec<T> own = load(shared + c) * active(y, load(a + p), slope);
      for (int q = 0; q < 4; q++)
        store(u + s.corner(j, q) + c,
              load(of_u + c) * us.v[q] + load(of_x + c) * xs.v[q] + load(for_x + c) + (at == q ? own : Vec<T>{}));
      store(g_a + p, active(y, scaled * us.kept + load(shared + c) * xs.kept + load(for_a + c), slope));
    });
    s.template rest<T>(i, [&](Size p, Size c) {
      store(u + p, load(of_u + c) * load(u + p) + load(of_x + c) * load(own_x + p) + load(for_x + c));
    });
    use(part, n, i, u);
  });
}

}  // namespace fewstep
