#include "bfloat16_unit.h"

#include <atomic>

#include "hwy/base.h"

#if HWY_ARCH_X86_64
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12 takes the "undefined" operands inside its own intrinsics for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

// Beyond this line the compiler uses the unit's instructions; whatever else is included has to come
// before it.
HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512vl,avx512bf16")
#include "bfloat16_products.h"

namespace seqattn {
namespace {

// AVX512_BF16: Zen 4, Cooper Lake, Sapphire Rapids and later.
struct Avx512Dot {
  using Floats = __m512;
  using Pairs = __m512i;
  static constexpr std::size_t kLanes = 16;
  static constexpr std::size_t kSums = 24;  // of 32 registers

  static HWY_INLINE Floats zero() { return _mm512_setzero_ps(); }
  static HWY_INLINE Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static HWY_INLINE void store(Floats value, float* to) { _mm512_storeu_ps(to, value); }
  static HWY_INLINE Floats scale(Floats value, float factor) {
    return _mm512_mul_ps(value, _mm512_set1_ps(factor));
  }
  static HWY_INLINE Pairs load_pairs(const void* from) { return _mm512_loadu_si512(from); }
  static HWY_INLINE void store_pairs(Pairs value, void* to) { _mm512_storeu_si512(to, value); }
  static HWY_INLINE Pairs broadcast(const void* from) {
    int pair;
    __builtin_memcpy(&pair, from, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static HWY_INLINE Floats dot(Floats sums, Pairs a, Pairs b) {
    return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static HWY_INLINE void store_rounded(Floats first, Floats second, std::uint16_t* to) {
    store_pairs(reinterpret_cast<Pairs>(_mm512_cvtne2ps_pbh(second, first)), to);
  }
  static HWY_INLINE Pairs pair_up(Floats even, Floats odd) {
    return _mm512_permutex2var_epi16(rounded(even), zipped(), rounded(odd));
  }
  // Blocks of four lanes are one token's, or half a token's.
  static HWY_INLINE void split(std::size_t stride, Floats& x, Floats& y) {
    const Floats first = x, second = y;
    x = stride == 4 ? _mm512_shuffle_f32x4(first, second, 0x88)
                    : _mm512_shuffle_f32x4(first, second, 0x44);
    y = stride == 4 ? _mm512_shuffle_f32x4(first, second, 0xdd)
                    : _mm512_shuffle_f32x4(first, second, 0xee);
  }
  static HWY_INLINE Pairs finite(Pairs value, bool& all) {
    const Pairs exponent = _mm512_set1_epi16(0x7f80);
    const __mmask32 is_finite =
        _mm512_cmpneq_epi16_mask(_mm512_and_si512(value, exponent), exponent);
    all = all && is_finite == ~__mmask32{0};
    return _mm512_maskz_mov_epi16(is_finite, value);
  }
  static HWY_INLINE void interleave(Pairs& x, Pairs& y) {
    const Pairs first = x, second = y;
    x = _mm512_permutex2var_epi16(first, zipped(), second);
    y = _mm512_permutex2var_epi16(first, _mm512_add_epi16(zipped(), _mm512_set1_epi16(16)), second);
  }
  static HWY_INLINE void store_sums(Floats a, Floats b, Floats c, Floats d, float factor,
                                    float* to) {
    // Pairs of lanes, then pairs of pairs: each block of four lanes becomes [a b c d].
    const Floats ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const Floats cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d ab_pairs = _mm512_castps_pd(ab), cd_pairs = _mm512_castps_pd(cd);
    const Floats blocks = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab_pairs, cd_pairs)),
                                        _mm512_castpd_ps(_mm512_unpackhi_pd(ab_pairs, cd_pairs)));
    const Floats halves = _mm512_add_ps(blocks, _mm512_shuffle_f32x4(blocks, blocks, 0x4e));
    const Floats sums = _mm512_add_ps(halves, _mm512_shuffle_f32x4(halves, halves, 0xb1));
    _mm_storeu_ps(to, _mm512_castps512_ps128(scale(sums, factor)));
  }

 private:
  // In the lower half.
  static HWY_INLINE Pairs rounded(Floats value) {
    return _mm512_castsi256_si512(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
  }
  // Of two vectors: 0 of the first, 0 of the second, 1 of the first, and so on.
  static HWY_INLINE Pairs zipped() {
    const Pairs first = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const Pairs second = _mm512_add_epi32(first, _mm512_set1_epi32(32));
    return _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
  }
};

}  // namespace
}  // namespace seqattn
HWY_POP_ATTRIBUTES
#endif

namespace seqattn {
namespace {

std::atomic<const BFloat16Unit*> for_test{nullptr};

const BFloat16Unit* own_unit() {
#if HWY_ARCH_X86_64
  static constexpr BFloat16Unit unit = bfloat16_products::unit_of<Avx512Dot>("avx512_bf16");
  const bool has_it = __builtin_cpu_supports("avx512bf16") != 0 &&
                      __builtin_cpu_supports("avx512bw") != 0 &&
                      __builtin_cpu_supports("avx512vl") != 0;
  return has_it ? &unit : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace

const BFloat16Unit* bfloat16_unit() noexcept {
  const BFloat16Unit* const given = for_test.load();
  return given != nullptr ? given : own_unit();
}

void set_bfloat16_unit_for_test(const BFloat16Unit* unit) noexcept { for_test.store(unit); }

}  // namespace seqattn
