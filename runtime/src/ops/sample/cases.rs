//! Cases of draws.

use super::{CONTROL, EMPTY, Sample};
use crate::op::{Case, Fill, Size};
use crate::random::Random;

/// `[temperature, top_k, top_p, min_p, repeat_penalty]`
type Settings = [f64; 5];

pub(super) fn cases(size: Size) -> Vec<Case> {
    let shapes: &[(u32, u32)] = match size {
        Size::Small => &[(2, 8)],
        Size::Ragged => &[(1, 1), (5, 67), (3, 1031)],
        Size::Bench => &[(1, 65_536), (16, 65_536), (1, 128_256)],
    };
    let mut cases = Vec::new();
    for &(m, v) in shapes {
        for settings in [
            [0.0, 0.0, 0.0, 0.0, 0.0],
            [0.8, 0.0, 1.0, 0.0, 1.0],
            [0.8, 1.0, 1.0, 0.0, 1.0],
            [1.0, 5.0, 1.0, 0.0, 1.0],
            [1.5, f64::from(v), 1.0, 0.0, 1.0],
            [0.0, 0.0, 1.0, 0.0, 1.75],
            [0.8, 0.0, 1.0, 0.0, 1.3],
            [1.2, 0.0, 0.9, 0.0, 1.0],
            [1.1, 0.0, 1.0, 0.07, 1.0],
            [0.9, 40.0, 0.95, 0.05, 1.1],
        ] {
            cases.push(case(format!("{m}x{v}, {}", label(settings)), m, v, settings));
        }
    }
    if size == Size::Ragged {
        cases.extend(long_cases());
    }
    if size != Size::Bench {
        cases.extend(special_cases());
    }
    cases
}

fn label([temperature, top_k, top_p, min_p, penalty]: Settings) -> String {
    format!("temperature {temperature}, top {top_k}, p {top_p}, least {min_p}, penalty {penalty}")
}

/// Few and many of a long row, and rows of so many equal logits that no short list holds them.
fn long_cases() -> Vec<Case> {
    let flat = |settings| {
        let label = format!("5003 equal logits, {}", label(settings));
        case(label, 1, 5003, settings).fill("logits", Fill::Constant(0.5))
    };
    let mut cases = vec![flat([0.9, 5.0, 1.0, 0.0, 1.0]), flat([0.9, 0.0, 0.3, 0.0, 1.2])];
    for (m, v, settings) in [
        (2, 5003, [0.9, 40.0, 1.0, 0.0, 1.0]),
        (2, 5003, [0.9, 0.0, 1.0, 0.0, 1.0]),
        (2, 5003, [0.9, 1000.0, 1.0, 0.0, 1.0]),
        // A nucleus of a few logits, of hundreds, and of nearly all.
        (2, 5003, [0.5, 0.0, 0.6, 0.0, 1.4]),
        (2, 5003, [3.0, 0.0, 0.7, 0.0, 1.0]),
        (2, 5003, [90.0, 0.0, 0.9, 0.01, 1.0]),
        (2, 5003, [50.0, 2000.0, 0.8, 0.0, 1.1]),
        (1, 40_000, [0.9, 50.0, 1.0, 0.0, 1.0]),
        (1, 40_000, [1.0, 0.0, 0.9, 0.02, 1.1]),
        (1, 40_000, [20.0, 0.0, 0.5, 0.0, 1.1]),
    ] {
        cases.push(case(format!("{m}x{v}, {}", label(settings)), m, v, settings));
    }
    cases
}

