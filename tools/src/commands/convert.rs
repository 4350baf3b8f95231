//! `tritter convert`: between Hugging Face folders and GGUF files.

use crate::cli::{Convert, Global, TableType, WeightType};
use crate::commands::pack::fresh;
use crate::open::Opened;
use crate::output;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use tritter_model::gguf::export::{Types, export};
use tritter_model::gguf::tokenizer::{Files, files_of, read_files, write_entries};
use tritter_model::gguf::{Gguf, TensorType, import::import};
use tritter_model::locate::is_gguf_name;
use tritter_model::tensor_write::write_atomic;

#[derive(Serialize, Default)]
struct Report {
    model: String,
    out: String,
    /// Bytes of what was written.
    bytes: u64,
    /// Tensors that were written as F32 because their type cannot hold them.
    as_f32: Vec<String>,
    /// Largest relative change of a scale by rounding it to f16.
    scale_change: f64,
}

pub(crate) fn run(global: &Global, args: &Convert) -> Result<ExitCode> {
    let opened = Opened::new(&args.from)?;
    let report = match (&opened.file, is_gguf_name(&args.to)) {
        (Some(file), false) => {
            if args.weights.is_some() || args.unheeded {
                bail!(
                    "--type and --unheeded are for a .gguf file; a folder has ternary weights packed, or floats as the file has them"
                );
            }
            to_folder(file, args)?
        }
        (None, true) => to_file(&opened, args)?,
        (Some(_), true) => bail!("{} is a GGUF file already; convert it to a folder first", args.from),
        (None, false) => bail!("{} should end with .gguf, because {} is a folder", args.to.display(), args.from),
    };
    if global.json {
        output::json(&report)?;
    } else {
        let bytes = tritter_runtime::error::bytes;
        output::print(&format!("{}: {}\n", report.out, bytes(report.bytes)))?;
        if report.scale_change > 0.0 {
            output::print(&format!("scales are kept in f16: they change by at most {:.1e}\n", report.scale_change))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn to_file(opened: &Opened, args: &Convert) -> Result<Report> {
    let folder = opened.folder()?;
    if args.to.exists() {
        bail!("{} exists; nothing is overwritten, choose another name", args.to.display());
    }
    let default = if opened.config.is_ternary() { WeightType::I2S } else { WeightType::F16 };
    let types = Types {
        unheeded: args.unheeded,
        ..Types::new(weights(args.weights.unwrap_or(default)), tables(args.embedding))
    };
    let tokenizer = match files_of(folder)? {
        Some(files) => write_entries(&folder.join("tokenizer.json"), &files, opened.config.vocab_size)?,
        None => {
            eprintln!("note: {} has no tokenizer.json; the file gets no tokenizer", folder.display());
            Vec::new()
        }
    };
    let done = export(&args.to, &opened.config, &*opened.source()?, types, tokenizer)?;
    for (tensor, reason) in &done.as_f32 {
        eprintln!("note: {tensor} is written as F32: {reason}");
    }
    let size = std::fs::metadata(&args.to).with_context(|| format!("cannot read {}", args.to.display()))?.len();
    let as_f32 = done.as_f32.into_iter().map(|(tensor, _)| tensor).collect();
    Ok(Report { as_f32, scale_change: done.scale_change, bytes: size, ..named(args) })
}

fn to_folder(file: &Gguf, args: &Convert) -> Result<Report> {
    // Before anything is written: a tokenizer that cannot be read stops the conversion.
    let files = read_files(file)?;
    fresh(&args.to)?;
    import(file, &args.to)?;
    match files {
        Some(Files { tokenizer, config }) => {
            write_json(&args.to.join("tokenizer.json"), &tokenizer)?;
            write_json(&args.to.join("tokenizer_config.json"), &config)?;
        }
        None => eprintln!("note: {} has no tokenizer; the folder gets none", args.from),
    }
    let checkpoint = tritter_model::tensors::Checkpoint::open(&args.to)?;
    Ok(Report { bytes: checkpoint.data_bytes(), ..named(args) })
}

fn named(args: &Convert) -> Report {
    Report { model: args.from.clone(), out: args.to.display().to_string(), ..Report::default() }
}

fn write_json(path: &Path, json: &serde_json::Value) -> Result<()> {
    Ok(write_atomic(path, format!("{json:#}\n").as_bytes())?)
}

fn weights(weights: WeightType) -> TensorType {
    match weights {
        WeightType::I2S => TensorType::I2S,
        WeightType::Tq1_0 => TensorType::Tq1_0,
        WeightType::Tq2_0 => TensorType::Tq2_0,
        WeightType::Q2_0 => TensorType::Q2_0,
        WeightType::F16 => TensorType::F16,
        WeightType::F32 => TensorType::F32,
    }
}

fn tables(table: TableType) -> TensorType {
    match table {
        TableType::F16 => TensorType::F16,
        TableType::Bf16 => TensorType::Bf16,
        TableType::F32 => TensorType::F32,
        TableType::Q8_0 => TensorType::Q8_0,
        TableType::Q6K => TensorType::Q6K,
        TableType::Q4_0 => TensorType::Q4_0,
    }
}
