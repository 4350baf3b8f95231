//! Options of the commands that make text: `generate` and `chat`.

use super::shared::{CacheArgs, StreamArgs, WeightArgs};
use crate::sizes;
use clap::Args;
use std::path::PathBuf;

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
    /// When it ends, write the conversation and what the cache holds of it, to be gone on with
    #[arg(long, value_name = "FILE")]
    pub(crate) save_cache: Option<PathBuf>,
    /// Go on with the conversation that --save-cache wrote, of the same model and cache type; a file of generate
    /// spares computing what the conversation has in common with its prompt
    #[arg(long, value_name = "FILE")]
    pub(crate) load_cache: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) streaming: StreamArgs,
    #[command(flatten)]
    pub(crate) choice: Choice,
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
