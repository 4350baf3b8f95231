//! The command line's grammar.

use crate::plan::budget::DesktopName;
use crate::plan::session::May;
use crate::plan::training::Method;
use crate::sizes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use tritter_model::cache::CacheFormat;
use tritter_model::config::RopeExtension;
use tritter_model::programs::Layout;

/// Train and run ternary transformers on the GPU you own.
#[derive(Parser, Debug)]
#[command(name = "tritter", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "Examples:
  tritter demo                              watch a ternary model learn, here and now
  tritter devices                           what this machine can run on
  tritter tokenizer train notes/ -o tok.json --vocab 4096
  tritter train --data notes/ --preset test --tokenizer tok.json --out run --steps 500
  tritter generate run \"The river\" -n 100
  tritter pack run packed                   2-bit weights for inference";

/// Options that every command takes.
#[derive(Args, Debug, Clone)]
pub(crate) struct Global {
    /// Where to run: auto, cpu, wgpu, wgpu:N, cuda or cuda:N
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    pub(crate) device: String,
    /// Threads of the CPU kernels [default: all]
    #[arg(short, long, global = true, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Train a small ternary model on embedded text for a minute and generate from it
    #[command(after_help = "Example:\n  tritter demo --seconds 60")]
    Demo(Demo),
    /// Train a model from scratch, or go on with a run
    #[command(after_help = "Examples:
  tritter train --data text/ --preset test --tokenizer tok.json --out run --steps 1000
  tritter train --data text/ --preset test --tokenizer tok.json --out run --steps 2000 --resume")]
    Train(Train),
    /// Generate text
    #[command(after_help = "Examples:
  tritter generate run \"Once\" -n 200 --temperature 0.8 --top-k 40 --seed 7
  echo Once | tritter generate run
  tritter generate run --prompt Once --prompt \"The river\" --stop \"\\n\" --stats")]
    Generate(Generate),
    /// Talk to a model in its chat template
    #[command(after_help = "Lines go to the model; one that ends with \\ goes on in the next. /reset forgets the \
conversation, /quit ends it.

Example:\n  tritter chat run --system \"Answer briefly.\"")]
    Chat(Chat),
    /// Train a tokenizer, or encode and decode with one
    #[command(subcommand)]
    Tokenizer(Tokenizer),
    /// List devices
    Devices,
    /// Check every kernel of a device against its f64 reference
    Check(Check),
    /// Measure kernels, decoding or training
    #[command(subcommand)]
    Bench(Bench),
    /// Say what a model takes in memory before anything is allocated
    #[command(after_help = "Examples:
  tritter plan 7B --context 128K --kv int4 --device-memory 16GiB
  tritter plan 7B --context 128K --kv int4 --device-memory 16GiB --plot memory.svg
  tritter plan run --train --batch 8 --context 512 --memory-limit 8GB
  tritter plan --matrix --context 32k --kv int4

The budget of a card is (memory - what the system keeps - 0.3 GB) * 0.9 - 1 GB. k and m of tokens are 1024
and 1024²; GB are 10^9 bytes, GiB 2^30. Exit 0: it fits, 3: it does not, 1: an error.")]
    Plan(Plan),
    /// Write a model with random weights, in full size and in the layout of Hugging Face
    #[command(after_help = "Examples:
  tritter init bitnet-2b4t --out model --seed 1 --embedding bf16
  tritter init llama2-7b --out model --seed 1 --arch llama --scale-class bitlinear --shard-size 2GB
  tritter init test --out model --seed 1 --form master --vocab 512")]
    Init(Init),
    /// Measure the perplexity of a text with each cache type, against f16
    #[command(after_help = "Examples:
  tritter perplexity run --text notes.txt
  tritter perplexity run --text notes.txt --kv int4,int2 --context 4096 --tokens 65536")]
    Perplexity(Perplexity),
    /// Write a model's ternary weights in two bits each
    Pack(Pack),
    /// Quantise a model without training it: ternary, 8 or 4 bits, and its embedding and head
    #[command(after_help = "Examples:
  tritter quantize llama small --to int8 --head int8 --text notes.txt
  tritter quantize bitnet smaller --head int6 --text notes.txt
