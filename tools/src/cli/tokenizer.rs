//! Options of `tokenizer`.

use clap::Subcommand;
use std::path::PathBuf;

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
