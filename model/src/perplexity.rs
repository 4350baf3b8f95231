//! Perplexity of a text: `exp` of the mean negative log-likelihood of its tokens, each given those before it
//! in its window.

use crate::cache::CacheFormat;
use crate::error::{Error, Result};
use crate::programs::Layout;
use crate::score::Scorer;
use crate::session::SessionPlan;
use crate::weights::Model;
use tritter_runtime::Device;

/// Tokens of a window. Logits of a whole window are in memory at once.
pub const WINDOW: usize = 128;

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// `exp` of the mean loss in nats.
    pub value: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
}

/// Measures whole windows of a text that follow each other; the first token of each is given. A text that
/// fills no window is one of its own; it must have two tokens.
pub fn perplexity(device: &Device, model: &Model, ids: &[u32]) -> Result<Perplexity> {
    let window = WINDOW.min(ids.len()).min(model.positions);
    if window < 2 {
        return Err(Error::Context { needed: 2, available: window });
    }
    let scorer = Scorer::new(device, model, window, false)?;
    let vocab = model.config.vocab_size;
    let (mut loss, mut tokens) = (0.0, 0);
    for ids in ids.chunks_exact(window) {
        let logits = scorer.run(ids, 1)?;
        for (row, &next) in logits.chunks_exact(vocab).zip(&ids[1..]) {
            loss += negative_log_likelihood(row, next as usize);
            tokens += 1;
        }
    }
    Ok(Perplexity { value: (loss / tokens as f64).exp(), tokens })
}

/// Rows of a step when a text is read through a cache.
const ROWS: usize = 16;

/// As [`perplexity`], every token read through a cache of this format, in windows of `context` tokens: what the
/// format costs where it is used. A window of integers has whole tokens too, see [`CacheFormat::residual`]; it
/// should be several times as long.
pub fn cached_perplexity(
    device: &Device,
    model: &Model,
    ids: &[u32],
    context: usize,
    cache: CacheFormat,
) -> Result<Perplexity> {
    let context = context.min(ids.len()).min(model.positions);
    if context < 2 {
        return Err(Error::Context { needed: 2, available: context });
    }
    let layout = Layout { rows: ROWS, ..Layout::single(context, cache) };
    let mut session = SessionPlan::with(model, layout)?.open(device)?;
    let vocab = model.config.vocab_size;
    let (mut loss, mut tokens) = (0.0, 0);
    for window in ids.chunks_exact(context) {
        session.reset();
        // The last token is predicted and not read.
        for (i, part) in window[..context - 1].chunks(ROWS).enumerate() {
            session.verify(0, part)?;
            let (logits, next) = (session.logits()?, &window[i * ROWS + 1..]);
            for (row, &next) in logits.chunks_exact(vocab).take(part.len()).zip(next) {
                loss += negative_log_likelihood(row, next as usize);
                tokens += 1;
            }
        }
    }
    Ok(Perplexity { value: (loss / tokens as f64).exp(), tokens })
}

/// `log Σ_j e^{z_j} − z_i`, in f64.
fn negative_log_likelihood(logits: &[f32], i: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&z| f64::from(z - largest).exp()).sum();
    let chosen = logits.get(i).copied().unwrap_or(f32::NEG_INFINITY);
    sum.ln() + f64::from(largest) - f64::from(chosen)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cache::CacheKind;
    use crate::config::Family;
    use crate::presets::preset;
    use crate::seeded::FromSeed;
    use crate::weights::Form;

    #[test]
    fn equal_logits_give_the_logarithm_of_the_vocabulary() {
        assert!((negative_log_likelihood(&[3.0; 50], 7) - 50f64.ln()).abs() < 1e-12);
        assert!((negative_log_likelihood(&[1000.0, 0.0], 0)).abs() < 1e-12);
        assert!((negative_log_likelihood(&[1000.0, 0.0], 1) - 1000.0).abs() < 1e-9);
    }

    #[test]
    fn a_text_read_through_a_cache_has_the_perplexity_of_whole_windows() {
        let mut config = preset("test").unwrap().config(Family::Llama, Some(200), Some(WINDOW));
        (config.hidden_size, config.intermediate_size, config.num_layers) = (64, 96, 2);
        (config.num_heads, config.num_kv_heads, config.head_dim) = (4, 2, 16);
        let model = Model::new(&config, Form::Run, WINDOW);
        let device = tritter_runtime::cpu::open();
        model.load(&device, &FromSeed::new(&config, 1)).unwrap();
        let ids: Vec<u32> = (0..2 * WINDOW as u32 + 9).map(|i| i * 37 % 200).collect();
        let whole = perplexity(&device, &model, &ids).unwrap();
        let page = |format| CacheFormat { page: 32, residual: 32, ..format };
        for (kind, bound) in CacheKind::ALL.into_iter().zip([1e-6, 1e-4, 1e-3, 1e-2, 1e-1]) {
            let found = cached_perplexity(&device, &model, &ids, WINDOW, page(CacheFormat::from(kind))).unwrap();
            assert_eq!(found.tokens, whole.tokens);
            assert!((found.value / whole.value - 1.0).abs() < bound, "{kind:?}: {found:?}, whole {whole:?}");
        }
        assert!(cached_perplexity(&device, &model, &ids, 1, CacheFormat::F32).is_err());
    }

    #[test]
    fn an_untrained_model_has_about_the_perplexity_of_its_vocabulary() {
        let mut config = preset("test").unwrap().config(Family::Llama, Some(200), Some(64));
        (config.hidden_size, config.intermediate_size, config.num_layers) = (64, 96, 2);
        (config.num_heads, config.num_kv_heads, config.head_dim) = (4, 2, 16);
        let model = Model::new(&config, Form::Run, 64);
        let device = tritter_runtime::cpu::open();
        model.load(&device, &FromSeed::new(&config, 1)).unwrap();
        let ids: Vec<u32> = (0..150).map(|i| i * 37 % 200).collect();
        let found = perplexity(&device, &model, &ids).unwrap();
        assert_eq!(found.tokens, 2 * 63);
        assert!((found.value / 200.0 - 1.0).abs() < 0.2, "{found:?}");
        assert!(perplexity(&device, &model, &ids[..1]).is_err());
    }
}
