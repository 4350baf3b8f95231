//! wip
pub mod config;
mod config_json;
mod json_fields;
pub mod error;
pub mod mmap;
pub mod presets;
mod safetensors_header;
pub mod tensor_names;
pub mod tensor_write;
pub mod tensors;
