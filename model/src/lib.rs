//! Ternary and dense transformers: what a model is ([`config`], [`presets`]),
//! its files ([`tensors`], [`tensor_write`], [`tokenizer`], [`generation_config`]),
//! where it is found ([`locate`]), how its next token is chosen
//! ([`host_sampling`]) and how it runs where it does not fit ([`mod@stream`]).
//!
//! Models are Hugging Face folders or GGUF files ([`gguf`]). Everything read is checked before
//! it is used; errors name file, field and remedy.

mod byte_level;
mod json_fields;
mod pages;
mod places;
mod safetensors_header;

pub mod bpe_train;
pub mod cache;
pub mod cache_file;
pub mod cache_image;
pub mod chat_template;
pub mod config;
pub mod config_json;
pub mod demo_text;
pub mod error;
pub mod forward;
pub mod fused;
pub mod generation_config;
pub mod generator;
pub mod gguf;
pub mod host_sampling;
pub mod load;
pub mod locate;
pub mod lookup;
pub mod mmap;
pub mod online;
pub mod packed;
pub mod perplexity;
pub mod presets;
pub mod programs;
pub mod quantize;
pub mod quantized;
pub mod rope_scaling;
pub mod save;
pub mod score;
pub mod seeded;
pub mod session;
pub mod source;
pub mod stop;
pub mod stream;
pub mod tensor_names;
pub mod tensor_write;
pub mod tensors;
pub mod text_stream;
pub mod tokenizer;
pub mod tokenizer_golden;
pub mod weights;

pub use config::Config;
pub use error::{Error, Result};
