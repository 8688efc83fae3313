#pragma once

// Values of 16 bytes by one load and one store: the compiler takes those with parts that are
// smaller than a word apart.
namespace seqattn {

template <class T>
__device__ __forceinline__ T load_whole(const T& from) {
  static_assert(sizeof(T) == sizeof(int4) && alignof(T) == alignof(int4));
  return __builtin_bit_cast(T, reinterpret_cast<const int4&>(from));
}

template <class T>
__device__ __forceinline__ void store_whole(T& to, const T& value) {
  static_assert(sizeof(T) == sizeof(int4) && alignof(T) == alignof(int4));
  reinterpret_cast<int4&>(to) = __builtin_bit_cast(int4, value);
}

}  // namespace seqattn
