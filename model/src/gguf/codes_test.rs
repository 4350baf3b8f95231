#![allow(clippy::unwrap_used)]
use super::*;
use crate::gguf::fixture;
use crate::gguf::types::TYPES;
use tritter_runtime::random::Random;

const ROWS: usize = 2;
const WIDTH: usize = 512;
/// The scale of the golden blocks, exact in f16.
const SCALE: f16 = f16::from_f32_const(0.40625);

/// The golden bytes of a type decode to the golden codes, and these encode to the bytes.
fn holds(dtype: TensorType, name: &str) {
    let (codes, bytes) = (fixture("codes.bin"), fixture(name));
    let row = dtype.row_bytes(WIDTH).unwrap();
    assert_eq!(dtype.bytes(ROWS, WIDTH), Some(bytes.len()), "{name}");
    let mut again = Vec::new();
    for (bytes, codes) in bytes.chunks_exact(row).zip(codes.chunks_exact(WIDTH)).take(ROWS) {
        let mut decoded = vec![9; WIDTH];
        assert!(decode_row(dtype, bytes, &mut decoded), "{name}");
        assert_eq!(decoded, codes, "{name}");
        encode_row(dtype, codes, SCALE, &mut again);
        if dtype != TensorType::I2S {
            let (_, size) = dtype.block();
            assert!(bytes.chunks_exact(size).all(|block| scale_at(dtype, block) == SCALE), "{name}");
        }
    }
    assert_eq!(again, bytes[..ROWS * row], "{name}");
}

#[test]
fn every_bit_order_is_that_of_the_golden_bytes() {
    holds(TensorType::Tq1_0, "tq1_0.bin");
    holds(TensorType::Tq2_0, "tq2_0.bin");
    holds(TensorType::I2S, "i2_s.bin");
    holds(TensorType::Q2_0, "q2_0_64.bin");
    holds(TensorType::Q2_0G128, "q2_0_128.bin");
    holds(TensorType::Pq2_0, "q2_0_128.bin");
    let scale = *fixture("i2_s.bin")[ROWS * WIDTH / 4..].first_chunk().unwrap();
    assert_eq!(f32::from_le_bytes(scale), SCALE.to_f32());
}

#[test]
fn codes_survive_every_type_and_a_code_of_three_is_seen_at_every_place() {
    let mut random = Random::new(11);
    for dtype in TYPES.into_iter().filter(|t| t.is_ternary()) {
        let (elements, size) = dtype.block();
        let codes: Vec<u8> = (0..2 * elements).map(|_| random.below(3) as u8).collect();
        let mut bytes = Vec::new();
        encode_row(dtype, &codes, SCALE, &mut bytes);
        let mut again = vec![0; codes.len()];
        assert!(decode_row(dtype, &bytes, &mut again) && again == codes, "{}", dtype.name());
        if dtype == TensorType::Tq1_0 {
            continue;
        }
        for at in 0..2 * elements {
            let mut damaged = codes.clone();
            damaged[at] = 3;
            let mut bytes = Vec::new();
            encode_row(dtype, &damaged, SCALE, &mut bytes);
            assert_eq!(bytes.len(), 2 * size);
            assert!(!decode_row(dtype, &bytes, &mut again), "{} at {at}", dtype.name());
        }
    }
}

#[test]
fn only_bytes_that_five_digits_give_are_taken() {
    let blank = {
        let mut bytes = Vec::new();
        encode_row(TensorType::Tq1_0, &[1; 256], SCALE, &mut bytes);
        bytes
    };
    let mut codes = [0; 256];
    for (at, most) in [(0, 243), (47, 243), (48, 81), (51, 81)] {
        let taken = (0..=255u8).filter(|&byte| {
            let mut bytes = blank.clone();
            bytes[at] = byte;
            decode_row(TensorType::Tq1_0, &bytes, &mut codes)
        });
        assert_eq!(taken.count(), most, "byte {at}");
    }
}
