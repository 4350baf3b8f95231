#![allow(clippy::unwrap_used)]
use super::*;
use crate::config::Family;
use crate::presets::preset;

fn config(positions: usize) -> Config {
    let mut config = preset("test").unwrap().config(Family::Llama, Some(512), Some(positions));
    (config.num_heads, config.num_kv_heads, config.head_dim) = (4, 2, 16);
    config.rope.theta = 10_000.0;
    config
}

#[track_caller]
fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f / e - 1.0).abs() < 1e-12, "frequency {i}: {f}, expected {e}");
    }
}

#[test]
fn linear_divides_every_frequency() {
    let rope = Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } };
    close(&rope.frequencies(4), &[0.25, 0.0025]);
    assert_eq!(rope.attention_factor(), 1.0);
}

/// Expected values: equations 17 to 23 of the YaRN paper with the bounds of transformers'
/// `_compute_yarn_parameters`, evaluated in Python.
#[test]
fn yarn_keeps_fast_frequencies_and_divides_slow_ones() {
    let yarn = |d: usize, yarn: Yarn| Rope { theta: 10_000.0, scaling: RopeScaling::Yarn(yarn) }.frequencies(d);
    close(
        &yarn(16, Yarn::new(4.0, 64)),
        &[
            1.0,
            0.23717082451262847,
            0.05,
            0.007905694150420948,
            0.0025,
            0.0007905694150420947,
            0.00025,
            7.905694150420948e-05,
        ],
    );
    close(
        &yarn(32, Yarn::new(16.0, 2048)),
        &[
            1.0,
            0.5623413251903491,
            0.31622776601683794,
            0.17782794100389226,
            0.1,
            0.04870277548523559,
            0.023152390011947063,
            0.010637921470768558,
            0.004642857142857143,
            0.0018577347350038319,
            0.0006211616832473603,
            0.00011114246312743269,
            6.25e-05,
            3.514633282439682e-05,
            1.976423537605237e-05,
            1.1114246312743267e-05,
        ],
    );
    let whole = Yarn { truncate: false, ..Yarn::new(4.0, 64) };
    close(&yarn(16, whole)[1..3], &[0.19858352015369318, 0.02559524589192421]);
    assert!((Yarn::new(4.0, 64).attention_factor - 1.138629436111989).abs() < 1e-15);
}

#[test]
fn a_factor_on_cosines_and_sines_scales_the_scores() {
    let plain = config(64);
    let yarn = plain.extended(RopeExtension::Yarn(4.0), None).unwrap();
    let factor = 0.1 * 4f64.ln() + 1.0;
    assert_eq!(plain.attention_scale(), 0.25);
    assert!((f64::from(yarn.attention_scale()) / (0.25 * factor * factor) - 1.0).abs() < 1e-7);
}

#[test]
fn what_yarn_leaves_out_is_filled_in_as_transformers_does() {
    let read = |json: Value| {
        let mut whole = config(256).to_json();
        whole["rope_parameters"] = json;
        Config::from_json(Path::new("config.json"), &whole)
    };
    let yarn = |config: Config| match config.rope.scaling {
        RopeScaling::Yarn(yarn) => Some(yarn),
        _ => None,
    };
    let short = read(json!({ "rope_type": "yarn", "original_max_position_embeddings": 64 })).unwrap();
    assert_eq!(yarn(short.clone()).unwrap(), Yarn::new(4.0, 64));
    assert_eq!(Config::from_json(Path::new("config.json"), &short.to_json()).unwrap(), short);
    let whole = json!({ "rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 64, "mscale": 1.0,
        "mscale_all_dim": 0.5, "beta_fast": 16, "beta_slow": 2 });
    let whole = yarn(read(whole).unwrap()).unwrap();
    let expected = (0.1 * 40f64.ln() + 1.0) / (0.05 * 40f64.ln() + 1.0);
    assert!((whole.attention_factor - expected).abs() < 1e-15);
    assert_eq!((whole.beta_fast, whole.beta_slow), (16.0, 2.0));
    for (fault, field) in [
        (json!({ "rope_type": "yarn", "factor": 0.5 }), "factor"),
        (json!({ "rope_type": "yarn", "factor": 4, "beta_fast": 1 }), "beta_fast"),
        (json!({ "rope_type": "yarn", "original_max_position_embeddings": 0, "factor": 2 }), "original_max_position"),
        (json!({ "rope_type": "linear", "factor": "4" }), "factor"),
        (json!({ "rope_type": "linear" }), "factor"),
    ] {
        let message = read(fault.clone()).unwrap_err().to_string();
        assert!(message.contains(field), "{fault}: {message}");
    }
}

#[test]
fn a_stated_extension_lengthens_the_context() {
    let plain = config(64);
    assert!(plain.check_context(64).is_ok());
    for context in [0, 65] {
        let message = plain.check_context(context).unwrap_err().to_string();
        assert!(message.contains("1 to 64") && message.contains("--rope"), "{message}");
    }
    let linear = plain.extended(RopeExtension::Linear(4.0), None).unwrap();
    assert_eq!((linear.max_positions, linear.rope.scaling), (256, RopeScaling::Linear { factor: 4.0 }));
    assert!(linear.check_context(257).is_err(), "the factor says how far it reaches");
    let yarn = plain.extended(RopeExtension::Yarn(8.0), None).unwrap();
    assert_eq!((yarn.max_positions, yarn.rope.scaling), (512, RopeScaling::Yarn(Yarn::new(8.0, 64))));
    let again = yarn.extended(RopeExtension::Yarn(16.0), None).unwrap();
    assert_eq!((again.max_positions, again.rope.scaling), (1024, RopeScaling::Yarn(Yarn::new(16.0, 64))));
    let theta = plain.extended(RopeExtension::Theta(1e6), Some(4096)).unwrap();
    assert_eq!((theta.max_positions, theta.rope.theta), (4096, 1e6));
    assert!(yarn.extended(RopeExtension::Linear(2.0), None).unwrap_err().to_string().contains("yarn"));
    let reads = |text: &str| text.parse::<RopeExtension>();
    assert_eq!(reads("yarn:4"), Ok(RopeExtension::Yarn(4.0)));
    assert_eq!(reads("theta:1e6"), Ok(RopeExtension::Theta(1e6)));
    for wrong in ["yarn", "yarn:", "yarn:x", "linear:0.5", "linear:inf", "ntk:4", "theta:1", "linear:NaN"] {
        assert!(reads(wrong).is_err(), "{wrong}");
    }
}
