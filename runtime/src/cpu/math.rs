//! Elementary functions that vectorise: branch-free f32 without tables.
//!
//! `f32::exp` is a call to the system's library for every element; [`exp`] is a
//! few multiplications and additions that the compiler runs in vectors when it
//! stands in a loop over slices. The tests hold it to 2 units in the last place
//! of the f64 value over the whole range.

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts; products of the first with whole numbers below 2^9 are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Adding `1.5 · 2^23` rounds to a whole number, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Elements that one partial sum of [`exp_sum`] covers, so that its rounding stays small.
const BLOCK: usize = 2048;
const LANES: usize = 16;

/// e^x: at most 2 ULP of error, infinite above 88.73, subnormal below -87.34, 0 below
/// -103.98, NaN for NaN.
///
/// With `n = round(x / ln 2)` and `r = x - n ln 2`, `|r| ≤ 0.347`, it is `2^n` times the Taylor
/// polynomial of degree 7 (remainder below 6e-9). `2^n` is applied in two factors, so that
/// neither leaves the range of normal numbers.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = (x - whole * LN2_HIGH) - whole * LN2_LOW;
    let mut tail = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        tail = tail * r + c;
    }
    let mantissa = 1.0 + (r + r * r * tail);
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    mantissa * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `Σ_j e^(x_j - shift)` in a fixed order: f32 in 16 lanes over blocks, f64 over the blocks.
pub fn exp_sum(x: &[f32], shift: f32) -> f32 {
    let blocks = x.chunks(BLOCK).map(|block| {
        let mut lanes = [0f32; LANES];
        let whole = block.chunks_exact(LANES);
        let rest = whole.remainder();
        for x in whole {
            for (lane, &x) in lanes.iter_mut().zip(x) {
                *lane += exp(x - shift);
            }
        }
        let rest: f64 = rest.iter().map(|&x| f64::from(exp(x - shift))).sum();
        lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + rest
    });
    blocks.sum::<f64>() as f32
}

/// `y_j = scale · e^(x_j - shift)`.
pub fn exp_scaled(y: &mut [f32], x: &[f32], shift: f32, scale: f32) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = scale * exp(x - shift);
    }
}

/// The largest element; NaN elements are passed over, and an empty slice gives -∞.
pub fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let whole = x.chunks_exact(LANES);
    let rest = whole.remainder();
    for x in whole {
        for (lane, &x) in lanes.iter_mut().zip(x) {
            *lane = larger(*lane, x);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_of_the_last_place() {
        let (mut worst, mut at) = (0f64, 0f32);
        let mut x = -104.5f32;
        while x < 89.5 {
            let exact = f64::from(x).exp();
            let found = exp(x);
            if exact > f64::from(f32::MAX) {
                assert!(found == f32::INFINITY || found == f32::MAX, "exp({x}) = {found}");
            } else {
                let exponent = exact.log2().floor().max(-126.0);
                let ulps = (f64::from(found) - exact).abs() / (exponent - 23.0).exp2();
                if ulps > worst {
                    (worst, at) = (ulps, x);
                }
            }
            x += 1.234_567e-4;
        }
        assert!(worst <= 2.0, "{worst} ULP at {at}");
    }

    #[test]
    fn exp_keeps_the_special_values() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_cover_lengths_that_fill_no_lane() {
        for n in [1, 15, 16, 17, 2047, 2048, 2049, 5000] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37) % 101) as f32 / 7.0 - 6.0).collect();
            let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&x), largest, "{n}");
            let exact: f64 = x.iter().map(|&x| f64::from(x - largest).exp()).sum();
            let found = f64::from(exp_sum(&x, largest));
            assert!((found / exact - 1.0).abs() < 1e-6, "{n}: {found} {exact}");
            let mut y = vec![0f32; n];
            exp_scaled(&mut y, &x, largest, 2.0);
            assert_eq!(y[n - 1], 2.0 * exp(x[n - 1] - largest));
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        assert!(exp_sum(&[0.0, f32::NAN], 0.0).is_nan());
    }
}
