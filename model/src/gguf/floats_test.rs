#![allow(clippy::unwrap_used)]
use super::*;
use crate::gguf::fixture;
use tritter_runtime::random::Random;

const WIDTH: usize = 512;

fn golden(name: &str) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(&fixture(name))
}

fn decoded(dtype: TensorType, bytes: &[u8]) -> Vec<f32> {
    let (elements, size) = dtype.block();
    let mut values = vec![f32::NAN; bytes.len() / size * elements];
    decode_row(dtype, bytes, &mut values);
    values
}

#[test]
fn every_bit_order_is_that_of_the_golden_bytes() {
    for (dtype, name) in [(TensorType::Q8_0, "q8_0"), (TensorType::Q4_0, "q4_0"), (TensorType::Q6K, "q6_k")] {
        let bytes = fixture(&format!("{name}.bin"));
        assert_eq!(decoded(dtype, &bytes), golden(&format!("{name}.values.bin")), "{name}");
    }
    let signs: Vec<f32> = fixture("codes.bin").iter().map(|c| (f32::from(*c) - 1.0) * 0.40625).collect();
    for (dtype, name) in [(TensorType::Tq1_0, "tq1_0"), (TensorType::Tq2_0, "tq2_0"), (TensorType::Q2_0, "q2_0_64")] {
        assert_eq!(decoded(dtype, &fixture(&format!("{name}.bin"))), signs, "{name}");
    }
}

#[test]
fn q8_0_and_q4_0_are_quantised_as_the_golden_bytes_were() {
    let floats = golden("floats.bin");
    for (dtype, name) in [(TensorType::Q8_0, "q8_0"), (TensorType::Q4_0, "q4_0")] {
        let mut bytes = Vec::new();
        floats.chunks_exact(WIDTH).for_each(|row| encode_row(dtype, row, &mut bytes));
        assert_eq!(bytes, fixture(&format!("{name}.bin")), "{name}");
    }
}

#[test]
fn what_is_encoded_comes_back_within_half_a_step() {
    let mut random = Random::new(5);
    let row: Vec<f32> = (0..WIDTH).map(|_| random.normal() as f32).collect();
    // Half a step of the largest value (of 16, for Q6_K whose scales are rounded to 1/128 besides).
    for (dtype, step) in [
        (TensorType::F32, 0.0),
        (TensorType::F16, 2e-3),
        (TensorType::Bf16, 2e-2),
        (TensorType::Q8_0, 0.02),
        (TensorType::Q6K, 0.08),
        (TensorType::Q4_0, 0.5),
    ] {
        let mut bytes = Vec::new();
        encode_row(dtype, &row, &mut bytes);
        assert_eq!(dtype.row_bytes(WIDTH), Some(bytes.len()));
        let worst = decoded(dtype, &bytes).iter().zip(&row).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= step, "{}: {worst}", dtype.name());
        let mut zeros = Vec::new();
        encode_row(dtype, &[0.0; WIDTH], &mut zeros);
        assert!(decoded(dtype, &zeros).iter().all(|v| *v == 0.0), "{}", dtype.name());
    }
}

#[test]
fn six_bits_of_a_normal_row_are_off_by_two_percent() {
    let mut random = Random::new(6);
    let row: Vec<f32> = (0..4096).map(|_| (0.02 * random.normal()) as f32).collect();
    let mut bytes = Vec::new();
    encode_row(TensorType::Q6K, &row, &mut bytes);
    let power = |values: &[f32]| values.iter().map(|v| f64::from(v * v)).sum::<f64>();
    let off: Vec<f32> = decoded(TensorType::Q6K, &bytes).iter().zip(&row).map(|(a, b)| a - b).collect();
    let relative = (power(&off) / power(&row)).sqrt();
    assert!(relative < 0.022, "{relative}");
}
