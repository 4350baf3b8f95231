//! `generation_config.json`: how a model's makers want its tokens chosen.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result, read_json};
use crate::host_sampling::Sampling;
use crate::json_fields::Fields;

/// Defaults for generation. An absent file or field has transformers' default,
/// which without `do_sample` is greedy choice.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// Whether to draw; else the most likely token is taken.
    pub do_sample: bool,
    /// Divides the logits when drawing.
    pub temperature: f32,
    /// Tokens kept when drawing; 0 is off.
    pub top_k: usize,
    /// Probability kept when drawing; 1 is off.
    pub top_p: f32,
    /// Least share of the likeliest token when drawing; 0 is off.
    pub min_p: f32,
    /// Penalty on tokens seen before; 1 is off.
    pub repetition_penalty: f32,
    /// Tokens that end the text; empty where the file names none.
    pub eos_token_ids: Vec<u32>,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            do_sample: false,
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            eos_token_ids: Vec::new(),
        }
    }
}

impl GenerationConfig {
    /// Reads `generation_config.json` of a model folder; the default where
    /// there is none.
    pub fn load(folder: &Path) -> Result<Self> {
        let file = folder.join("generation_config.json");
        if !file.exists() {
            return Ok(Self::default());
        }
        Self::from_json(&file, &read_json(&file)?)
    }

    /// Reads the parsed file; `file` is named in errors.
    pub fn from_json(file: &Path, json: &Value) -> Result<Self> {
        let fields = Fields::new(file, "", json)?;
        let absent = Self::default();
        let number =
            |key: &str, default: f32| -> Result<f32> { Ok(fields.number(key)?.map_or(default, |value| value as f32)) };
        let config = Self {
            do_sample: fields.flag("do_sample")?.unwrap_or(absent.do_sample),
            temperature: number("temperature", absent.temperature)?,
            top_k: fields.size("top_k")?.unwrap_or(absent.top_k),
            top_p: number("top_p", absent.top_p)?,
            min_p: number("min_p", absent.min_p)?,
            repetition_penalty: number("repetition_penalty", absent.repetition_penalty)?,
            eos_token_ids: fields.ids("eos_token_id")?,
        };
        config.sampling().validate().map_err(|error| Error::checkpoint(file, error.to_string()))?;
        Ok(config)
    }

    /// The same as settings for a sampler, with temperature 0 where nothing is
    /// to be drawn.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: if self.do_sample { self.temperature } else { 0.0 },
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repetition_penalty,
        }
    }

    /// The file's content; greedy settings are left out.
    pub fn to_json(&self, bos_token_id: Option<u32>, pad_token_id: Option<u32>) -> Value {
        let mut json = json!({
            "bos_token_id": bos_token_id,
            "eos_token_id": self.eos_token_ids,
            "pad_token_id": pad_token_id,
            "do_sample": self.do_sample,
        });
        if let Some(map) = json.as_object_mut() {
            if self.do_sample {
                map.insert("temperature".to_owned(), json!(self.temperature));
                map.insert("top_k".to_owned(), json!(self.top_k));
                map.insert("top_p".to_owned(), json!(self.top_p));
                map.insert("min_p".to_owned(), json!(self.min_p));
            }
            if self.repetition_penalty != 1.0 {
                map.insert("repetition_penalty".to_owned(), json!(self.repetition_penalty));
            }
            map.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|a| !a.is_empty()));
        }
        json
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(json: &Value) -> Result<GenerationConfig> {
        GenerationConfig::from_json(Path::new("generation_config.json"), json)
    }

    #[test]
    fn an_absent_file_is_greedy() {
        let folder = tempfile::tempdir().unwrap();
        let config = GenerationConfig::load(folder.path()).unwrap();
        assert_eq!(config, GenerationConfig::default());
        assert_eq!(config.sampling().temperature, 0.0);
        std::fs::write(folder.path().join("generation_config.json"), "{").unwrap();
        assert!(GenerationConfig::load(folder.path()).is_err());
    }

    #[test]
    fn fields_are_read_and_written() {
        let config = read(&json!({
            "do_sample": true, "temperature": 0.5, "top_k": 0, "top_p": 0.25, "min_p": 0.125,
            "repetition_penalty": 1.5, "eos_token_id": [2, 3],
        }))
        .unwrap();
        assert_eq!(config.sampling().temperature, 0.5);
        assert_eq!((config.top_k, config.top_p, config.min_p), (0, 0.25, 0.125));
        assert_eq!(config.eos_token_ids, [2, 3]);
        let written = config.to_json(Some(1), None);
        assert_eq!(read(&written).unwrap(), config);
        assert!(written.get("pad_token_id").is_none());
        let greedy = GenerationConfig { do_sample: false, ..config };
        assert_eq!(greedy.sampling().temperature, 0.0);
        assert_eq!(read(&json!({ "eos_token_id": 7 })).unwrap().eos_token_ids, [7]);
    }

    #[test]
    fn faults_name_file_and_field() {
        for (json, field) in [
            (json!({ "do_sample": true, "temperature": -1.0 }), "temperature"),
            (json!({ "top_p": 2 }), "top_p"),
            (json!({ "top_k": -1 }), "top_k"),
            (json!({ "eos_token_id": "x" }), "eos_token_id"),
        ] {
            let message = read(&json).unwrap_err().to_string();
            assert!(message.contains("generation_config.json"), "{message}");
            assert!(message.contains(field), "{message}");
        }
    }
}