/// The logits are random but always the same, so that a draw whose two best scores lie as close as
/// logarithms differ between devices cannot turn up one day. The ring holds the largest logit twice,
/// another id, an id beyond the vocabulary and empty slots.
fn case(label: String, m: u32, v: u32, settings: Settings) -> Case {
    let mut source = Random::new(u64::from(v));
    let (rows, width) = (m as usize, v as usize);
    let logits: Vec<f64> = (0..rows * width).map(|_| 3.0 * source.normal()).collect();
    let r = if v > 1000 { 64 } else { 5 };
    let mut control = Vec::new();
    let mut random = Vec::new();
    let mut recent = vec![f64::from(EMPTY); rows * r];
    for (i, row) in logits.chunks(width).enumerate() {
        control.extend(settings.into_iter().chain([0.0; CONTROL - 5]));
        random.extend([4_000_000_007.0 + i as f64, 12.0 + 3.0 * i as f64]);
        let largest = (0..width).fold(0, |best, j| if row[j] > row[best] { j } else { best });
        recent[i * r..i * r + 4].copy_from_slice(&[largest, width / 2, largest, width].map(|id| id as f64));
    }
    Case::new(label, Sample { m, v, r: r as u32 })
        .fill("logits", Fill::Values(logits))
        .fill("control", Fill::Values(control))
        .fill("random", Fill::Values(random))
        .fill("recent", Fill::Values(recent))
}

fn special_cases() -> Vec<Case> {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let tied = [-0.0, 0.0, 2.0, nan, 2.0, -inf, 2.0, -1.0];
    let masked = [-inf, nan, -inf, 1.0, nan, -inf, 40.0, -inf];
    let nothing = [nan, -inf, nan, -inf, nan, -inf, nan, -inf];
    let two = [0.5, inf, 3.0, nan, inf, -inf, 0.0, 1.0];
    let of = |label: &str, logits: [f64; 8], settings: Settings| {
        case(label.into(), 1, 8, settings).fill("logits", Fill::Values(logits.to_vec()))
    };
    let plain = |temperature, top_k| [temperature, top_k, 1.0, 0.0, 1.0];
    let ring = |ids: [u32; 5]| Fill::Values(ids.map(f64::from).to_vec());
    let mut mixed = case("rows of their own settings".into(), 5, 67, plain(0.0, 0.0));
    let settings = [plain(0.0, 0.0), plain(0.7, 3.0), [1.0, 0.0, 0.8, 0.0, 1.5], [0.0; 5], [2.0, 0.0, 0.0, 0.3, -1.0]];
    let rows = settings.iter().flat_map(|s| s.iter().copied().chain([0.0; CONTROL - 5]));
    mixed = mixed.fill("control", Fill::Values(rows.collect()));
    vec![
        mixed,
        of("ties to the lowest index", tied, plain(0.0, 0.0)),
        of("ties with the k-th are kept", tied, plain(1.0, 1.0)),
        of("ties with the last of the nucleus are kept", tied, [1.0, 0.0, 0.1, 0.0, 1.0]),
        of("zeros of both signs are equal", [-0.0, 0.0, -0.0, 0.0, -1.0, -2.0, -1.0, -3.0], plain(0.0, 0.0)),
        of("one far above", masked, plain(1.0, 0.0)),
        of("masked logits do not fill the top k", masked, plain(1.0, 5.0)),
        of("masked logits are no nucleus", masked, [1.0, 5.0, 0.9999, 0.0, 1.0]),
        of("nothing to draw from, greedy", nothing, plain(0.0, 0.0)),
        of("nothing to draw from", nothing, [1.0, 0.0, 0.9, 0.5, 1.0]),
        of("infinity wins", two, plain(0.0, 0.0)),
        of("infinity wins a draw", two, [0.7, 0.0, 0.9, 0.5, 1.0]),
        of("a temperature near 0", [0.0, 1.0, 1.5, 0.25, -1.0, 1.25, 0.5, 0.75], plain(1e-6, 0.0)),
        of("nothing but the largest is as likely as the largest", masked, [1.0, 0.0, 1.0, 1.0, 1.0]),
        of("penalties move both signs down", [4.0, 3.0, -1.0, -1.25, 0.0, -8.0, 1.0, 2.5], [0.0, 0.0, 1.0, 0.0, 4.0])
            .fill("recent", ring([0, 2, 0, 1, 7])),
        of("infinite logits are not penalised", two, [0.0, 0.0, 1.0, 0.0, 2.0]).fill("recent", ring([1, 1, 3, 5, EMPTY])),
        of("a penalty below 1 moves up", [4.0, 3.0, -1.0, -1.25, 0.0, -8.0, 1.0, 2.5], [0.0, 0.0, 1.0, 0.0, 0.5])
            .fill("recent", ring([7, 8, 9, EMPTY, 7])),
    ]
}
