//! `tritter init`: a model with random weights, for tests and measurements that need a real size.
//!
//! The folder also gets a tokenizer of single bytes where the vocabulary has room for it, so that
//! `generate` runs on it; what comes out is noise.

use crate::cli::{Arch, FloatType, Global, Init, ScaleClass, WeightForm};
use crate::output;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use tritter_model::bpe_train::{MIN_VOCAB, train_bpe};
use tritter_model::config::{Config, Family, LinearClass, Quantization};
use tritter_model::generation_config::GenerationConfig;
use tritter_model::presets::{PRESETS, preset};
use tritter_model::save::{Floats, Layout, write_folder};
use tritter_model::seeded::Synthetic;
use tritter_model::tensor_write::write_atomic;
use tritter_model::tensors::Checkpoint;
use tritter_runtime::DType;
use tritter_runtime::error::bytes;

#[derive(Serialize)]
struct Report {
    model: String,
    out: String,
    seed: u64,
    parameters: u64,
    ternary: u64,
    bytes: u64,
    seconds: f64,
    tokenizer: bool,
}

pub(crate) fn run(global: &Global, args: &Init) -> Result<ExitCode> {
    let begin = Instant::now();
    if let Some(threads @ 1..) = global.threads {
        // A second call in one process keeps the first pool.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    let mut config = config(args)?;
    super::pack::fresh(&args.out)?;
    let tokenizer = config.vocab_size >= MIN_VOCAB;
    side_files(&args.out, &mut config, tokenizer)?;
    let (floats, dtype) = match args.embedding {
        FloatType::F32 => (Floats::F32, DType::F32),
        FloatType::Bf16 => (Floats::Bf16, DType::Bf16),
    };
    let source = Synthetic::new(&config, args.seed, dtype);
    let source = if args.form == WeightForm::Master { source.with_masters() } else { source };
    write_folder(&args.out, &config, &source, Layout { floats, shard: args.shard_size })?;
    let count = config.parameters();
    let report = Report {
        model: args.preset.clone(),
        out: args.out.display().to_string(),
        seed: args.seed,
        parameters: count.total(),
        ternary: count.ternary,
        bytes: Checkpoint::open(&args.out)?.data_bytes(),
        seconds: begin.elapsed().as_secs_f64(),
        tokenizer,
    };
    if global.json {
        output::json(&report)?;
    } else {
        let noise = "random weights: for tests and measurements";
        output::print(&format!("{}: {} of weights, {noise}\n", report.out, bytes(report.bytes)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn config(args: &Init) -> Result<Config> {
    let names = || PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", ");
    let preset = preset(&args.preset).with_context(|| format!("no preset `{}`; there are {}", args.preset, names()))?;
    let family = match args.arch {
        Arch::Bitnet => Family::Bitnet,
        Arch::Llama => Family::Llama,
        Arch::Tritter => Family::Tritter,
    };
    let mut config = preset.config(family, args.vocab, None);
    let class = match (args.scale_class, family) {
        (Some(ScaleClass::Bitlinear), _) | (None, Family::Llama) => LinearClass::BitLinear,
        _ => LinearClass::AutoBitLinear,
    };
    match args.form {
        WeightForm::Packed => config.quantization = Quantization::Offline { linear_class: class },
        WeightForm::Master if args.scale_class.is_some() => {
            bail!("--scale-class says how packed scales are read; --form master has none")
        }
        WeightForm::Master => {}
    }
    config.validate()?;
    Ok(config)
}

/// The sampling defaults and, if there is room, a tokenizer of bytes, whose special tokens go into the config.
fn side_files(out: &Path, config: &mut Config, tokenizer: bool) -> Result<()> {
    if tokenizer {
        let tokenizer = train_bpe([""], MIN_VOCAB)?;
        tokenizer.save_folder(out)?;
        config.bos_token_id = tokenizer.bos_id();
        config.eos_token_ids = tokenizer.eos_id().into_iter().collect();
        config.pad_token_id = tokenizer.pad_id();
    }
    let generation = GenerationConfig { eos_token_ids: config.eos_token_ids.clone(), ..GenerationConfig::default() };
    let json = generation.to_json(config.bos_token_id, config.pad_token_id);
    Ok(write_atomic(&out.join("generation_config.json"), format!("{json:#}\n").as_bytes())?)
}
