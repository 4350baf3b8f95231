//! AVX-512 and AVX2.

use super::simd::{Simd, Task};
use std::arch::x86_64::*;

/// AVX-512 F, BW, DQ and VL; only [`Avx512::found`] makes one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

/// AVX2, FMA and F16C; only [`Avx2::found`] makes one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx512 {
    pub(super) fn found() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        found.then_some(Avx512(()))
    }
}

impl Avx2 {
    pub(super) fn found() -> Option<Self> {
        let found =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        found.then_some(Avx2(()))
    }
}

/// An expression of instructions that the CPU has.
macro_rules! has {
    ($work:expr) => {
        // SAFETY: `self` exists only where its instructions were found; slices were cut to a vector's length.
        unsafe { $work }
    };
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn inside512<T: Task>(s: Avx512, task: T) -> T::Out {
    task.run(s)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn inside256<T: Task>(s: Avx2, task: T) -> T::Out {
    task.run(s)
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const HEADS: usize = 4;
    type F = __m512;
    type W = __m512i;

    fn run<T: Task>(self, task: T) -> T::Out {
        has!(inside512(self, task))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        has!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        has!(_mm512_loadu_ps(from[..16].as_ptr()))
    }

    #[inline(always)]
    fn halves(self, from: &[u16]) -> __m512 {
        has!(_mm512_cvtph_ps(_mm256_loadu_si256(from[..16].as_ptr().cast())))
    }

    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32]) {
        has!(_mm512_storeu_ps(to[..16].as_mut_ptr(), x))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        has!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn words(self, from: &[u32]) -> __m512i {
        has!(_mm512_loadu_si512(from[..16].as_ptr().cast()))
    }

    #[inline(always)]
    fn gather(self, from: &[u32], places: __m512i) -> __m512i {
        let last = i32::try_from(from.len()).unwrap_or(i32::MAX) - 1;
        assert!(last >= 0, "a slice to gather from is not empty");
        // No place is past the last element.
        has!({
            let places = _mm512_min_epu32(places, _mm512_set1_epi32(last));
            _mm512_i32gather_epi32::<4>(places, from.as_ptr().cast())
        })
    }

    /// A table of sixteen floats is one instruction, and it looks at the lowest four bits alone.
    #[inline(always)]
    fn code<const BITS: usize>(self, x: __m512i) -> __m512 {
        match BITS {
            2 => has!(_mm512_permutexvar_ps(
                x,
                _mm512_setr_ps(0., 1., 2., 3., 0., 1., 2., 3., 0., 1., 2., 3., 0., 1., 2., 3.)
            )),
            4 => has!(_mm512_permutexvar_ps(
                x,
                _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.)
            )),
            _ => has!(_mm512_cvtepi32_ps(_mm512_and_si512(x, _mm512_set1_epi32(255)))),
        }
    }

    #[inline(always)]
    fn next<const BITS: usize>(self, x: __m512i) -> __m512i {
        match BITS {
            2 => has!(_mm512_srli_epi32::<2>(x)),
            4 => has!(_mm512_srli_epi32::<4>(x)),
            _ => has!(_mm512_srli_epi32::<8>(x)),
        }
    }

    #[inline(always)]
    fn down(self, x: __m512i, bits: usize) -> __m512i {
        has!(_mm512_srl_epi32(x, _mm_cvtsi32_si128(bits as i32)))
    }

    #[inline(always)]
    fn pair(self, x: __m512i) -> (__m512, __m512) {
        has!((
            _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)),
            _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(x)))
        ))
    }

    #[inline(always)]
    fn floats(self, x: __m512i) -> __m512 {
        has!(_mm512_castsi512_ps(x))
    }

    #[inline(always)]
    fn pick(self, x: __m512, lanes: __m512i) -> __m512 {
        has!(_mm512_permutexvar_ps(lanes, x))
    }

    #[inline(always)]
    fn quarters(self, [a, b, c, d]: [__m512; 4]) -> [[f32; 4]; 4] {
        has!({
            let low = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let high = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let sums = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(low, high), _mm512_shuffle_ps::<0xee>(low, high));
            let mut to = [[0.0; 4]; 4];
            _mm512_storeu_ps(to.as_mut_ptr().cast(), sums);
            to
        })
    }

    #[inline(always)]
    fn totals(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        has!({
            let low = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let high = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let sums = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(low, high), _mm512_shuffle_ps::<0xee>(low, high));
            let sums = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps::<1>(sums));
            let sums = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
            let mut to = [0.0; 4];
            _mm_storeu_ps(to.as_mut_ptr(), sums);
            to
        })
    }

    #[inline(always)]
    fn fetch(self, line: *const u8, soon: bool) {
        if soon {
            has!(_mm_prefetch::<_MM_HINT_T0>(line.cast()))
        } else {
            has!(_mm_prefetch::<_MM_HINT_T1>(line.cast()))
        }
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const HEADS: usize = 2;
    type F = __m256;
    type W = __m256i;

    fn run<T: Task>(self, task: T) -> T::Out {
        has!(inside256(self, task))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        has!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        has!(_mm256_loadu_ps(from[..8].as_ptr()))
    }

    #[inline(always)]
    fn halves(self, from: &[u16]) -> __m256 {
        has!(_mm256_cvtph_ps(_mm_loadu_si128(from[..8].as_ptr().cast())))
    }

    #[inline(always)]
    fn store(self, x: __m256, to: &mut [f32]) {
        has!(_mm256_storeu_ps(to[..8].as_mut_ptr(), x))
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        has!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn words(self, from: &[u32]) -> __m256i {
        has!(_mm256_loadu_si256(from[..8].as_ptr().cast()))
    }

    #[inline(always)]
    fn gather(self, from: &[u32], places: __m256i) -> __m256i {
        let last = i32::try_from(from.len()).unwrap_or(i32::MAX) - 1;
        assert!(last >= 0, "a slice to gather from is not empty");
        // No place is past the last element.
        has!({
            let places = _mm256_min_epu32(places, _mm256_set1_epi32(last));
            _mm256_i32gather_epi32::<4>(from.as_ptr().cast(), places)
        })
    }

    #[inline(always)]
    fn code<const BITS: usize>(self, x: __m256i) -> __m256 {
        has!(_mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32((1 << BITS) - 1))))
    }

    #[inline(always)]
    fn next<const BITS: usize>(self, x: __m256i) -> __m256i {
        match BITS {
            2 => has!(_mm256_srli_epi32::<2>(x)),
            4 => has!(_mm256_srli_epi32::<4>(x)),
            _ => has!(_mm256_srli_epi32::<8>(x)),
        }
    }

    #[inline(always)]
    fn down(self, x: __m256i, bits: usize) -> __m256i {
        has!(_mm256_srl_epi32(x, _mm_cvtsi32_si128(bits as i32)))
    }

    #[inline(always)]
    fn pair(self, x: __m256i) -> (__m256, __m256) {
        has!({
            // Lower halves of the words go to the lower eight bytes of each quarter, upper ones above them.
            let order = _mm256_setr_epi8(
                0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, //
                0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
            );
            let x = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(x, order));
            (_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(x)))
        })
    }

    #[inline(always)]
    fn floats(self, x: __m256i) -> __m256 {
        has!(_mm256_castsi256_ps(x))
    }

    #[inline(always)]
    fn pick(self, x: __m256, lanes: __m256i) -> __m256 {
        has!(_mm256_permutevar8x32_ps(x, lanes))
    }

    #[inline(always)]
    fn quarters(self, [a, b, c, d]: [__m256; 4]) -> [[f32; 4]; 4] {
        has!({
            let low = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let high = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let sums = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(low, high), _mm256_shuffle_ps::<0xee>(low, high));
            let mut to = [[0.0; 4]; 4];
            _mm256_storeu_ps(to.as_mut_ptr().cast(), sums);
            to
        })
    }

    #[inline(always)]
    fn totals(self, x: [__m256; 4]) -> [f32; 4] {
        let [a, b, ..] = self.quarters(x);
        [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
    }

    #[inline(always)]
    fn fetch(self, line: *const u8, soon: bool) {
        if soon {
            has!(_mm_prefetch::<_MM_HINT_T0>(line.cast()))
        } else {
            has!(_mm_prefetch::<_MM_HINT_T1>(line.cast()))
        }
    }
}
