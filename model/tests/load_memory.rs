//! Memory in use while a packed model of 125 M parameters is loaded from its file. A test binary of its
//! own, because the peak is the process's.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use tritter_model::Config;
use tritter_model::config::{Family, LinearClass, Quantization};
use tritter_model::presets::preset;
use tritter_model::save::{Floats, Layout, write_folder};
use tritter_model::seeded::Synthetic;
use tritter_model::source::FromCheckpoint;
use tritter_model::tensors::Checkpoint;
use tritter_model::weights::{Form, Model};
use tritter_runtime::DType;

/// A field of `/proc/self/status` in bytes.
fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn loading_takes_the_weights_and_a_small_part_of_the_file() {
    let offline = Quantization::Offline { linear_class: LinearClass::AutoBitLinear };
    let config = Config { quantization: offline, ..preset("125M").unwrap().config(Family::Bitnet, None, None) };
    let folder = tempfile::tempdir().unwrap();
    let source = Synthetic::new(&config, 1, DType::Bf16);
    write_folder(folder.path(), &config, &source, Layout { floats: Floats::Bf16, shard: None }).unwrap();

    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let device = tritter_runtime::cpu::open();
    let model = Model::new(&config, Form::Run, 256);
    // The peak so far is forgotten; where the system does not allow that, writing took less anyway.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let before = status("VmRSS:");
    model.load(&device, &FromCheckpoint { checkpoint: &checkpoint, quantization: offline }).unwrap();
    let (peak, file) = (status("VmHWM:").saturating_sub(before), checkpoint.data_bytes());
    let most = model.bytes() + file * 15 / 100;
    assert!(peak <= most, "{peak} bytes at the peak, {most} allowed: {} of weights, a file of {file}", model.bytes());
}