Ternary weights (absmean) of a model that was not trained for them give nonsense; the perplexity shows it.")]
    Quantize(Quantize),
    /// Write a packed model as a plain dense one (masters cannot be recovered)
    Unpack(Unpack),
    /// Convert between Hugging Face folders and GGUF files
    #[command(after_help = "Examples:
  tritter convert packed model.gguf --type i2_s
  tritter convert model.gguf folder")]
    Convert(Convert),
    /// Recompute the golden outputs of a folder and compare
    Validate(Validate),
}

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Seconds to train
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: u64,
    /// Folder for the model [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Seed of weights and batches
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Dtype of activations and their gradients; master weights stay f32
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) precision: Precision,
}

/// How a model is held in memory, and how far its positions reach.
#[derive(Args, Debug, Clone, Copy, Default)]
pub(crate) struct WeightArgs {
    /// Ternary weights in 2 or 1.6 bits; auto takes 1.6 where 2 do not fit
    #[arg(long, value_enum, default_value_t = TernaryFormat::Auto)]
    pub(crate) weights: TernaryFormat,
    /// Embedding and head in memory [default: as the file has them]
    #[arg(long, value_enum)]
    pub(crate) head: Option<TableFormat>,
    /// Reach beyond the positions that the model was made for: linear:F divides positions by F, yarn:F
    /// stretches slow frequencies by F (YaRN), theta:X takes another base
    #[arg(long, value_name = "KIND:X")]
    pub(crate) rope: Option<RopeExtension>,
}

/// Models that are larger than the memory.
#[derive(Args, Debug, Clone, Copy, Default)]
pub(crate) struct StreamArgs {
    /// Let layers that do not fit --memory-limit come from a file in the user's cache folder in every step: slower, and
    /// bit for bit the same
    #[arg(long)]
    pub(crate) stream: bool,
}

/// Format of `--weights`.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TernaryFormat {
    /// 2 bits, or 1.6 where 2 do not fit
    #[default]
    Auto,
    /// 2 bits: 4 in a byte
    T2,
    /// 1.6 bits: 5 in a byte
    T1,
}

/// Format of `--head`; integers have a scale for 64 columns.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableFormat {
    /// 4 bytes
    F32,
    /// 2 bytes, IEEE half
    F16,
    /// 2 bytes, upper half of an f32
    Bf16,
    /// 8 bits
    I8,
    /// 6 bits
    I6,
    /// 4 bits
    I4,
}

/// Block of `--arch`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    /// BitNet b1.58 (transformers' BitNetForCausalLM)
    Bitnet,
    /// Llama, dense
    Llama,
    /// BitNet with QK-norm and a norm on the feed-forward branch
    Tritter,
}

/// Course of the learning rate.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// Warm-up, then cosine to a tenth
    Cosine,
    /// Warm-up, then constant
    Constant,
    /// Two stages with weight decay that ends (BitNet b1.58)
    TwoStage,
}

/// Dtype of `--precision`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    /// f32 throughout
    F32,
    /// bf16 activations and their gradients; master weights, optimiser and loss in f32
    Bf16,
}

