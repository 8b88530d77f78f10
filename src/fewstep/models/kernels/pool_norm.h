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

struct Pooled {
  Size images, height, width, channels;
  Size h() const { return height / 2; }
  Size w() const { return width / 2; }
  Size image() const { return height * width * channels; }  // numbers
  INLINE Size kept(Size n, Size i, Size j) const { return ((n * h() + i) * w() + j) * channels; }
  // Places in an image: of a pixel, and of the pixels of a window
  INLINE Size pixel(Size i, Size j) const { return (i * width + j) * channels; }
  INLINE Size corner(Size i, Size j, int q) const { return pixel(2 * i + q / 2, 2 * j + q % 2); }

  // f(place) for every pixel that no 2×2 window holds
  template <class F>
  INLINE void rest(F f) const {
    for (Size i = 0; i < height; i++)
      for (Size j = i < 2 * h() ? 2 * w() : 0; j < width; j++) f(pixel(i, j));
  }
};

// maps: a function from n to the maps x of image n, called once for each. given: normalise by the mean and variance
// that are there; else they become those of x.
template <class T, class Maps>
INLINE void pool_norm(const Maps &maps, const T *weight, const T *bias, T eps, T slope, bool given, T *y,
                      uint8_t *corner, T *mean, T *var, T *rstd, Pooled s) {
  const Size channels = s.channels, pixels = s.height * s.width;
  T *moments = scratch<T, SUMS>((s.images + 1) * 2 * channels);  // mean and squared deviations of each image
#pragma omp parallel for
  for (Size n = 0; n < s.images; n++) {
    const T *x = maps(n);
    T *own = moments + n * 2 * channels, *squares = own + channels;
    std::fill(own, own + 2 * channels, T(0));
    for (Size p = 0; !given && p < pixels; p++)
      for (Size c = 0; c < channels; c += W<T>) store(own + c, load(own + c) + load(x + p * channels + c));
    for (Size c = 0; c < channels; c++) own[c] /= pixels;
    for (Size i = 0; i < s.h(); i++)
      for (Size j = 0; j < s.w(); j++)
        for (Size c = 0; c < channels; c += W<T>) {
          Vec<T> v[4], sum{}, sign = load(weight + c) < 0 ? Vec<T>{} - 1 : Vec<T>{} + 1;
          for (int q = 0; q < 4; q++) {
            v[q] = load(x + s.corner(i, j, q) + c);
            Vec<T> d = v[q] - load(own + c);
            sum += d * d;
          }
          store(squares + c, load(squares + c) + sum);
          Vec<T> most = v[0] * sign;
          Mask<T> at{};
          for (int q = 1; q < 4; q++) {
            Vec<T> next = v[q] * sign;
            Mask<T> more = next > most || next != next;  // what is no number stays
            most = more ? next : most;
            at = more ? Mask<T>{} + q : at;
          }
          store(y + s.kept(n, i, j) + c, most * sign);
          if (corner) *(Bytes<T> *)(corner + s.kept(n, i, j) + c) = __builtin_convertvector(at, Bytes<T>);
        }
    s.rest([&](Size p) {
      for (Size c = 0; c < channels; c += W<T>) {
        Vec<T> d = load(x + p + c) - load(own + c);
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
    if (!given) mean[c] = all, var[c] = squares / (s.images * pixels);
    rstd[c] = 1 / std::sqrt(var[c] + eps);
    scale[c] = weight[c] * rstd[c];
    shift[c] = bias[c] - mean[c] * scale[c];
  }
#pragma omp parallel for
  for (Size n = 0; n < s.images; n++)
    for (Size p = s.kept(n, 0, 0); p < s.kept(n + 1, 0, 0); p += channels)
      for (Size c = 0; c < channels; c += W<T>) {
        Vec<T> v = load(scale + c) * load(y + p + c) + load(shift + c);
        store(y + p + c, active(v, v, slope));
      }
}

// A window of 2×2 pixels of image n, whose maps are x, and the one that pooling keeps
template <class T>
struct Window {
  Vec<T> v[4], kept{};
  INLINE Window(const T *x, const uint8_t *corner, Size n, Size i, Size j, Size c, Pooled s) {
    Mask<T> at = corners<T>(corner + s.kept(n, i, j) + c);
    for (int q = 0; q < 4; q++) {
      v[q] = load(x + s.corner(i, j, q) + c);
      kept = at == q ? v[q] : kept;
    }
  }
};

// dγ and dβ
template <class T>
INLINE void pool_norm_sums(const T *a, const T *x, const T *weight, const T *bias, const uint8_t *corner, const T *mean,
                           const T *rstd, T slope, T *d_weight, T *d_bias, Pooled s) {
  const Size channels = s.channels;
  T *scale = scratch<T, SUMS>((2 + 2 + 2 * s.images) * channels), *shift = scale + channels, *sums = shift + channels,
    *of_each = sums + 2 * channels;
  for (Size c = 0; c < channels; c++) scale[c] = weight[c] * rstd[c], shift[c] = bias[c] - mean[c] * scale[c];
#pragma omp parallel for
  for (Size n = 0; n < s.images; n++) {
    T *s1 = of_each + n * 2 * channels, *s2 = s1 + channels;
    std::fill(s1, s1 + 2 * channels, T(0));
    for (Size i = 0; i < s.h(); i++)
      for (Size j = 0; j < s.w(); j++)
        for (Size c = 0; c < channels; c += W<T>) {
          Vec<T> v = Window<T>(x + n * s.image(), corner, n, i, j, c, s).kept;
          Vec<T> own = active(load(scale + c) * v + load(shift + c), load(a + s.kept(n, i, j) + c), slope);
          store(s1 + c, load(s1 + c) + own);
          store(s2 + c, load(s2 + c) + own * (v - load(mean + c)));
        }
  }
  total(of_each, s.images, 2 * channels, sums);
  for (Size c = 0; c < channels; c++) d_bias[c] = sums[c], d_weight[c] = sums[channels + c] * rstd[c];
}

// dx from dγ and dβ. place: a function from n to where the gradient of image n shall lie; use(n, gradient) comes after
// it
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
#pragma omp parallel for
  for (Size n = 0; n < s.images; n++) {
    const T *own_x = x + n * s.image();
    T *dx = place(n);
    for (Size i = 0; i < s.h(); i++)
      for (Size j = 0; j < s.w(); j++)
        for (Size c = 0; c < channels; c += W<T>) {
          Window<T> window(own_x, corner, n, i, j, c, s);
          Size p = s.kept(n, i, j) + c;
          Vec<T> scaled = load(scale + c),
                 own = scaled * active(scaled * window.kept + load(shift + c), load(a + p), slope);
          Mask<T> at = corners<T>(corner + p);
          for (int q = 0; q < 4; q++)
            store(dx + s.corner(i, j, q) + c,
                  load(of_x + c) * window.v[q] + load(constant + c) + (at == q ? own : Vec<T>{}));
        }
    s.rest([&](Size p) {
      for (Size c = 0; c < channels; c += W<T>)
        store(dx + p + c, load(of_x + c) * load(own_x + p + c) + load(constant + c));
    });
    use(n, dx);
  }
}

// What comes back to a, x and γ. all: the cotangents of dx, where make(n, u) has put those of image n; what comes back
// to x takes their place, and use(n, it) comes after it.
template <class T, class Make, class Use>
INLINE void pool_norm_second(T *all, const Make &make, const T *u_weight, const T *u_bias, const T *a, const T *x,
                             const T *weight, const T *bias, const uint8_t *corner, const T *mean, const T *rstd,
                             const T *d_weight, const T *d_bias, T slope, T *g_a, T *g_weight, const Use &use,
                             Pooled s) {
  const Size channels = s.channels;
  const T count = s.images * s.height * s.width;
  T *scale = scratch<T, SUMS>((7 + 3 + 3 * s.images) * channels), *shift = scale + channels, *shared = shift + channels,
    *of_u = shared + channels, *of_x = of_u + channels, *for_a = of_x + channels, *for_x = for_a + channels,
    *sums = for_x + channels, *of_each = sums + 3 * channels;
  for (Size c = 0; c < channels; c++) scale[c] = weight[c] * rstd[c], shift[c] = bias[c] - mean[c] * scale[c];
#pragma omp parallel for
  for (Size n = 0; n < s.images; n++) {
    const T *own_x = x + n * s.image();
    T *u = all + n * s.image();
    make(n, u);
    T *t1 = of_each + n * 3 * channels, *t2 = t1 + channels, *ua = t2 + channels;
    std::fill(t1, t1 + 3 * channels, T(0));
    for (Size i = 0; i < s.h(); i++)
      for (Size j = 0; j < s.w(); j++)
        for (Size c = 0; c < channels; c += W<T>) {
          Window<T> xs(own_x, corner, n, i, j, c, s), us(u, corner, n, i, j, c, s);
          Vec<T> own = active(load(scale + c) * xs.kept + load(shift + c), load(a + s.kept(n, i, j) + c), slope), sum{},
                 moment{};
          for (int q = 0; q < 4; q++) {
            sum += us.v[q];
            moment += us.v[q] * (xs.v[q] - load(mean + c));
          }
          store(t1 + c, load(t1 + c) + sum);
          store(t2 + c, load(t2 + c) + moment);
          store(ua + c, load(ua + c) + us.kept * own);
        }
    s.rest([&](Size p) {
      for (Size c = 0; c < channels; c += W<T>) {
        Vec<T> v = load(u + p + c);
        store(t1 + c, load(t1 + c) + v);
        store(t2 + c, load(t2 + c) + v * (load(own_x + p + c) - load(mean + c)));
      }
    });
  }
  total(of_each, s.images, 3 * channels, sums);
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
#pragma omp parallel for
  for (Size n = 0; n < s.images; n++) {
    const T *own_x = x + n * s.image();
    T *u = all + n * s.image();
    for (Size i = 0; i < s.h(); i++)
      for (Size j = 0; j < s.w(); j++)
        for (Size c = 0; c < channels; c += W<T>) {
          Size p = s.kept(n, i, j) + c;
          Window<T> xs(own_x, corner, n, i, j, c, s), us(u, corner, n, i, j, c, s);
          Vec<T> scaled = load(scale + c), y = scaled * xs.kept + load(shift + c);
          Vec<T> own = load(shared + c) * active(y, load(a + p), slope);
          Mask<T> at = corners<T>(corner + p);
          for (int q = 0; q < 4; q++)
            store(u + s.corner(i, j, q) + c,
                  load(of_u + c) * us.v[q] + load(of_x + c) * xs.v[q] + load(for_x + c) + (at == q ? own : Vec<T>{}));
          store(g_a + p, active(y, scaled * us.kept + load(shared + c) * xs.kept + load(for_a + c), slope));
        }
    s.rest([&](Size p) {
      for (Size c = 0; c < channels; c += W<T>)
        store(u + p + c, load(of_u + c) * load(u + p + c) + load(of_x + c) * load(own_x + p + c) + load(for_x + c));
    });
    use(n, u);
  }
}

}  // namespace fewstep
