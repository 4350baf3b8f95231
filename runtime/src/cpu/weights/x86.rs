//! Dot products of stored rows with AVX-512 and AVX2.

use crate::dtype::DType;
use crate::layout::code_at;
use std::arch::x86_64::*;
use std::sync::LazyLock;

/// An instruction set; exists only where the CPU has it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wide {
    /// AVX-512 F, BW and VL.
    Avx512(Proof),
    /// AVX2, FMA and F16C.
    Avx2(Proof),
}

/// Only [`Wide::best`] makes one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proof(());

impl Wide {
    pub(super) fn best() -> Option<Wide> {
        static BEST: LazyLock<Option<Wide>> = LazyLock::new(|| {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
            {
                return Some(Wide::Avx512(Proof(())));
            }
            let all =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            all.then_some(Wide::Avx2(Proof(())))
        });
        *BEST
    }

    /// f16 values in f32.
    pub(super) fn widen(self, halves: &[u16], to: &mut Vec<f32>) {
        to.resize(halves.len(), 0.0);
        // SAFETY: `self` exists only where `best` found the features (AVX-512 F has the conversion too).
        unsafe {
            match self {
                Wide::Avx512(_) => widen512(halves, to),
                Wide::Avx2(_) => widen256(halves, to),
            }
        }
    }

    /// Dot product of a stored row (scales in f32, one for `group` elements) with `x`; `None` for dtypes
    /// and groups that it does not take.
    pub(super) fn dot(self, dtype: DType, row: &[u8], group: usize, scales: &[f32], x: &[f32]) -> Option<f32> {
        let floats = matches!(dtype, DType::F16 | DType::Bf16);
        let integers = matches!(dtype, DType::I8 | DType::I6 | DType::I4)
            && group > 0
            && group.is_multiple_of(16)
            && scales.len() == x.len().div_ceil(group);
        if row.len() < dtype.row_bytes(x.len()) || !(floats || integers) {
            return None;
        }
        let group = if floats { usize::MAX } else { group };
        // SAFETY: `self` exists only where `best` found the features; the row has all of its elements.
        Some(unsafe {
            match (self, dtype) {
                (Wide::Avx512(_), DType::F16) => dot512::<0>(row, group, scales, x),
                (Wide::Avx512(_), DType::Bf16) => dot512::<1>(row, group, scales, x),
                (Wide::Avx512(_), DType::I8) => dot512::<2>(row, group, scales, x),
                (Wide::Avx512(_), DType::I6) => dot512::<3>(row, group, scales, x),
                (Wide::Avx512(_), _) => dot512::<4>(row, group, scales, x),
                (Wide::Avx2(_), DType::F16) => dot256::<0>(row, group, scales, x),
                (Wide::Avx2(_), DType::Bf16) => dot256::<1>(row, group, scales, x),
                (Wide::Avx2(_), DType::I8) => dot256::<2>(row, group, scales, x),
                (Wide::Avx2(_), DType::I6) => dot256::<3>(row, group, scales, x),
                (Wide::Avx2(_), _) => dot256::<4>(row, group, scales, x),
            }
        })
    }
}

#[target_feature(enable = "avx512f")]
fn widen512(halves: &[u16], to: &mut [f32]) {
    let (from, from_rest) = halves.as_chunks::<16>();
    let (to, to_rest) = to.as_chunks_mut::<16>();
    for (from, to) in from.iter().zip(to) {
        // SAFETY: both chunks have sixteen elements.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()))) };
    }
    from_rest.iter().zip(to_rest).for_each(|(&from, to)| *to = half::f16::from_bits(from).to_f32());
}

#[target_feature(enable = "avx2,f16c")]
fn widen256(halves: &[u16], to: &mut [f32]) {
    let (from, from_rest) = halves.as_chunks::<8>();
    let (to, to_rest) = to.as_chunks_mut::<8>();
    for (from, to) in from.iter().zip(to) {
        // SAFETY: both chunks have eight elements.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()))) };
    }
    from_rest.iter().zip(to_rest).for_each(|(&from, to)| *to = half::f16::from_bits(from).to_f32());
}

/// Bytes of sixteen elements of a kind: 0 f16, 1 bf16, 2 i8, 3 i6, 4 i4.
const BYTES: [usize; 5] = [32, 32, 16, 12, 8];

/// Bytes ahead of the loop that are fetched.
const AHEAD: usize = 4096;

