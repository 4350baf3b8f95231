//! AVX-512 and AVX2.
//!
//! What is one instruction in both, or the same steps at another width, is written once (`same`); the rest stands with
//! its instructions.

use super::simd::{Simd, Task};
use std::arch::x86_64::*;

/// A proof that the CPU has instructions, and the function that a task runs inside of to be compiled for them.
macro_rules! instructions {
    ($(#[$about:meta])* $name:ident, $inside:ident, $($feature:tt),+) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug)]
        pub(super) struct $name(());

        impl $name {
            pub(super) fn found() -> Option<Self> {
                let found = $(is_x86_feature_detected!($feature))&&+;
                found.then_some($name(()))
            }
        }

        #[target_feature($(enable = $feature),+)]
        fn $inside<T: Task>(s: $name, task: T) -> T::Out {
            task.run(s)
        }
    };
}

instructions! {
    /// AVX-512 F, BW, DQ and VL; only [`Avx512::found`] makes one.
    Avx512, inside512, "avx512f", "avx512bw", "avx512dq", "avx512vl"
}

instructions! {
    /// AVX2, FMA and F16C; only [`Avx2::found`] makes one.
    Avx2, inside256, "avx2", "fma", "f16c"
}

/// An expression of instructions that the CPU has.
macro_rules! has {
    ($work:expr) => {
        // SAFETY: `self` exists only where its instructions were found; slices were cut to a vector's length.
        unsafe { $work }
    };
}

/// What both sets do alike, given the function around a task, lanes, types and the names of the instructions. (A
/// generic function would not do: intrinsics have no trait in common.)
macro_rules! same {
    (
        $inside:ident: $lanes:literal lanes of $F:ident and $W:ident,
        splat: $splat:ident, load: $load:ident, store: $store:ident, halves: $halves:ident($half_vector:ident),
        words: $words:ident, floats: $floats:ident, fma: $fma:ident, next: $shift:ident, down: $shift_by:ident
    ) => {
        const LANES: usize = $lanes;
        type F = $F;
        type W = $W;

        fn run<T: Task>(self, task: T) -> T::Out {
            has!($inside(self, task))
        }

        #[inline(always)]
        fn splat(self, x: f32) -> $F {
            has!($splat(x))
        }

        #[inline(always)]
        fn load(self, from: &[f32]) -> $F {
            has!($load(from[..$lanes].as_ptr()))
        }

        #[inline(always)]
        fn halves(self, from: &[u16]) -> $F {
            has!($halves($half_vector(from[..$lanes].as_ptr().cast())))
        }

        #[inline(always)]
        fn store(self, x: $F, to: &mut [f32]) {
            has!($store(to[..$lanes].as_mut_ptr(), x))
        }

        #[inline(always)]
        fn fma(self, a: $F, b: $F, c: $F) -> $F {
            has!($fma(a, b, c))
        }

        #[inline(always)]
        fn words(self, from: &[u32]) -> $W {
            has!($words(from[..$lanes].as_ptr().cast()))
        }

        #[inline(always)]
        fn next<const BITS: usize>(self, x: $W) -> $W {
            match BITS {
                2 => has!($shift::<2>(x)),
                4 => has!($shift::<4>(x)),
                _ => has!($shift::<8>(x)),
            }
        }

        #[inline(always)]
        fn down(self, x: $W, bits: usize) -> $W {
            has!($shift_by(x, _mm_cvtsi32_si128(bits as i32)))
        }

        #[inline(always)]
        fn floats(self, x: $W) -> $F {
            has!($floats(x))
        }

        #[inline(always)]
        fn quarters(self, x: [$F; 4]) -> [[f32; 4]; 4] {
            let mut to = [[0.0; 4]; 4];
            self.store(self.columns(x), to.as_flattened_mut());
            to
        }

        #[inline(always)]
        fn fetch(self, line: *const u8, soon: bool) {
            if soon {
                has!(_mm_prefetch::<_MM_HINT_T0>(line.cast()))
            } else {
                has!(_mm_prefetch::<_MM_HINT_T1>(line.cast()))
            }
        }
    };
}

/// The sums of the lanes `4q..4q + 4` of `a`, `b`, `c` and `d` in lanes `4q` to `4q + 3`.
macro_rules! columns {
    ($F:ident, $add:ident, $low:ident, $high:ident, $shuffle:ident) => {
        #[inline(always)]
        fn columns(self, [a, b, c, d]: [$F; 4]) -> $F {
            has!({
                let low = $add($low(a, b), $high(a, b));
                let high = $add($low(c, d), $high(c, d));
                $add($shuffle::<0x44>(low, high), $shuffle::<0xee>(low, high))
            })
        }
    };
}

impl Avx512 {
    columns!(__m512, _mm512_add_ps, _mm512_unpacklo_ps, _mm512_unpackhi_ps, _mm512_shuffle_ps);
}

impl Simd for Avx512 {
    const HEADS: usize = 4;
    same!(
        inside512: 16 lanes of __m512 and __m512i,
        splat: _mm512_set1_ps, load: _mm512_loadu_ps, store: _mm512_storeu_ps, halves: _mm512_cvtph_ps(_mm256_loadu_si256),
        words: _mm512_loadu_si512, floats: _mm512_castsi512_ps, fma: _mm512_fmadd_ps, next: _mm512_srli_epi32, down: _mm512_srl_epi32
    );

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
    fn pair(self, x: __m512i) -> (__m512, __m512) {
        has!((
            _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)),
            _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(x)))
        ))
    }

    #[inline(always)]
    fn pick(self, x: __m512, lanes: __m512i) -> __m512 {
        has!(_mm512_permutexvar_ps(lanes, x))
    }

    #[inline(always)]
    fn totals(self, x: [__m512; 4]) -> [f32; 4] {
        let sums = self.columns(x);
        has!({
            let sums = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps::<1>(sums));
            let sums = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
            let mut to = [0.0; 4];
            _mm_storeu_ps(to.as_mut_ptr(), sums);
            to
        })
    }
}

impl Avx2 {
    columns!(__m256, _mm256_add_ps, _mm256_unpacklo_ps, _mm256_unpackhi_ps, _mm256_shuffle_ps);
}

impl Simd for Avx2 {
    const HEADS: usize = 2;
    same!(
        inside256: 8 lanes of __m256 and __m256i,
        splat: _mm256_set1_ps, load: _mm256_loadu_ps, store: _mm256_storeu_ps, halves: _mm256_cvtph_ps(_mm_loadu_si128),
        words: _mm256_loadu_si256, floats: _mm256_castsi256_ps, fma: _mm256_fmadd_ps, next: _mm256_srli_epi32, down: _mm256_srl_epi32
    );

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
    fn pick(self, x: __m256, lanes: __m256i) -> __m256 {
        has!(_mm256_permutevar8x32_ps(x, lanes))
    }

    #[inline(always)]
    fn totals(self, x: [__m256; 4]) -> [f32; 4] {
        let [a, b, ..] = self.quarters(x);
        [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
    }
}
