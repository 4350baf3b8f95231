//! Measures of how far a result is from its golden value. A result that is not
//! finite, or not of the golden value's length, is infinitely far.

/// Largest absolute difference.
pub(super) fn max_abs(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    // `f64::max` would drop a NaN, whichever side it comes from.
    let worse = |worst: f64, difference: f64| {
        if difference <= worst || worst.is_nan() { worst } else { difference }
    };
    let worst = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - f64::from(*e)).abs()).fold(0.0, worse);
    if worst.is_finite() { worst } else { f64::INFINITY }
}

/// Largest absolute difference relative to the largest expected value.
pub(super) fn relative_to_largest(found: &[f32], expected: &[f32]) -> f64 {
    let largest = expected.iter().fold(0.0f64, |a, e| a.max(f64::from(*e).abs()));
    max_abs(found, expected) / largest.max(f64::MIN_POSITIVE)
}

/// Largest difference of an element relative to that element.
pub(super) fn relative_each(found: &[f32], expected: &[f32]) -> f64 {
    let one = |(f, e): (&f32, &f32)| max_abs(&[*f], &[*e]) / f64::from(*e).abs().max(f64::MIN_POSITIVE);
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    found.iter().zip(expected).map(one).fold(0.0, f64::max)
}

/// Norm of the difference relative to the norm of what is expected.
pub(super) fn relative_norm(found: &[f32], expected: &[f32]) -> f64 {
    let norm = root_mean_square(expected, &vec![0.0; expected.len()]);
    root_mean_square(found, expected) / norm.max(f64::MIN_POSITIVE)
}

/// Root of the mean squared difference.
pub(super) fn root_mean_square(found: &[f32], expected: &[f32]) -> f64 {
    if !max_abs(found, expected).is_finite() {
        return f64::INFINITY;
    }
    let sum: f64 = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - f64::from(*e)).powi(2)).sum();
    (sum / expected.len().max(1) as f64).sqrt()
}

/// One minus the least cosine between rows of `width` elements.
pub(super) fn cosine_distance(found: &[f32], expected: &[f32], width: usize) -> f64 {
    if !max_abs(found, expected).is_finite() {
        return f64::INFINITY;
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let distance = |(f, e): (&[f32], &[f32])| 1.0 - dot(f, e) / (dot(f, f) * dot(e, e)).sqrt().max(f64::MIN_POSITIVE);
    found.chunks(width).zip(expected.chunks(width)).map(distance).fold(0.0, f64::max)
}

/// Share of rows whose largest element is elsewhere.
pub(super) fn argmax_differs(found: &[f32], expected: &[f32], width: usize) -> f64 {
    let rows = expected.len().div_ceil(width).max(1);
    let rows_of = |x| <[f32]>::chunks(x, width).map(argmax);
    differing(&rows_of(found).collect::<Vec<_>>(), &rows_of(expected).collect::<Vec<_>>()) / rows as f64
}

/// Number of elements that are not equal.
pub(super) fn differing<T: PartialEq>(found: &[T], expected: &[T]) -> f64 {
    let unequal = found.iter().zip(expected).filter(|(f, e)| f != e).count();
    (unequal + found.len().abs_diff(expected.len())) as f64
}

/// Gap between the largest and the second largest element.
pub(super) fn margin(logits: &[f32]) -> f32 {
    let top = argmax(logits);
    let second =
        logits.iter().enumerate().filter(|(i, _)| *i != top).map(|(_, &v)| v).fold(f32::NEG_INFINITY, f32::max);
    logits.get(top).map_or(f32::NAN, |first| first - second)
}

/// First position of the largest element.
fn argmax(row: &[f32]) -> usize {
    let larger = |best: usize, (i, v): (usize, &f32)| if *v > row[best] { i } else { best };
    row.iter().enumerate().fold(0, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_or_of_another_length_is_infinitely_far() {
        assert_eq!(max_abs(&[1.0, f32::NAN], &[1.0, 2.0]), f64::INFINITY);
        assert_eq!(max_abs(&[f32::NAN, 5.0], &[1.0, 2.0]), f64::INFINITY);
        assert_eq!(max_abs(&[1.0], &[1.0, 2.0]), f64::INFINITY);
        assert_eq!(relative_each(&[1.0], &[]), f64::INFINITY);
        assert_eq!(cosine_distance(&[f32::NAN, 0.0], &[1.0, 0.0], 2), f64::INFINITY);
        assert_eq!(differing(&[1, 2, 3], &[1, 5]), 2.0);
    }

    #[test]
    fn measures_agree_with_hand_computed_values() {
        assert_eq!(max_abs(&[1.0, -2.0], &[1.5, -2.0]), 0.5);
        assert_eq!(relative_to_largest(&[1.0, -2.0], &[1.5, -2.0]), 0.25);
        assert_eq!(relative_each(&[1.0, 3.0], &[2.0, 3.0]), 0.5);
        assert!((relative_norm(&[3.0, 4.0], &[3.0, 0.0]) - 4.0 / 3.0).abs() < 1e-12);
        assert_eq!(cosine_distance(&[1.0, 0.0, 0.0, 2.0], &[3.0, 0.0, 1.0, 0.0], 2), 1.0);
        assert_eq!(argmax_differs(&[1.0, 0.0, 0.0, 2.0], &[3.0, 0.0, 1.0, 0.0], 2), 0.5);
        assert_eq!(margin(&[0.5, 4.0, 3.0]), 1.0);
    }
}
