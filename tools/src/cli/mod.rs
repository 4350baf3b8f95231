//! The command line's grammar: what all commands take and which commands there are; each family's options are in a
//! file of their own, options that families share in `shared`.

mod measure;
mod models;
mod plan;
mod shared;
mod text;
mod tokenizer;
mod training;

pub(crate) use measure::{Bench, BenchDecode, Check, Perplexity, Validate};
pub(crate) use models::{
    Convert, FloatType, HeadType, Init, Pack, ProjectionType, Quantize, ScaleClass, TableType, Unpack, WeightForm,
    WeightType,
};
pub(crate) use plan::Plan;
pub(crate) use shared::{Arch, Precision, StreamArgs, TableFormat, TernaryFormat, WeightArgs};
pub(crate) use text::{Chat, Choice, Generate};
pub(crate) use tokenizer::Tokenizer;
pub(crate) use training::{Course, Demo, Train};

use clap::{Args, Parser, Subcommand};

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
