// Vector registers and memory: what all kernels share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads() { return 1; }
#endif

#ifdef __AVX512F__
constexpr int BYTES = 64;  // of a vector register
#else
constexpr int BYTES = 32;
#endif

#define INLINE inline __attribute__((always_inline))

namespace fewstep {

using Size = int64_t;

template <class T>
struct Register {
  typedef T type __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vec = typename Register<T>::type;
template <class T>
constexpr Size W = BYTES / sizeof(T);

template <class T>
INLINE Vec<T> load(const T *p) {
  return *(const Vec<T> *)p;
}
template <class T>
INLINE void store(T *p, Vec<T> v) {
  *(Vec<T> *)p = v;
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

// Turn a square of numbers: numbers whose places differ by S change places, for every power of two S
template <class T, Size S, Size... L>
INLINE void exchange(Vec<T> &a, Vec<T> &b, std::integer_sequence<Size, L...>) {
#ifdef SHUFFLES
  Vec<T> first = __builtin_shufflevector(a, b, (L & S ? W<T> + L - S : L)...);
  b = __builtin_shufflevector(a, b, (L & S ? W<T> + L : L + S)...);
  a = first;
#else
  for (Size l = 0; l < W<T>; l++)
    if (!(l & S)) std::swap(((T *)&a)[l + S], ((T *)&b)[l]);
#endif
}
template <class T, Size S = 1>
INLINE void transpose(Vec<T> (&rows)[W<T>]) {
#pragma GCC unroll 16
  for (Size i = 0; i < W<T>; i++)
    if (!(i & S)) exchange<T, S>(rows[i], rows[i + S], std::make_integer_sequence<Size, W<T>>{});
  if constexpr (2 * S < W<T>) transpose<T, 2 * S>(rows);
}

// Where the part of a thread begins when several share `count` numbers, by whole registers
template <class T>
Size share(Size count, Size thread, Size threads) {
  return count / W<T> * thread / threads * W<T>;
}

// Memory of this thread that outlives the call, for filters or products by filters, gradients of filters, sums over
// images, tiles or lines, the maps of a strip; who asks for the same purpose again takes it over. GRADIENT and SUMS are
// asked for outside of parallel regions and read by all threads inside, TILES and STRIP are asked for inside, FILTERS
// wherever they are made.
enum Purpose { FILTERS, GRADIENT, SUMS, TILES, STRIP };
template <class T, Purpose>
T *scratch(Size count) {
  static thread_local struct Block {
    T *data = nullptr;
    Size size = 0;
    ~Block() { std::free(data); }
  } block;
  if (count > block.size) {
    std::free(block.data);
    block.data = static_cast<T *>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
    if (!block.data) std::abort();  // as unlikely as it is hopeless
    block.size = count;
  }
  return block.data;
}

// Sums over parts, in the order of the parts whatever the number of threads.
template <class T>
INLINE void total(const T *of_each, Size parts, Size count, T *out) {
  std::fill(out, out + count, T(0));
  for (Size part = 0; part < parts; part++)
    for (Size c = 0; c < count; c++) out[c] += of_each[part * count + c];
}

// Of a convolution; channels are those of a group.
struct Sizes {
  Size images, height, width, in, out, groups;
  Size down() const { return (height + 1) / 2; }  // tiles of 2×2 pixels
  Size right() const { return (width + 1) / 2; }
  Size tiles() const { return images * down() * right(); }
};

}  // namespace fewstep
