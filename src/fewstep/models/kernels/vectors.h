// Vector registers and memory: what all kernels share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

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

// Where the part of a thread begins when several share `count` numbers, by whole registers
template <class T>
Size share(Size count, Size thread, Size threads) {
  return count / W<T> * thread / threads * W<T>;
}

// Memory of this thread that outlives the call; who asks for the same purpose again takes it over. SHARED is asked for
// outside of parallel regions and read by all threads inside, OWN is asked for inside.
enum Purpose { SHARED, OWN };
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

// Of a convolution; channels are those of a group.
struct Sizes {
  Size images, height, width, in, out, groups;
  Size down() const { return (height + 1) / 2; }  // tiles of 2×2 pixels
  Size right() const { return (width + 1) / 2; }
  Size tiles() const { return images * down() * right(); }
};

}  // namespace fewstep