#[derive(Args, Debug)]
pub(crate) struct Train {
    /// Text: files, folders (ignore files are honoured) or .jsonl with `text`
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub(crate) data: Vec<PathBuf>,
    /// Shape: test, 125M, 350M, 1B, 3B, 7B, …
    #[arg(long, default_value = "test", value_name = "NAME")]
    pub(crate) preset: String,
    /// Block
    #[arg(long, value_enum, default_value_t = Arch::Bitnet)]
    pub(crate) arch: Arch,
    /// tokenizer.json
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: PathBuf,
    /// Folder of the run: a loadable model at every moment
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Optimiser steps in all (resuming counts those done)
    #[arg(long, default_value_t = 1000)]
    pub(crate) steps: u64,
    /// Sequences in a micro-batch
    #[arg(long, default_value_t = 8)]
    pub(crate) batch: usize,
    /// Micro-batches whose gradients are added up for one step
    #[arg(long, default_value_t = 1)]
    pub(crate) accumulate: usize,
    /// Tokens in a sequence
    #[arg(long, default_value = "256", value_parser = sizes::count)]
    pub(crate) context: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 1.5e-3)]
    pub(crate) lr: f64,
    /// Course of the learning rate
    #[arg(long, value_enum, default_value_t = Course::TwoStage)]
    pub(crate) schedule: Course,
    /// Steps of linear warm-up [default: 2 % of the steps, at most 500]
    #[arg(long, value_name = "N")]
    pub(crate) warmup: Option<u64>,
    /// Weight decay of matrices
    #[arg(long, default_value_t = 0.1)]
    pub(crate) weight_decay: f64,
    /// Largest gradient norm; 0 does not clip
    #[arg(long, default_value_t = 1.0)]
    pub(crate) clip: f64,
    /// Seed of weights and batches
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Steps between checkpoints; 0 saves at the end only
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub(crate) checkpoint_every: u64,
    /// Steps between evaluations on held-out text
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) evaluate_every: u64,
    /// Share of the text that is held out
    #[arg(long, default_value_t = 0.05, value_name = "SHARE")]
    pub(crate) validation: f64,
    /// Compute each layer again in the backward pass instead of keeping it
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Dtype of activations and their gradients; master weights stay f32
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) precision: Precision,
    /// Memory that weights, moments, gradients and activations may take, e.g. 12.6GB [default: what is safe on
    /// the device]. Where that is short, micro-batches become smaller, then layers are computed again
    #[arg(long, value_name = "SIZE", value_parser = sizes::bytes)]
    pub(crate) memory_limit: Option<u64>,
    /// Go on with the run in --out
    #[arg(long)]
    pub(crate) resume: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Generate {
    /// Model folder, or a Hub id that is in the local cache
    pub(crate) model: String,
    /// Text to continue [default: standard input]
    #[arg(value_name = "PROMPT")]
    pub(crate) text: Option<String>,
    /// One more text to continue; may be repeated
    #[arg(long = "prompt", value_name = "TEXT")]
    pub(crate) more: Vec<String>,
    /// File with a text to continue in each line
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// Texts that decode together [default: all, up to 16]
    #[arg(long, value_name = "N")]
    pub(crate) batch: Option<usize>,
    /// Tokens to generate at most
    #[arg(short = 'n', long, default_value_t = 128, value_name = "N")]
    pub(crate) max_tokens: usize,
    /// Positions of the cache for each text [default: prompt and --max-tokens]
    #[arg(short, long, value_name = "N", value_parser = sizes::count)]
    pub(crate) context: Option<usize>,
    #[command(flatten)]
    pub(crate) choice: Choice,
    #[command(flatten)]
    pub(crate) streaming: StreamArgs,
    /// Go on after an end-of-text token
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Let the texts be what a user says, in the model's chat template, and print the answers alone
    #[arg(long)]
    pub(crate) chat: bool,
    /// Say this first in the chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Let N tokens be proposed by what followed the last ones earlier in the text, and verified in one
    /// step; the text is that of greedy choice. 0 is off
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) speculate: usize,
    /// Write what the cache holds of the prompt, to be loaded for texts that begin with it
    #[arg(long, value_name = "FILE")]
    pub(crate) save_cache: Option<PathBuf>,
    /// Begin with the cache that --save-cache wrote, of the same model and cache type; only the rest of the
    /// prompt is computed
    #[arg(long, value_name = "FILE")]
    pub(crate) load_cache: Option<PathBuf>,
    /// Print times, tokens per second, bytes read per token and their share of the bandwidth, which is
    /// measured after the text
    #[arg(long)]
    pub(crate) stats: bool,
}

