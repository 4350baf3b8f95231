//! `config.json`, read in both spellings of transformers and written in the
//! newer one.
//!
//! Version 5 writes `rope_parameters` and `dtype`; version 4 and the released
//! BitNet files write `rope_theta`, `rope_scaling` (with `type` or `rope_type`)
//! and `torch_dtype`. Absent fields take the class defaults of transformers. A
//! `quantization_config` of `bitnet` that names no class means `bitlinear`, and
//! no mode means `offline`. The element type written in the file is not used:
//! every tensor states its own.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::{Activation, Config, Family, LinearClass, Quantization, Rope};
use crate::error::Result;
use crate::json_fields::Fields;

impl Family {
    /// `model_type` in `config.json`, also the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bitnet => "bitnet",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Tritter => "tritter",
        }
    }

    /// The family of that `model_type`.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Bitnet, Self::Llama, Self::Mistral, Self::Tritter].into_iter().find(|f| f.name() == name)
    }

    /// Whether the block is Llama's: no norms but two, a dense model by default.
    pub fn is_llama(self) -> bool {
        matches!(self, Self::Llama | Self::Mistral)
    }

    fn architecture(self) -> &'static str {
        match self {
            Self::Bitnet => "BitNetForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Tritter => "TritterForCausalLM",
        }
    }
}

impl Config {
    /// Reads a parsed `config.json` in either spelling; `file` is named in
    /// errors. The result is valid in the sense of [`Config::validate`].
    pub fn from_json(file: &Path, json: &Value) -> Result<Self> {
        let fields = Fields::new(file, "", json)?;
        let family = family(&fields)?;
        let llama = family.is_llama();
        let hidden_size = fields.required_size("hidden_size")?;
        let num_heads = fields.required_size("num_attention_heads")?;
        let positions = if family == Family::Mistral { 131_072 } else { 2048 };
        let max_positions = fields.size("max_position_embeddings")?.unwrap_or(positions);
        let config = Self {
            family,
            vocab_size: fields.required_size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.required_size("intermediate_size")?,
            num_layers: fields.required_size("num_hidden_layers")?,
            num_heads,
            num_kv_heads: kv_heads(&fields, family, num_heads)?,
            head_dim: head_dim(&fields, hidden_size, num_heads)?,
            rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(if llama { 1e-6 } else { 1e-5 }),
            rope: Rope::from_json(&fields, if llama { 10_000.0 } else { 500_000.0 }, max_positions)?,
            window: window(&fields, family)?,
            max_positions,
            tie_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(!llama),
            attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            activation: activation(&fields, family)?,
            quantization: quantization(&fields)?,
            bos_token_id: fields.ids("bos_token_id")?.first().copied(),
            eos_token_ids: fields.ids("eos_token_id")?,
            pad_token_id: fields.ids("pad_token_id")?.first().copied(),
        };
        config.validate_from(file)?;
        Ok(config)
    }

    /// `config.json` in the spelling of transformers 5, the weights in float32.
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "architectures": [self.family.architecture()],
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "dtype": "float32",
            "eos_token_id": match self.eos_token_ids.as_slice() {
                [] => Value::Null,
                [one] => json!(one),
                several => json!(several),
            },
            "head_dim": self.head_dim,
            "hidden_act": match self.activation {
                Activation::Relu2 => "relu2",
                Activation::Silu => "silu",
            },
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "model_type": self.family.name(),
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "pad_token_id": self.pad_token_id,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": self.rope.to_json(),
            "tie_word_embeddings": self.tie_embeddings,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        let Some(map) = json.as_object_mut() else {
            return json;
        };
        if self.family == Family::Mistral || self.window.is_some() {
            map.insert("sliding_window".to_owned(), json!(self.window));
        }
        if self.family.is_llama() {
            map.insert("mlp_bias".to_owned(), json!(self.mlp_bias));
        }
        if let Some(quantization) = quantization_json(self.quantization) {
            map.insert("quantization_config".to_owned(), quantization);
        }
        json
    }
}

fn family(fields: &Fields<'_>) -> Result<Family> {
    let name = fields.text("model_type")?.unwrap_or_default();
    Family::from_name(name).ok_or_else(|| {
        fields.error("model_type", "this program knows bitnet, llama, mistral and tritter; use such a model")
    })
}

fn activation(fields: &Fields<'_>, family: Family) -> Result<Activation> {
    match fields.text("hidden_act")? {
        None if family.is_llama() => Ok(Activation::Silu),
        None | Some("relu2") => Ok(Activation::Relu2),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some(_) => Err(fields.error("hidden_act", "relu2 and silu are supported")),
    }
}

fn head_dim(fields: &Fields<'_>, hidden: usize, heads: usize) -> Result<usize> {
    if let Some(size) = fields.size("head_dim")? {
        return Ok(size);
    }
    if heads == 0 || !hidden.is_multiple_of(heads) {
        let problem = format!("it must divide hidden_size ({hidden}) where head_dim is not given");
        return Err(fields.error("num_attention_heads", &problem));
    }
    Ok(hidden / heads)
}

