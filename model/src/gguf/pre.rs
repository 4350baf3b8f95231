//! Pre-tokenizers: how text is split before byte pairs are merged, by llama.cpp's names
//! (`tokenizer.ggml.pre`, `src/llama-vocab.cpp`).

use serde_json::{Value, json};

/// GPT-2's rule, which `tokenizers` builds into `ByteLevel`.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's rule.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's rule: as Llama 3's with digits one by one.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// One digit.
const DIGIT: &str = r"\p{N}";

/// A way to split text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pre {
    /// The name that is written; the first of those that are read.
    names: &'static [&'static str],
    /// Rules, each applied to what the one before left.
    rules: &'static [&'static str],
    /// Whether a piece that is a token is taken whole, without merging.
    pub(crate) ignore_merges: bool,
    /// Whether a sequence begins with its token where the file does not say.
    pub(crate) add_bos: bool,
}

const KNOWN: [Pre; 5] = [
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        rules: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    Pre { names: &["gpt-2", "phi-2", "mpt", "olmo", "jais"], rules: &[GPT2], ignore_merges: false, add_bos: false },
    Pre { names: &["qwen2", "stablelm2", "hunyuan"], rules: &[QWEN2], ignore_merges: false, add_bos: false },
    Pre { names: &["dbrx", "smaug-bpe"], rules: &[LLAMA3], ignore_merges: false, add_bos: false },
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"],
        rules: &[DIGIT, GPT2],
        ignore_merges: false,
        add_bos: false,
    },
];

impl Pre {
    /// The pre-tokenizer of that name.
    pub(crate) fn named(name: &str) -> Option<Pre> {
        KNOWN.into_iter().find(|pre| pre.names.contains(&name))
    }

    /// The name that files get.
    pub(crate) fn name(self) -> &'static str {
        self.names.first().copied().unwrap_or_default()
    }

    /// Llama 3's.
    pub(crate) fn llama3() -> Pre {
        KNOWN[0]
    }

    /// All names that are read.
    pub(crate) fn all_names() -> String {
        KNOWN.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", ")
    }

    /// As the `pre_tokenizer` of a `tokenizer.json`.
    pub(crate) fn to_json(self) -> Value {
        let byte_level = |rule: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": rule});
        if self.rules == [GPT2] {
            return byte_level(true);
        }
        let (last_is_gpt2, splits) = match self.rules {
            [first @ .., GPT2] => (true, first),
            all => (false, all),
        };
        let split =
            |rule: &&str| json!({"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": false});
        let mut parts: Vec<Value> = splits.iter().map(split).collect();
        parts.push(byte_level(last_is_gpt2));
        json!({"type": "Sequence", "pretokenizers": parts})
    }

    /// The pre-tokenizer that a `tokenizer.json` has; `None` for one without a name.
    pub(crate) fn of_json(pre: &Value, ignore_merges: bool) -> Option<Pre> {
        let rules = rules_of(pre)?;
        let same = |pre: &&Pre| pre.rules == rules;
        let exact = KNOWN.iter().find(|pre| same(pre) && pre.ignore_merges == ignore_merges);
        exact.or_else(|| KNOWN.iter().find(same).filter(|_| !ignore_merges)).copied()
    }
}

/// The rules of a `pre_tokenizer`, in order; `None` where it is none that splits into byte-level pieces.
fn rules_of(pre: &Value) -> Option<Vec<&str>> {
    let parts = match pre.get("type")?.as_str()? {
        "Sequence" => pre.get("pretokenizers")?.as_array()?.iter().collect(),
        _ => vec![pre],
    };
    let (last, splits) = parts.split_last()?;
    let mut rules = Vec::new();
    for split in splits {
        let plain = match split.get("type")?.as_str()? {
            "Split" => split.get("behavior")?.as_str()? == "Isolated" && !split.get("invert")?.as_bool()?,
            "Digits" => split.get("individual_digits")?.as_bool()?,
            _ => false,
        };
        if !plain {
            return None;
        }
        match split.get("pattern") {
            Some(pattern) => rules.push(pattern.get("Regex")?.as_str()?),
            None => rules.push(DIGIT),
        }
    }
    let byte_level = last.get("type")?.as_str()? == "ByteLevel" && !last.get("add_prefix_space")?.as_bool()?;
    if last.get("use_regex").and_then(Value::as_bool).unwrap_or(true) {
        rules.push(GPT2);
    }
    byte_level.then_some(rules)
}
