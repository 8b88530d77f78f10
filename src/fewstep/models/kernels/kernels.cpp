// What a Conv4 spends its time on, for maps with the channels last in memory: 3×3 convolutions, and batch norm with
// max-pooling and activation. All is a template of the number type; loops run over vectors of channels, so that the
// number of filters is a multiple of what a register holds. Python calls the functions at the end, by ctypes.

#include "patches.h"
#include "pool_norm.h"
#include "winograd.h"

namespace fewstep {

template <class T>
void convolve(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, bool turned, Sizes z) {
  if (z.in % W<T>)
    patchwise(pairs, x, w, bias, y, z);
  else
    winograd(pairs, x, w, bias, y, turned, z);
}

template <class T>
void correlate(Size pairs, const T *const *x, const T *const *a, T *dw, Sizes z) {
  if (z.in % W<T>)
    patchwise_gradient(pairs, x, a, dw, z);
  else
    winograd_gradient(pairs, x, a, dw, z);
}

static Sizes turned(Sizes z) { return {z.images, z.height, z.width, z.out, z.in, z.groups}; }
static Pooled pooled(Sizes z) { return {z.images, z.height, z.width, z.groups * z.out}; }

template <class T>
void block(const T *x, const T *w, const T *shift, const T *weight, const T *bias, T eps, T slope, T *z, T *y, T *kept,
           uint8_t *corner, T *mean, T *var, T *rstd, Sizes s) {
  convolve<T>(1, &x, &w, shift, z, false, s);
  pool_norm(z, weight, bias, eps, slope, y, kept, corner, mean, var, rstd, pooled(s));
}

template <class T>
void block_first(const T *a, const T *x, const T *w, const T *weight, const T *bias, const T *mean, const T *rstd,
                 const T *z, const T *kept, const uint8_t *corner, T slope, T *dx, T *dw, T *d_weight, T *d_bias, T *dz,
                 Sizes s) {
  pool_norm_first(a, z, weight, bias, kept, corner, mean, rstd, slope, dz, d_weight, d_bias, pooled(s));
  const T *maps = dz;
  if (dx) convolve<T>(1, &maps, &w, nullptr, dx, true, turned(s));
  correlate<T>(1, &x, &maps, dw, s);
}

// Cotangents that are null are zero; room: for two maps like z
template <class T>
void block_second(const T *u_x, const T *u_w, const T *u_weight, const T *u_bias, const T *a, const T *x, const T *w,
                  const T *weight, const T *bias, const T *mean, const T *rstd, const T *z, const T *kept,
                  const uint8_t *corner, const T *d_weight, const T *d_bias, const T *dz, T slope, T *g_a, T *g_x,
                  T *g_w, T *g_weight, T *room, Sizes s) {
  const Size map = s.images * s.height * s.width * s.groups * s.out;
  T *u_z = room, *g_z = room + map;
  const T *maps[2] = {u_x, x}, *filters[2] = {w, u_w};
  if (u_x || u_w)
    convolve<T>((u_x != nullptr) + (u_w != nullptr), maps + !u_x, filters + !u_x, nullptr, u_z, false, s);
  else
    std::fill(u_z, u_z + map, T(0));
  pool_norm_second(u_z, u_weight, u_bias, a, z, weight, bias, kept, corner, mean, rstd, d_weight, d_bias, slope, g_a,
                   g_z, g_weight, pooled(s));
  const T *inputs[2] = {x, u_x}, *outputs[2] = {g_z, dz};
  if (g_x) convolve<T>(1 + (u_w != nullptr), outputs, filters, nullptr, g_x, true, turned(s));
  correlate<T>(1 + (u_x != nullptr), inputs, outputs, g_w, s);
}

}  // namespace fewstep

using fewstep::Size;

extern "C" {
Size vector_bytes() { return BYTES; }
Size built_from() { return BUILT_FROM; }  // a checksum of these files

#define FUNCTIONS(T, S)                                                                                                \
  void convolve_##S(Size pairs, const T *const *x, const T *const *w, const T *bias, T *y, Size turned, Size n,        \
                    Size h, Size width, Size in, Size out, Size groups) {                                              \
    fewstep::convolve<T>(pairs, x, w, bias, y, turned, {n, h, width, in, out, groups});                                \
  }                                                                                                                    \
  void correlate_##S(Size pairs, const T *const *x, const T *const *a, T *dw, Size n, Size h, Size width, Size in,     \
                     Size out, Size groups) {                                                                          \
    fewstep::correlate<T>(pairs, x, a, dw, {n, h, width, in, out, groups});                                            \
  }                                                                                                                    \
  void block_##S(const T *x, const T *w, const T *shift, const T *weight, const T *bias, double eps, double slope,     \
                 T *z, T *y, T *kept, uint8_t *corner, T *mean, T *var, T *rstd, Size n, Size h, Size width, Size in,  \
                 Size out, Size groups) {                                                                              \
    fewstep::block<T>(x, w, shift, weight, bias, eps, slope, z, y, kept, corner, mean, var, rstd,                      \
                      {n, h, width, in, out, groups});                                                                 \
  }                                                                                                                    \
  void block_first_##S(const T *a, const T *x, const T *w, const T *weight, const T *bias, const T *mean,              \
                       const T *rstd, const T *z, const T *kept, const uint8_t *corner, double slope, T *dx, T *dw,    \
                       T *d_weight, T *d_bias, T *dz, Size n, Size h, Size width, Size in, Size out, Size groups) {    \
    fewstep::block_first<T>(a, x, w, weight, bias, mean, rstd, z, kept, corner, slope, dx, dw, d_weight, d_bias, dz,   \
                            {n, h, width, in, out, groups});                                                           \
  }                                                                                                                    \
  void block_second_##S(const T *u_x, const T *u_w, const T *u_weight, const T *u_bias, const T *a, const T *x,        \
                        const T *w, const T *weight, const T *bias, const T *mean, const T *rstd, const T *z,          \
                        const T *kept, const uint8_t *corner, const T *d_weight, const T *d_bias, const T *dz,         \
                        double slope, T *g_a, T *g_x, T *g_w, T *g_weight, T *room, Size n, Size h, Size width,        \
                        Size in, Size out, Size groups) {                                                              \
    fewstep::block_second<T>(u_x, u_w, u_weight, u_bias, a, x, w, weight, bias, mean, rstd, z, kept, corner, d_weight, \
                             d_bias, dz, slope, g_a, g_x, g_w, g_weight, room, {n, h, width, in, out, groups});        \
  }
FUNCTIONS(float, f32)
FUNCTIONS(double, f64)
}