/// How the cache is stored, which keys a token sees, and the memory that there is.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct CacheArgs {
    /// Cache of keys and values: f32, f16, int8, int4 or int2
    #[arg(long, default_value = "f32", value_name = "TYPE")]
    pub(crate) kv: CacheFormat,
    /// Newest tokens that a token sees, itself included, e.g. 4096 or 32k [default: all]
    #[arg(long, value_name = "N", value_parser = sizes::count)]
    pub(crate) window: Option<usize>,
    /// First tokens of the text that are seen whatever the window is
    #[arg(long, value_name = "N", default_value = "0", value_parser = sizes::count)]
    pub(crate) sinks: usize,
    /// Pages of 64 tokens that all texts share; one that finds none free ends with that reason [default: as many
    /// as all can fill]
    #[arg(long, value_name = "N")]
    pub(crate) pages: Option<usize>,
    /// Where memory is short, allow a smaller type of cache, which changes results a little
    #[arg(long)]
    pub(crate) kv_may_shrink: bool,
    /// Where nothing else makes it fit, let tokens see the newest N only, which changes results
    #[arg(long, value_name = "N", value_parser = sizes::count)]
    pub(crate) fallback_window: Option<usize>,
    /// Memory that weights, cache and activations may take, e.g. 12.6GB [default: what is safe on the device]
    #[arg(long, value_name = "SIZE", value_parser = sizes::bytes)]
    pub(crate) memory_limit: Option<u64>,
}

impl CacheArgs {
    /// Room for one sequence.
    pub(crate) fn layout(&self, capacity: usize) -> Layout {
        // Sinks beside a window that is only fallen back on come with it.
        let sinks = if self.window.is_none() && self.fallback_window.is_some() { 0 } else { self.sinks };
        Layout { window: self.window, sinks, pages: self.pages, ..Layout::single(capacity, self.kv) }
    }

    /// The longest distance between tokens that meet in a context of so many: only distances count, and with a
    /// window none is longer.
    pub(crate) fn reach(&self, context: usize) -> usize {
        // A window of 0 is refused by the session, by its name.
        self.window.map_or(context, |window| context.min(window.max(1).saturating_add(self.sinks)))
    }

    /// What may be given up where memory is short.
    pub(crate) fn may(&self) -> May {
        let window = self.fallback_window.map(|window| (window, self.sinks));
        May { shrink: self.kv_may_shrink, window, ..May::default() }
    }
}

/// How tokens are chosen, and when to stop.
#[derive(Args, Debug)]
pub(crate) struct Choice {
    /// 0 is greedy [default: of generation_config.json]
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Keep the K most likely tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Keep the smallest set of tokens with this probability
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// Drop tokens below this share of the most likely one
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f32>,
    /// Divide the logits of tokens seen by this
    #[arg(long, value_name = "X")]
    pub(crate) repeat_penalty: Option<f32>,
    /// Seed of sampling, which reproduces a text on one device [default: of the clock; it is printed]
    #[arg(short, long)]
    pub(crate) seed: Option<u64>,
    /// End a text before this string; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) formats: WeightArgs,
}

