// A classifier: blocks, a linear map of what they give, and the mean cross-entropy of its outputs, with the gradients.
#pragma once

#include <cmath>
#include <limits>

#include "blocks.h"

namespace fewstep {

template <class T>
INLINE T dot(const T *a, const T *b, Size count) {
  Vec<T> sum{};
  for (Size k = 0; k < count; k += W<T>) sum += load(a + k) * load(b + k);
  T all = 0;
  for (Size k = 0; k < W<T>; k++) all += sum[k];
  return all;
}

template <class T>
INLINE void add(T *to, T factor, const T *from, Size count) {
  for (Size k = 0; k < count; k += W<T>) store(to + k, load(to + k) + factor * load(from + k));
}

// L = mean_n (log Σ_k exp o_nk − o_n,label), o = V h + c, and what L gives h, V and c. h has the channels last, a row
// of V the pixels. A label without an output makes L no number, and nothing else is then written.
template <class T>
INLINE void head(const T *h, const Size *labels, const T *weight, const T *bias, T *loss, T *d_h, T *d_weight,
                 T *d_bias, Size images, Size pixels, Size channels, Size ways) {
  const Size features = pixels * channels;
  T *turned = scratch<T, SUMS>(2 * ways * features + ways), *d_turned = turned + ways * features,
    *outputs = d_turned + ways * features;
  *loss = std::numeric_limits<T>::quiet_NaN();
  for (Size n = 0; n < images; n++)
    if (labels[n] < 0 || labels[n] >= ways) return;
  for (Size k = 0; k < ways; k++) transpose(weight + k * features, channels, pixels, turned + k * features);
  std::fill(d_turned, d_turned + ways * features, T(0));
  std::fill(d_bias, d_bias + ways, T(0));
  T sum = 0;
  for (Size n = 0; n < images; n++, h += features, d_h += features) {
    T all = 0, most = -std::numeric_limits<T>::infinity();
    for (Size k = 0; k < ways; k++) {
      outputs[k] = dot(h, turned + k * features, features) + bias[k];
      most = std::max(most, outputs[k]);
    }
    const T own = outputs[labels[n]] - most;
    for (Size k = 0; k < ways; k++) all += outputs[k] = std::exp(outputs[k] - most);
    sum += std::log(all) - own;
    std::fill(d_h, d_h + features, T(0));
    for (Size k = 0; k < ways; k++) {
      const T d = (outputs[k] / all - (k == labels[n])) / images;
      d_bias[k] += d;
      add(d_h, d, turned + k * features, features);
      add(d_turned + k * features, d, h, features);
    }
  }
  *loss = sum / images;
  for (Size k = 0; k < ways; k++) transpose(d_turned + k * features, pixels, channels, d_weight + k * features);
}

// L of images and labels, and what it gives vectors, filters, V and c: without a graph, in one call. room: for
// the maps between the blocks and after them, for their gradients, for z, for the largest dz and for the corners
template <class T>
void gradients(const T *x, const Size *labels, const T *vectors, const T *const *filters, const T *weight,
               const T *bias, T eps, T slope, T *loss, T *moments, T *d_vectors, T *const *d_filters, T *d_weight,
               T *d_bias, T *room, Size ways, Blocks b) {
  const Size between = b.after(b.count - 1), last = b.map(b.count);
  T *inner = room, *h = inner + between, *d_inner = h + last, *d_h = d_inner + between, *z = d_h + last,
    *dz = z + b.at(b.count);
  uint8_t *corner = reinterpret_cast<uint8_t *>(dz + b.map(b.first.in < W<T> ? 1 : 0));
  blocks<T>(x, vectors, filters, eps, slope, false, inner, h, moments, z, corner, b);
  const Sizes s = b[b.count];
  head<T>(h, labels, weight, bias, loss, d_h, d_weight, d_bias, s.images, s.height * s.width, b.channels(), ways);
  if (*loss == *loss)
    blocks_first<T>(d_h, nullptr, x, vectors, inner, moments, z, corner, filters, slope, nullptr, d_vectors, d_inner,
                    d_filters, dz, b);
}

}  // namespace fewstep
