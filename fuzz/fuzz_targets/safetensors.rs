//! `cargo +nightly fuzz run safetensors`: whatever the bytes, the reader returns.
#![no_main]

#[path = "../src/readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| readers::safetensors(bytes));
