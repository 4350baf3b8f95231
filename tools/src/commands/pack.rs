//! `tritter pack` and `tritter unpack`.

use crate::cli::{Global, Pack, Unpack};
use crate::device;
use crate::open::Opened;
use crate::output;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use tritter_model::config::{Config, Quantization};
use tritter_model::save::{Floats, Layout, packed_config, write_folder};
use tritter_model::score::Scorer;
use tritter_runtime::Device;

/// Tokens over which the change of logits is measured.
const PROBE: usize = 64;

#[derive(Serialize)]
struct Report {
    model: String,
    out: String,
    bytes_before: u64,
    bytes_after: u64,
    largest_logit_change: Option<f32>,
    note: &'static str,
}

pub(crate) fn pack(global: &Global, args: &Pack) -> Result<ExitCode> {
    let opened = Opened::new(&args.model)?;
    if opened.config.quantization != Quantization::Online {
        bail!(
            "`{}` has no ternary master weights: only a model with `quantization_mode` online can be packed",
            args.model
        );
    }
    let folder = opened.folder()?.clone();
    let source = opened.source()?;
    fresh(&args.out)?;
    copy_side_files(&folder, &args.out)?;
    let floats = if args.bf16 { Floats::Bf16 } else { Floats::F32 };
    write_folder(&args.out, &packed_config(&opened.config), &*source, Layout { floats, shard: None })?;
    let change = match args.bf16 {
        true => Some(logit_change(&device::open(global)?, &opened, &args.out)?),
        false => None,
    };
    report(global, &args.model, &folder, &args.out, change, "")
}

pub(crate) fn unpack(global: &Global, args: &Unpack) -> Result<ExitCode> {
    let opened = Opened::new(&args.model)?;
    let Quantization::Offline { .. } = opened.config.quantization else {
        bail!("`{}` is not packed: its config has no offline quantisation", args.model);
    };
    if !opened.config.family.is_llama() {
        eprintln!(
            "note: {:?} blocks quantise activations; as a dense model it is read without that, so its outputs differ a little",
            opened.config.family
        );
    }
    let folder = opened.folder()?.clone();
    let source = opened.source()?;
    fresh(&args.out)?;
    copy_side_files(&folder, &args.out)?;
    let config = Config { quantization: Quantization::None, ..opened.config.clone() };
    write_folder(&args.out, &config, &*source, Layout { floats: Floats::F32, shard: None })?;
    let note = "weights are code × scale; the masters that they were rounded from cannot be recovered";
    report(global, &args.model, &folder, &args.out, None, note)
}

fn report(
    global: &Global,
    model: &str,
    folder: &Path,
    out: &Path,
    change: Option<f32>,
    note: &'static str,
) -> Result<ExitCode> {
    let (before, after) = (weight_bytes(folder)?, weight_bytes(out)?);
    let report = Report {
        model: model.into(),
        out: out.display().to_string(),
        bytes_before: before,
        bytes_after: after,
        largest_logit_change: change,
        note,
    };
    if global.json {
        output::json(&report)?;
    } else {
        let bytes = tritter_runtime::error::bytes;
        output::print(&format!("{}: {} of weights, {} before\n", out.display(), bytes(after), bytes(before)))?;
        if let Some(change) = change {
            output::print(&format!("bf16 changes logits by at most {change:.4} over {PROBE} tokens\n"))?;
        }
        if !note.is_empty() {
            output::print(&format!("{note}\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Creates a folder; refuses one with content.
pub(crate) fn fresh(out: &Path) -> Result<()> {
    if out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty; nothing is overwritten, choose another folder", out.display());
    }
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))
}

pub(crate) fn copy_side_files(from: &Path, to: &Path) -> Result<()> {
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let source = from.join(name);
        if source.exists() {
            let bytes = std::fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
            tritter_model::tensor_write::write_atomic(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}

fn weight_bytes(folder: &Path) -> Result<u64> {
    Ok(tritter_model::tensors::Checkpoint::open(folder)?.data_bytes())
}

/// Largest change of a logit between a folder and its packed copy on fixed pseudo-random tokens.
fn logit_change(device: &Device, before: &Opened, after: &Path) -> Result<f32> {
    let mut random = tritter_runtime::random::Random::new(0);
    let vocab = before.config.vocab_size as u64;
    let length = PROBE.min(before.config.max_positions);
    let ids: Vec<u32> = (0..length).map(|_| random.below(vocab) as u32).collect();
    let after = Opened::new(&after.display().to_string())?;
    let logits = |opened: &Opened| -> Result<Vec<f32>> {
        let model = opened.load(device, length)?;
        Ok(Scorer::new(device, &model, length, false)?.run(&ids, 1)?)
    };
    let (a, b) = (logits(before)?, logits(&after)?);
    Ok(a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
}