#[derive(Args, Debug)]
pub(crate) struct Chat {
    /// Model folder with a chat template, or a Hub id that is in the local cache
    pub(crate) model: String,
    /// Say this before the conversation
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Tokens of an answer at most
    #[arg(short = 'n', long, default_value_t = 1024, value_name = "N")]
    pub(crate) max_tokens: usize,
    /// Positions of the cache: tokens of the whole conversation [default: those of the model, up to 4096]
    #[arg(short, long, value_name = "N", value_parser = sizes::count)]
    pub(crate) context: Option<usize>,
    #[command(flatten)]
    pub(crate) streaming: StreamArgs,
    #[command(flatten)]
    pub(crate) choice: Choice,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Tokenizer {
    /// Train a byte-level BPE
    Train {
        /// Files, folders or .jsonl
        #[arg(required = true)]
        data: Vec<PathBuf>,
        /// File to write
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
        /// Tokens, special ones included
        #[arg(long, default_value_t = 4096)]
        vocab: usize,
    },
    /// Print the token ids of a text
    Encode {
        /// tokenizer.json
        tokenizer: PathBuf,
        /// Text [default: standard input, any bytes]
        text: Option<String>,
        /// Add the special tokens of the template
        #[arg(long)]
        special: bool,
    },
    /// Print the text of token ids
    Decode {
        /// tokenizer.json
        tokenizer: PathBuf,
        /// Ids [default: standard input]
        ids: Vec<u32>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// Seed of the operands [default: of the clock; it is printed]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Only rows whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) row: Option<String>,
    /// Runs of one program of all rows, over which memory in use must not grow
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) replays: usize,
    /// Print what each row has (signature, kernels, gradient, cases) and check nothing
    #[arg(long)]
    pub(crate) coverage: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Bench {
    /// Every row at its bench sizes, with the share of the device's measured peaks
    Kernels {
        /// Only rows whose name contains this
        #[arg(long, value_name = "TEXT")]
        row: Option<String>,
        /// Seconds for each case, about
        #[arg(long, default_value_t = 0.3)]
        seconds: f64,
    },
    /// Our CUDA kernels against cuBLAS on one card, in one run
    Yardstick {
        /// Seconds for each of our kernels, about
        #[arg(long, default_value_t = 0.3)]
        seconds: f64,
    },
    /// Prefill and decode tokens per second
    #[command(after_help = "Examples:
  tritter bench decode bitnet-2b4t --head i8
  tritter bench decode 7B --head i8 --kv int4 --fill 131000 --prompt 0 -n 8
  tritter bench decode 125M --kv f16 --window 4096 --fill 1000000 --prompt 0")]
    Decode(BenchDecode),
    /// Training tokens per second
    Train {
        /// Preset
        #[arg(default_value = "125M")]
        preset: String,
        /// Sequences in a micro-batch
        #[arg(long, default_value_t = 1)]
        batch: usize,
        /// Tokens in a sequence
        #[arg(long, default_value_t = 256)]
        context: usize,
        /// Steps to time
        #[arg(long, default_value_t = 3)]
        steps: u64,
        /// Vocabulary
        #[arg(long)]
        vocab: Option<usize>,
        /// Block
        #[arg(long, value_enum, default_value_t = Arch::Bitnet)]
        arch: Arch,
        /// Dtype of activations and their gradients
        #[arg(long, value_enum, default_value_t = Precision::F32)]
        precision: Precision,
        /// Memory that it may take, e.g. 12.6GB [default: what is safe on the device]
        #[arg(long, value_name = "SIZE", value_parser = sizes::bytes)]
        memory_limit: Option<u64>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct BenchDecode {
    /// Model folder or preset (random weights)
    pub(crate) model: String,
    /// Prompts whose prefill is timed, in tokens; 0 times none
    #[arg(long, value_delimiter = ',', default_value = "128,512", value_name = "N,N", value_parser = sizes::count)]
    pub(crate) prompt: Vec<usize>,
    /// Tokens to decode
    #[arg(short = 'n', long, default_value_t = 128, value_name = "N")]
    pub(crate) tokens: usize,
    /// Tokens of random content that are in the cache before decoding begins; nothing is fed for them
    #[arg(long, default_value = "0", value_name = "N", value_parser = sizes::count)]
    pub(crate) fill: usize,
    /// Times that each is run; medians are printed
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(crate) repeats: usize,
    /// Vocabulary of a preset
    #[arg(long)]
    pub(crate) vocab: Option<usize>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) streaming: StreamArgs,
    #[command(flatten)]
    pub(crate) formats: WeightArgs,
}

#[derive(Args, Debug)]
pub(crate) struct Plan {
    /// Model folder or preset
    #[arg(required_unless_present = "matrix")]
    pub(crate) model: Option<String>,
    /// Positions of the cache, or tokens in a sequence when training: 4096, 32k, 128K, 1m
    #[arg(short, long, value_name = "N", value_parser = sizes::count)]
    pub(crate) context: Option<usize>,
    /// Plan training instead of inference
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "qat", value_name = "METHOD")]
    pub(crate) train: Option<Method>,
    /// Rank of the adapters of lora and qlora
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub(crate) rank: usize,
    /// Sequences in the cache, or in a micro-batch
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: usize,
    /// Plan with recomputed layers
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Dtype of activations in training, on a device that has kernels for it
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub(crate) precision: Precision,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) formats: WeightArgs,
    /// Memory of the card, e.g. 16GiB, of which the safe part is the budget: exit 3 where the plan does not fit
    #[arg(long, value_name = "SIZE", value_parser = sizes::bytes, conflicts_with = "memory_limit")]
    pub(crate) device_memory: Option<u64>,
    /// What else uses the card [default: as here]
    #[arg(long, value_enum)]
    pub(crate) desktop: Option<DesktopName>,
    /// Let layers that do not fit come from the system's memory in every step
    #[arg(long)]
    pub(crate) stream: bool,
    /// Write a picture of memory against context, SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    /// Hold all presets, or the one named, against common cards
    #[arg(long, conflicts_with_all = ["train", "plot", "stream", "device_memory", "memory_limit"])]
    pub(crate) matrix: bool,
}