/// Sixteen elements as f32.
///
/// # Safety
/// There must be `BYTES[KIND]` bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load512<const KIND: usize>(at: *const u8) -> __m512 {
    match KIND {
        // SAFETY: the caller's promise.
        0 => _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) }),
        1 => {
            // SAFETY: the caller's promise.
            let halves = unsafe { _mm256_loadu_si256(at.cast()) };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
        // SAFETY: the caller's promise.
        2 => _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(at.cast()) })),
        3 => {
            let shift = _mm512_setr_epi32(28, 30, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26);
            // SAFETY: this kind has three words.
            let (words, low) = unsafe { (_mm512_set1_epi32(word(at, 2)), nibbles512(at)) };
            let high = _mm512_and_si512(_mm512_rorv_epi32(words, shift), _mm512_set1_epi32(48));
            let codes = _mm512_or_si512(low, high);
            _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(32)))
        }
        // SAFETY: this kind has two words.
        _ => _mm512_cvtepi32_ps(_mm512_sub_epi32(unsafe { nibbles512(at) }, _mm512_set1_epi32(8))),
    }
}

/// The sixteen nibbles of two words.
///
/// # Safety
/// They must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn nibbles512(at: *const u8) -> __m512i {
    let shift = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    // SAFETY: the caller's promise.
    let (first, second) = unsafe { (word(at, 0), word(at, 1)) };
    let words = _mm512_mask_set1_epi32(_mm512_set1_epi32(first), 0xff00, second);
    _mm512_and_si512(_mm512_srlv_epi32(words, shift), _mm512_set1_epi32(15))
}

/// `acc` plus the products of the elements `16i..16i + 16`.
///
/// # Safety
/// They must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn product512<const KIND: usize>(w: *const u8, x: *const f32, i: usize, acc: __m512) -> __m512 {
    // The hardware's own prefetch stops at the end of a page.
    _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(i * BYTES[KIND] + AHEAD).cast());
    // SAFETY: the caller's promise.
    unsafe { _mm512_fmadd_ps(load512::<KIND>(w.add(i * BYTES[KIND])), _mm512_loadu_ps(x.add(16 * i)), acc) }
}

/// # Safety
/// `row` must hold `x.len()` elements of the kind, and `scales` one for each group (kinds from 2 on).
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn dot512<const KIND: usize>(row: &[u8], group: usize, scales: &[f32], x: &[f32]) -> f32 {
    let whole = x.len() / 16;
    let (w, v) = (row.as_ptr(), x.as_ptr());
    let (mut a, mut b, mut c, mut d) =
        (_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps());
    let mut i = 0;
    // SAFETY: sixteen floats and `BYTES` bytes are there for each i < whole.
    unsafe {
        if KIND < 2 {
            // Four sums, so that none waits for itself.
            while i + 4 <= whole {
                a = product512::<KIND>(w, v, i, a);
                b = product512::<KIND>(w, v, i + 1, b);
                c = product512::<KIND>(w, v, i + 2, c);
                d = product512::<KIND>(w, v, i + 3, d);
                i += 4;
            }
            while i < whole {
                a = product512::<KIND>(w, v, i, a);
                i += 1;
            }
        } else {
            let step = group / 16;
            for &scale in scales {
                let last = whole.min(i + step);
                let (mut even, mut odd) = (_mm512_setzero_ps(), _mm512_setzero_ps());
                while i + 2 <= last {
                    even = product512::<KIND>(w, v, i, even);
                    odd = product512::<KIND>(w, v, i + 1, odd);
                    i += 2;
                }
                if i < last {
                    even = product512::<KIND>(w, v, i, even);
                    i += 1;
                }
                a = _mm512_fmadd_ps(_mm512_add_ps(even, odd), _mm512_set1_ps(scale), a);
            }
        }
    }
    let sum = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
    let total = _mm512_reduce_add_ps(sum);
    total + rest::<KIND>(row, group, scales, x, whole * 16)
}

/// Word `i` at an address.
///
/// # Safety
/// It must be there.
#[inline(always)]
unsafe fn word(at: *const u8, i: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { at.add(4 * i).cast::<i32>().read_unaligned() }
}

