//! How far a result may be from its golden value, and why. Numbers are those of
//! `tests/fixtures/README.md` ("Bounds"); where it gives none, the reason is here.

/// Logits of tuned inputs: full pass, prefill, cached decode. Other f32 implementations stay within 1.3e-5.
pub(super) const LOGITS: f64 = 1e-4;

/// Layer-0 activations.
pub(super) const LAYER_0: f64 = 2e-5;

/// Activations further on: those of the logits that they lead to.
pub(super) const LATER_LAYERS: f64 = LOGITS;

/// Gap between the two largest logits: each of them may be off by [`LOGITS`].
pub(super) const MARGIN: f64 = 2.0 * LOGITS;

/// Logits of an ordinary batch of a ternary model, where a value near a rounding tie may flip
/// an int8 code and that flip others: largest difference.
pub(super) const UNTUNED_MAX_ABS: f64 = 0.5;
/// The same: root mean square.
pub(super) const UNTUNED_RMS: f64 = 0.06;
/// The same: one minus the least cosine of a position.
pub(super) const UNTUNED_COSINE: f64 = 1.0 - 0.998;
/// The same: share of positions whose largest logit is another one.
pub(super) const UNTUNED_ARGMAX: f64 = 1.0 - 0.95;

/// One ternary layer alone, relative to the largest golden value: output and activation scale.
/// Codes are equal.
pub(super) const LINEAR_RELATIVE: f64 = 1e-5;

/// RoPE frequencies, each relative to itself: the golden ones were raised to a power in f32,
/// whose exponent `2i/d · ln(theta)` of up to 14 carries a rounding of 2^-24.
pub(super) const FREQUENCY_RELATIVE: f64 = 2e-6;

/// The factor on RoPE's cosines and sines: two roundings of f32.
pub(super) const ROPE_SCALING: f64 = 1e-6;

/// Counts of values that must not differ at all: ids, codes, fields, faults.
pub(super) const EQUAL: f64 = 0.0;

/// Attention and rotated rows, relative to the largest golden value: f32 sums of up to a hundred terms, whose
/// exponentials carry the error of scores; other f32 computations are within 7e-7.
pub(super) const ATTENTION_RELATIVE: f64 = 5e-6;

/// Parameters of quantised groups and values that come back, relative to the largest: two roundings of f32.
pub(super) const DEQUANT_RELATIVE: f64 = 1e-6;

/// Codes may differ by one this near to a tie, in codes: a scale that is one rounding off moves a value of 15 codes
/// by 1e-6 of a code, and the fixtures' values lie 5e-6 of a code from a tie at least.
pub(super) const TIE: f64 = 1e-3;

/// Gradients at step 0, absolute, or else [`GRADIENT_RELATIVE`].
pub(super) const GRADIENT: f64 = 1e-5;
/// Norm of a tensor's gradient error relative to the norm of its gradient.
pub(super) const GRADIENT_RELATIVE: f64 = 1e-4;

/// Bounds that depend on whether training quantises.
pub(super) struct Training {
    /// Losses and gradient norms of this many first steps are held to `loss` and `norm`.
    pub(super) certain: usize,
    /// Loss before each of those steps.
    pub(super) loss: f64,
    /// Loss over all steps.
    pub(super) loss_later: f64,
    /// Global gradient norm of those first steps, relative.
    pub(super) norm: f64,
    /// Global gradient norm over all steps, each relative to itself.
    pub(super) norm_later: f64,
    /// The same, relative to the largest.
    pub(super) norm_later_of_largest: f64,
    /// Updated parameters, relative norm per tensor.
    pub(super) parameters: f64,
}

/// Without quantisation. Gradient norms are as far off as gradients at most.
pub(super) const FULL: Training = Training {
    certain: 20,
    loss: 1e-4,
    loss_later: 1e-4,
    norm: 1e-4,
    norm_later: 1e-4,
    norm_later_of_largest: 1e-4,
    parameters: 1e-3,
};

/// With quantisation: after the first three steps rounding and ternary flips act. Multiplying the
/// golden run's parameters by `1 + 1e-7 N(0, 1)` moved later losses by up to 0.016, norms by up to
/// 0.15 of themselves and 0.022 of the largest (8 draws).
pub(super) const QAT: Training = Training {
    certain: 3,
    loss: 1e-4,
    loss_later: 0.06,
    norm: 1e-4,
    norm_later: 0.5,
    norm_later_of_largest: 0.06,
    parameters: 5e-3,
};

/// Updated parameters, absolute: Adam divides by the root of the second moment, so an element
/// whose gradient is about eps can move by `lr` either way in each step.
pub(super) fn parameter_move(lr: f64, steps: usize) -> f64 {
    2.0 * lr * steps as f64
}
