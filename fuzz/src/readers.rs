//! What the fuzz targets and the plain test over the corpus (`model/tests/corpus.rs`) do with bytes:
//! everything that opening a model does. Errors are fine, panics and large allocations are not.
#![allow(dead_code)]

use tritter_model::Config;
use tritter_model::gguf::config::read_config;
use tritter_model::gguf::source::FromGguf;
use tritter_model::gguf::tokenizer::read_files;
use tritter_model::gguf::{Gguf, codes, floats};
use tritter_model::source::{FromCheckpoint, Source, Stored, rows, width};
use tritter_model::tensors::Checkpoint;

/// Reads bytes as a GGUF file: header, metadata, config, tokenizer and every row of every tensor.
pub(crate) fn gguf(bytes: &[u8]) {
    let Ok(gguf) = Gguf::from_bytes(bytes.to_vec()) else { return };
    let keys: Vec<&str> = gguf.metadata().keys().collect();
    for key in keys {
        let _ = (gguf.texts(key), gguf.numbers(key));
    }
    for tensor in gguf.tensors() {
        let (Ok(bytes), Some(size)) = (gguf.bytes(tensor), tensor.dtype.row_bytes(tensor.width())) else { continue };
        let mut values = vec![0.0; tensor.width()];
        let mut row = vec![0; tensor.width()];
        for stored in bytes.chunks_exact(size.max(1)).take(tensor.rows()) {
            floats::decode_row(tensor.dtype, stored, &mut values);
            if tensor.dtype.is_ternary() {
                let _ = codes::decode_row(tensor.dtype, stored, &mut row);
            }
        }
    }
    let _ = read_files(&gguf);
    if let Ok(config) = read_config(&gguf)
        && let Ok(source) = FromGguf::new(&gguf, &config)
    {
        everything(&config, &source);
    }
}

/// Reads bytes as a safetensors file: header, every tensor, and what a model of the preset `test` asks for.
pub(crate) fn safetensors(bytes: &[u8]) {
    let Ok(checkpoint) = Checkpoint::from_bytes(bytes.to_vec()) else { return };
    let names: Vec<&str> = checkpoint.names().collect();
    for name in names {
        if let Ok(view) = checkpoint.get(name) {
            let _ = view.to_f32();
        }
    }
    let Ok(config) = Config::from_json("config.json".as_ref(), &config()) else { return };
    let _ = checkpoint.check(&config);
    everything(&config, &FromCheckpoint { checkpoint: &checkpoint, quantization: config.quantization });
}

fn everything(config: &Config, source: &dyn Source) {
    for spec in config.tensors() {
        let Ok(stored) = source.stored(&spec) else { continue };
        let (mut values, mut words) = (vec![0.0; width(&spec)], vec![0; width(&spec).div_ceil(16)]);
        for row in 0..rows(&spec) {
            let _ = source.floats(&spec, row, &mut values);
            if let Stored::Ternary { .. } = stored {
                let _ = source.codes(&spec, row, &mut words);
            }
        }
        let _ = source.in_place(&spec, 0..rows(&spec));
    }
}

/// A packed model of one layer, whose weights are in the corpus.
pub(crate) fn config() -> serde_json::Value {
    serde_json::json!({
        "model_type": "bitnet", "vocab_size": 8, "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "quantization_config": {
            "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
        },
    })
}