/// Form of `--form`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightForm {
    /// Ternary codes, four to a byte, with a scale
    Packed,
    /// Floats: masters of a ternary model, which are made ternary at load; a llama is dense
    Master,
}

/// Float type of `--embedding`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatType {
    /// 4 bytes
    F32,
    /// 2 bytes, as the released checkpoints have it
    Bf16,
}

/// Convention of `--scale-class`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScaleClass {
    /// Codes are multiplied by the scale (microsoft/bitnet-b1.58-2B-4T)
    Autobitlinear,
    /// Codes are divided by the scale (HF1BitLLM)
    Bitlinear,
}

#[derive(Args, Debug)]
pub(crate) struct Init {
    /// Shape: test, 125M, 350M, …, bitnet-2b4t, llama2-7b
    pub(crate) preset: String,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Seed of the weights: equal seeds give equal files
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Block
    #[arg(long, value_enum, default_value_t = Arch::Bitnet)]
    pub(crate) arch: Arch,
    /// How the projections are stored
    #[arg(long, value_enum, default_value_t = WeightForm::Packed)]
    pub(crate) form: WeightForm,
    /// Tokens of the vocabulary [default: the preset's]
    #[arg(long, value_name = "N")]
    pub(crate) vocab: Option<usize>,
    /// Type of the embedding and all other floats
    #[arg(long, value_enum, default_value_t = FloatType::Bf16)]
    pub(crate) embedding: FloatType,
    /// How packed scales are to be read [default: bitlinear for llama, else autobitlinear]
    #[arg(long, value_enum)]
    pub(crate) scale_class: Option<ScaleClass>,
    /// Begin another file after this many bytes, e.g. 2GB [default: one file]
    #[arg(long, value_name = "SIZE", value_parser = sizes::bytes)]
    pub(crate) shard_size: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct Pack {
    /// Model folder with master weights
    pub(crate) model: String,
    /// Folder to write
    pub(crate) out: PathBuf,
    /// Store scales, norms and embedding in bf16 and print how much logits change
    #[arg(long)]
    pub(crate) bf16: bool,
}

/// Weights of `quantize --to`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProjectionType {
    /// -1, 0 and 1 with one scale a matrix (absmean)
    Ternary,
    /// 8 bits, one scale a group
    Int8,
    /// 4 bits, one scale a group
    Int4,
}