/// Absent, Mistral has 8; null is one for each query head, as in the other families.
fn kv_heads(fields: &Fields<'_>, family: Family, num_heads: usize) -> Result<usize> {
    let absent = if family == Family::Mistral && !fields.names("num_key_value_heads") { 8 } else { num_heads };
    Ok(fields.size("num_key_value_heads")?.unwrap_or(absent))
}

/// Mistral's window: 4096 where the file does not name it, none where it is null. The other families have none.
fn window(fields: &Fields<'_>, family: Family) -> Result<Option<usize>> {
    if family != Family::Mistral {
        return Ok(None);
    }
    let absent = (!fields.names("sliding_window")).then_some(4096);
    Ok(fields.size("sliding_window")?.or(absent))
}

fn quantization(fields: &Fields<'_>) -> Result<Quantization> {
    let Some(inner) = fields.object("quantization_config")? else {
        return Ok(Quantization::None);
    };
    if inner.text("quant_method")? != Some("bitnet") {
        return Err(inner.error("quant_method", "only bitnet is supported"));
    }
    if inner.flag("use_rms_norm")?.unwrap_or(false) {
        return Err(inner.error("use_rms_norm", "a norm inside the linear layer is not supported"));
    }
    if !inner.only_lists("modules_to_not_convert", "lm_head") {
        let problem = "only lm_head can be left out of the conversion";
        return Err(inner.error("modules_to_not_convert", problem));
    }
    let linear_class = match inner.text("linear_class")? {
        Some("autobitlinear") => LinearClass::AutoBitLinear,
        None | Some("bitlinear") => LinearClass::BitLinear,
        Some(_) => {
            return Err(inner.error("linear_class", "autobitlinear and bitlinear are supported"));
        }
    };
    match (inner.text("quantization_mode")?, linear_class) {
        (None | Some("offline"), _) => Ok(Quantization::Offline { linear_class }),
        (Some("online"), LinearClass::AutoBitLinear) => Ok(Quantization::Online),
        (Some("online"), LinearClass::BitLinear) => {
            let problem = "online weights need linear_class autobitlinear";
            Err(inner.error("quantization_mode", problem))
        }
        (Some(_), _) => Err(inner.error("quantization_mode", "online and offline are supported")),
    }
}

