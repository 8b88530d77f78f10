// What a Conv4 spends its time on, for maps with the channels last in memory: 3×3 convolutions, and blocks one after
// another of such a convolution, batch norm, max-pooling and activation. All is a template of the number type; loops
// run over vectors of channels, so that the number of filters is a multiple of what a register holds. Python calls the
// functions at the end, by ctypes.

#include "classifier.h"

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
  void blocks_##S(const T *x, const T *vectors, const T *const *filters, double eps, double slope, Size given,         \
                  T *inner, T *y, T *moments, T *z, uint8_t *corner, Size count, Size n, Size h, Size width, Size in,  \
                  Size out, Size groups) {                                                                             \
    fewstep::blocks<T>(x, vectors, filters, eps, slope, given, inner, y, moments, z, corner,                           \
                       {count, {n, h, width, in, out, groups}});                                                       \
  }                                                                                                                    \
  void blocks_first_##S(const T *a, const T *a_inner, const T *x, const T *vectors, const T *inner, const T *moments,  \
                        const T *z, const uint8_t *corner, const T *const *filters, double slope, T *dx, T *d_vectors, \
                        T *d_inner, T *const *d_filters, T *room, Size count, Size n, Size h, Size width, Size in,     \
                        Size out, Size groups) {                                                                       \
    fewstep::blocks_first<T>(a, a_inner, x, vectors, inner, moments, z, corner, filters, slope, dx, d_vectors,         \
                             d_inner, d_filters, room, {count, {n, h, width, in, out, groups}});                       \
  }                                                                                                                    \
  void blocks_second_##S(const T *u_x, const T *u_vectors, const T *const *u_filters, const T *a, const T *x,          \
                         const T *vectors, const T *inner, const T *moments, const T *z, const uint8_t *corner,        \
                         const T *const *filters, const T *d_vectors, const T *d_inner, double slope, T *g_a,          \
                         T *g_a_inner, T *g_x, T *g_vectors, T *g_inner, T *const *g_filters, T *room, Size count,     \
                         Size n, Size h, Size width, Size in, Size out, Size groups) {                                 \
    fewstep::blocks_second<T>(u_x, u_vectors, u_filters, a, x, vectors, inner, moments, z, corner, filters, d_vectors, \
                              d_inner, slope, g_a, g_a_inner, g_x, g_vectors, g_inner, g_filters, room,                \
                              {count, {n, h, width, in, out, groups}});                                                \
  }                                                                                                                    \
  void gradients_##S(const T *x, const Size *labels, const T *vectors, const T *const *filters, const T *weight,       \
                     const T *bias, double eps, double slope, T *loss, T *moments, T *d_vectors, T *const *d_filters,  \
                     T *d_weight, T *d_bias, T *room, Size ways, Size count, Size n, Size h, Size width, Size in,      \
                     Size out, Size groups) {                                                                          \
    fewstep::gradients<T>(x, labels, vectors, filters, weight, bias, eps, slope, loss, moments, d_vectors, d_filters,  \
                          d_weight, d_bias, room, ways, {count, {n, h, width, in, out, groups}});                      \
  }
FUNCTIONS(float, f32)
FUNCTIONS(double, f64)
}