/// Weights of `quantize --head`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadType {
    /// 8 bits, one scale a group
    Int8,
    /// 6 bits, one scale a group
    Int6,
}

#[derive(Args, Debug)]
pub(crate) struct Quantize {
    /// Model folder, or a Hub id that is in the local cache
    pub(crate) model: String,
    /// Folder to write
    pub(crate) out: PathBuf,
    /// What the projections of the layers become [default: kept as they are]
    #[arg(long, value_enum)]
    pub(crate) to: Option<ProjectionType>,
    /// What embedding and head become [default: kept as they are]
    #[arg(long, value_enum)]
    pub(crate) head: Option<HeadType>,
    /// Weights of a row that share a scale; a multiple of 16
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub(crate) group: usize,
    /// Text whose perplexity is measured before and after
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Tokens of it to measure at most
    #[arg(long, default_value_t = 2048, value_name = "N")]
    pub(crate) tokens: usize,
}

#[derive(Args, Debug)]
pub(crate) struct Perplexity {
    /// Model folder, or a Hub id that is in the local cache
    pub(crate) model: String,
    /// Text to measure
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Cache types (f32, f16, int8, int4, int2), or all
    #[arg(long, value_delimiter = ',', default_value = "all", value_name = "TYPE,TYPE")]
    pub(crate) kv: Vec<String>,
    /// Tokens of a window, in which each token sees those before it [default: those of the model, up to 1024]
    #[arg(short, long, value_name = "N")]
    pub(crate) context: Option<usize>,
    /// Tokens of the text to measure at most
    #[arg(long, default_value_t = 8192, value_name = "N")]
    pub(crate) tokens: usize,
    #[command(flatten)]
    pub(crate) formats: WeightArgs,
}

#[derive(Args, Debug)]
pub(crate) struct Unpack {
    /// Packed model folder
    pub(crate) model: String,
    /// Folder to write
    pub(crate) out: PathBuf,
}

/// Type of a GGUF file's projections.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
pub(crate) enum WeightType {
    /// Two bits, one f32 scale a matrix (bitnet.cpp); widths in multiples of 128
    #[value(name = "i2_s")]
    I2S,
    /// 1.69 bits with an f16 scale for 256 (llama.cpp); widths in multiples of 256
    #[value(name = "tq1_0")]
    Tq1_0,
    /// 2.06 bits with an f16 scale for 256 (llama.cpp); widths in multiples of 256
    #[value(name = "tq2_0")]
    Tq2_0,
    /// 2.25 bits with an f16 scale for 64 (llama.cpp); widths in multiples of 64
    #[value(name = "q2_0")]
    Q2_0,
    /// Half floats, code × scale
    F16,
    /// Floats, code × scale
    F32,
}

/// Type of a GGUF file's embedding and head.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableType {
    /// Half floats
    F16,
    /// The upper halves of floats
    Bf16,
    /// Floats
    F32,
    /// 8 bits, a scale for 32
    #[value(name = "q8_0")]
    Q8_0,
    /// 6 bits, scales for 16 and 256
    #[value(name = "q6_k")]
    Q6K,
    /// 4 bits, a scale for 32
    #[value(name = "q4_0")]
    Q4_0,
}

#[derive(Args, Debug)]
pub(crate) struct Convert {
    /// Model folder, Hub id in the local cache, or .gguf file
    pub(crate) from: String,
    /// A file that ends with .gguf, or a folder: of a file a folder is made, of a folder a file
    pub(crate) to: PathBuf,
    /// Type of the projections of a .gguf file [default: i2_s, of a dense model f16]
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub(crate) weights: Option<WeightType>,
    /// Type of embedding and head of a .gguf file
    #[arg(long, value_enum, default_value_t = TableType::F16, value_name = "TYPE")]
    pub(crate) embedding: TableType,
}

#[derive(Args, Debug)]
pub(crate) struct Validate {
    /// Folder with a model or tokenizer and golden outputs
    pub(crate) folder: PathBuf,
}