fn quantization_json(quantization: Quantization) -> Option<Value> {
    let (linear_class, mode) = match quantization {
        Quantization::None => return None,
        Quantization::Online => ("autobitlinear", "online"),
        Quantization::Offline { linear_class: LinearClass::AutoBitLinear } => ("autobitlinear", "offline"),
        Quantization::Offline { linear_class: LinearClass::BitLinear } => ("bitlinear", "offline"),
    };
    let mut map = Map::new();
    map.insert("quant_method".to_owned(), json!("bitnet"));
    map.insert("linear_class".to_owned(), json!(linear_class));
    map.insert("quantization_mode".to_owned(), json!(mode));
    Some(Value::Object(map))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::RopeScaling;
    use crate::presets::preset;

    fn minimal(model_type: &str) -> Value {
        json!({
            "model_type": model_type, "vocab_size": 512, "hidden_size": 96,
            "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 6,
        })
    }

    fn read(json: &Value) -> Result<Config> {
        Config::from_json(Path::new("folder/config.json"), json)
    }

    #[track_caller]
    fn refused(changes: Value, words: &[&str]) {
        let mut json = minimal("llama");
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        let message = read(&json).unwrap_err().to_string();
        for word in words.iter().chain(&["folder/config.json"]) {
            assert!(message.contains(word), "{message} lacks {word}");
        }
    }

    #[test]
    fn absent_fields_take_the_class_defaults() {
        let llama = read(&minimal("llama")).unwrap();
        assert_eq!((llama.head_dim, llama.num_kv_heads), (16, 6));
        assert_eq!((llama.rope.theta, llama.rms_norm_eps), (10_000.0, 1e-6));
        assert_eq!((llama.tie_embeddings, llama.activation), (false, Activation::Silu));
        assert_eq!(llama.quantization, Quantization::None);
        let bitnet = read(&minimal("bitnet")).unwrap();
        assert_eq!((bitnet.rope.theta, bitnet.rms_norm_eps), (500_000.0, 1e-5));
        assert_eq!((bitnet.tie_embeddings, bitnet.activation), (true, Activation::Relu2));
    }

    #[test]
    fn the_window_of_mistral_is_read_and_written() {
        let mut json = minimal("mistral");
        json["num_key_value_heads"] = json!(2);
        assert_eq!(read(&json).unwrap().window, Some(4096), "the default of the class");
        for window in [Some(12), None] {
            json["sliding_window"] = json!(window);
            let config = read(&json).unwrap();
            assert_eq!((config.window, config.activation), (window, Activation::Silu));
            assert_eq!(config.to_json()["architectures"][0], "MistralForCausalLM");
            assert_eq!(read(&config.to_json()).unwrap(), config);
        }
        let mut json = minimal("llama");
        json["sliding_window"] = json!(12);
        assert_eq!(read(&json).unwrap().window, None, "transformers' llama has none either");
    }

    #[test]
    fn quantisation_defaults_to_packed_bitlinear() {
        let mut json = minimal("llama");
        json["quantization_config"] = json!({ "quant_method": "bitnet" });
        let expected = Quantization::Offline { linear_class: LinearClass::BitLinear };
        assert_eq!(read(&json).unwrap().quantization, expected);
        json["quantization_config"]["linear_class"] = json!("autobitlinear");
        json["quantization_config"]["quantization_mode"] = json!("online");
        assert_eq!(read(&json).unwrap().quantization, Quantization::Online);
    }

    #[test]
    fn both_rope_spellings_mean_the_same() {
        let scaling = json!({
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32, "rope_type": "llama3", "rope_theta": 5e5,
        });
        let (mut new, mut old, mut oldest) = (minimal("llama"), minimal("llama"), minimal("llama"));
        new["rope_parameters"] = scaling.clone();
        old["rope_theta"] = json!(5e5);
        old["rope_scaling"] = scaling.clone();
        oldest["rope_theta"] = json!(5e5);
        let mut by_type = scaling;
        by_type["type"] = by_type.as_object_mut().unwrap().remove("rope_type").unwrap();
        oldest["rope_scaling"] = by_type;
        let config = read(&new).unwrap();
        assert!(matches!(config.rope.scaling, RopeScaling::Llama3 { factor: 8.0, .. }));
        assert_eq!(read(&old).unwrap(), config);
        assert_eq!(read(&oldest).unwrap(), config);
    }

    #[test]
    fn token_ids_may_be_one_or_several() {
        let mut json = minimal("llama");
        json["eos_token_id"] = json!([2, 7]);
        json["pad_token_id"] = json!(-1);
        json["bos_token_id"] = json!(1);
        let config = read(&json).unwrap();
        assert_eq!(config.eos_token_ids, [2, 7]);
        assert_eq!((config.bos_token_id, config.pad_token_id), (Some(1), None));
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut config = preset("test").unwrap().config(Family::Tritter, Some(300), Some(64));
        config.eos_token_ids = vec![1, 4];
        config.bos_token_id = Some(0);
        assert_eq!(read(&config.to_json()).unwrap(), config);
        config.rope.scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 32,
        };
        config.quantization = Quantization::Offline { linear_class: LinearClass::AutoBitLinear };
        (config.family, config.eos_token_ids) = (Family::Bitnet, vec![1]);
        assert_eq!(read(&config.to_json()).unwrap(), config);
        (config.family, config.mlp_bias) = (Family::Llama, true);
        assert_eq!(read(&config.to_json()).unwrap(), config);
        assert_eq!(config.to_json()["architectures"][0], "LlamaForCausalLM");
    }

    #[test]
    fn faults_name_file_field_and_value() {
        refused(json!({ "model_type": "gpt2" }), &["`model_type`", "\"gpt2\""]);
        refused(json!({ "hidden_act": "gelu" }), &["`hidden_act`", "\"gelu\"", "relu2"]);
        refused(json!({ "hidden_size": 95 }), &["`num_attention_heads`", "6", "95"]);
        refused(json!({ "hidden_size": 0 }), &["`hidden_size`", "0"]);
        refused(json!({ "hidden_size": -4 }), &["`hidden_size`", "-4"]);
        refused(json!({ "hidden_size": "x" }), &["`hidden_size`", "\"x\""]);
        refused(json!({ "hidden_size": 1e30 }), &["`hidden_size`"]);
        refused(json!({ "vocab_size": null }), &["`vocab_size`", "null"]);
        refused(json!({ "num_key_value_heads": 4 }), &["`num_key_value_heads`", "4"]);
        refused(json!({ "rms_norm_eps": 0 }), &["`rms_norm_eps`"]);
        refused(json!({ "rope_scaling": { "type": "longrope" } }), &["`rope_scaling.type`", "longrope"]);
        refused(json!({ "rope_scaling": { "type": "linear" } }), &["`rope_scaling.factor`", "missing"]);
        refused(
            json!({ "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 0 }),
            &["`sliding_window`", "0"],
        );
        refused(json!({ "model_type": "mistral", "sliding_window": "12" }), &["`sliding_window`", "\"12\""]);
        refused(json!({ "rope_parameters": { "rope_type": "llama3" } }), &["`rope_parameters.factor`", "missing"]);
        refused(
            json!({ "quantization_config": { "quant_method": "gptq" } }),
            &["`quantization_config.quant_method`", "gptq"],
        );
        refused(json!({ "eos_token_id": 5_000_000_000u64 }), &["`eos_token_id`"]);
        refused(json!({ "tie_word_embeddings": 1 }), &["`tie_word_embeddings`"]);
        let message = read(&json!([1])).unwrap_err().to_string();
        assert!(message.contains("an object"), "{message}");
    }
}