/// Eight elements, the first or the second half of sixteen, as f32.
///
/// # Safety
/// There must be `BYTES[KIND]` bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load256<const KIND: usize>(at: *const u8, half: usize) -> __m256 {
    match KIND {
        // SAFETY: the caller's promise.
        0 => _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.add(16 * half).cast()) }),
        1 => {
            // SAFETY: the caller's promise.
            let halves = unsafe { _mm_loadu_si128(at.add(16 * half).cast()) };
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
        }
        // SAFETY: the caller's promise.
        2 => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(at.add(8 * half).cast()) })),
        3 => {
            let place =
                _mm256_add_epi32(_mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14), _mm256_set1_epi32(16 * half as i32));
            // SAFETY: this kind has three words.
            let (words, low) = unsafe { (_mm256_set1_epi32(word(at, 2)), nibbles256(at, half)) };
            let high = _mm256_and_si256(_mm256_srlv_epi32(words, place), _mm256_set1_epi32(3));
            let codes = _mm256_or_si256(low, _mm256_slli_epi32::<4>(high));
            _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(32)))
        }
        // SAFETY: this kind has two words.
        _ => _mm256_cvtepi32_ps(_mm256_sub_epi32(unsafe { nibbles256(at, half) }, _mm256_set1_epi32(8))),
    }
}

/// The eight nibbles of word `i`.
///
/// # Safety
/// It must be there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles256(at: *const u8, i: usize) -> __m256i {
    let shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    // SAFETY: the caller's promise.
    let words = _mm256_set1_epi32(unsafe { word(at, i) });
    _mm256_and_si256(_mm256_srlv_epi32(words, shift), _mm256_set1_epi32(15))
}

/// `acc` plus the products of the eight elements of a half of `16i..16i + 16`.
///
/// # Safety
/// They must be there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn product256<const KIND: usize>(w: *const u8, x: *const f32, i: usize, half: usize, acc: __m256) -> __m256 {
    _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(i * BYTES[KIND] + AHEAD).cast());
    // SAFETY: the caller's promise.
    unsafe {
        let w = load256::<KIND>(w.add(i * BYTES[KIND]), half);
        _mm256_fmadd_ps(w, _mm256_loadu_ps(x.add(16 * i + 8 * half)), acc)
    }
}

/// # Safety
/// As for `dot512`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot256<const KIND: usize>(row: &[u8], group: usize, scales: &[f32], x: &[f32]) -> f32 {
    let whole = x.len() / 16;
    let (w, v) = (row.as_ptr(), x.as_ptr());
    let mut acc = [_mm256_setzero_ps(); 4];
    // SAFETY: sixteen floats and `BYTES` bytes are there for each i < whole.
    unsafe {
        if KIND < 2 {
            let mut i = 0;
            while i + 2 <= whole {
                acc[0] = product256::<KIND>(w, v, i, 0, acc[0]);
                acc[1] = product256::<KIND>(w, v, i, 1, acc[1]);
                acc[2] = product256::<KIND>(w, v, i + 1, 0, acc[2]);
                acc[3] = product256::<KIND>(w, v, i + 1, 1, acc[3]);
                i += 2;
            }
            if i < whole {
                acc[0] = product256::<KIND>(w, v, i, 0, acc[0]);
                acc[1] = product256::<KIND>(w, v, i, 1, acc[1]);
            }
        } else {
            let step = group / 16;
            let mut i = 0;
            for &scale in scales {
                let last = whole.min(i + step);
                let mut sum = [_mm256_setzero_ps(); 2];
                while i < last {
                    sum[0] = product256::<KIND>(w, v, i, 0, sum[0]);
                    sum[1] = product256::<KIND>(w, v, i, 1, sum[1]);
                    i += 1;
                }
                acc[0] = _mm256_fmadd_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_set1_ps(scale), acc[0]);
            }
        }
    }
    let sum = _mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3]));
    let mut lanes = [0f32; 8];
    // SAFETY: the array has the vector's 32 bytes.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    lanes.iter().sum::<f32>() + rest::<KIND>(row, group, scales, x, whole * 16)
}

/// The elements from `first` on, fewer than sixteen.
#[inline(never)]
fn rest<const KIND: usize>(row: &[u8], group: usize, scales: &[f32], x: &[f32], first: usize) -> f32 {
    let value = |i: usize| match KIND {
        0 => half::f16::from_le_bytes([row[2 * i], row[2 * i + 1]]).to_f32(),
        1 => half::bf16::from_le_bytes([row[2 * i], row[2 * i + 1]]).to_f32(),
        2 => code_at(DType::I8, row, i) as f32,
        3 => code_at(DType::I6, row, i) as f32,
        _ => code_at(DType::I4, row, i) as f32,
    };
    let scale = |i: usize| if KIND < 2 { 1.0 } else { scales[i / group] };
    (first..x.len()).map(|i| value(i) * scale(i) * x[i]).sum()
}
