//! Compares a tokenizer with the `golden.json` beside it: encodings, decodes,
//! single bytes, prefixes (also as a stream), pairs and the chat template, all of
//! which must match exactly.

use std::path::Path;

use serde_json::{Value, json};

use crate::chat_template::Message;
use crate::error::{Error, Result, read_json};
use crate::text_stream::StreamDecoder;
use crate::tokenizer::Tokenizer;

/// The outcome of one kind of comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoldenCheck {
    /// Section and field of `golden.json`, such as `encodings.ids`.
    pub name: String,
    /// Values compared.
    pub total: usize,
    /// Values that differ.
    pub wrong: usize,
    /// The first difference, in words.
    pub first_difference: Option<String>,
}

/// Sections of `golden.json` that [`check_golden`] reads.
const SECTIONS: &[&str] = &["tokenizers", "vocab_size", "encodings", "byte_decodes", "prefix_decodes", "pair", "chat"];

/// Compares `tokenizer.json` of a folder with its `golden.json`. Every
/// comparison that found a value is in the list, in a fixed order.
pub fn check_golden(folder: &Path) -> Result<Vec<GoldenCheck>> {
    let tokenizer = Tokenizer::load(&folder.join("tokenizer.json"))?;
    let file = folder.join("golden.json");
    let golden = read_json(&file)?;
    let mut checks = Checks { file: &file, tokenizer: &tokenizer, list: Vec::new() };
    if let Some(size) = golden.get("vocab_size") {
        checks.compare("vocab_size", "the vocabulary", size, &json!(tokenizer.vocab_size()));
    }
    checks.encodings(&golden)?;
    checks.byte_decodes(&golden)?;
    checks.prefix_decodes(&golden)?;
    checks.pair(&golden)?;
    checks.chat(&golden)?;
    if checks.list.is_empty() {
        return Err(Error::tokenizer(&file, "it has no section that can be checked"));
    }
    Ok(checks.list)
}

/// Sections of a folder's `golden.json` that [`check_golden`] does not know.
pub fn unknown_sections(folder: &Path) -> Result<Vec<String>> {
    let golden = read_json(&folder.join("golden.json"))?;
    let keys = golden.as_object().map(|map| map.keys().cloned()).into_iter().flatten();
    Ok(keys.filter(|key| !SECTIONS.contains(&key.as_str())).collect())
}

struct Checks<'a> {
    file: &'a Path,
    tokenizer: &'a Tokenizer,
    list: Vec<GoldenCheck>,
}

impl Checks<'_> {
    fn compare(&mut self, name: &str, what: &str, expected: &Value, found: &Value) {
        let known = self.list.iter().position(|check| check.name == name);
        let at = known.unwrap_or_else(|| {
            let name = name.to_owned();
            self.list.push(GoldenCheck { name, total: 0, wrong: 0, first_difference: None });
            self.list.len() - 1
        });
        let Some(check) = self.list.get_mut(at) else {
            return;
        };
        check.total += 1;
        if expected != found {
            check.wrong += 1;
            check.first_difference.get_or_insert_with(|| format!("{what}: expected {expected}, found {found}"));
        }
    }

    fn list_of<'v>(&self, value: &'v Value, key: &str) -> Result<&'v [Value]> {
        match value.get(key) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(Error::field(self.file, key, other, "it should be a list")),
        }
    }

    fn ids(&self, value: &Value, key: &str) -> Result<Vec<u32>> {
        let read = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids: Option<Vec<u32>> = self.list_of(value, key)?.iter().map(read).collect();
        ids.ok_or_else(|| Error::field(self.file, key, &value[key], "it should be token ids"))
    }

    fn encodings(&mut self, golden: &Value) -> Result<()> {
        for case in self.list_of(golden, "encodings")? {
            let text = case
                .get("text")
                .and_then(Value::as_str)
                .ok_or_else(|| Error::field(self.file, "encodings.text", case, "it should be a string"))?;
            let plain = self.tokenizer.encode_detailed(text, false)?;
            let ids = self.ids(case, "ids")?;
            let found = json!({
                "ids": self.tokenizer.encode(text, true)?,
                "ids_no_special": plain.ids,
                "tokens": plain.tokens,
                "offsets_chars": plain.offsets,
                "decode": self.tokenizer.decode(&ids, false)?,
                "decode_skip_special": self.tokenizer.decode(&ids, true)?,
            });
            for (key, found) in found.as_object().into_iter().flatten() {
                if let Some(expected) = case.get(key) {
                    let what = format!("text {text:?}");
                    self.compare(&format!("encodings.{key}"), &what, expected, found);
                }
            }
        }
        Ok(())
    }

    fn byte_decodes(&mut self, golden: &Value) -> Result<()> {
        for case in self.list_of(golden, "byte_decodes")? {
            let ids = self.ids(case, "ids")?;
            let what = format!("ids {ids:?}");
            let found = json!(self.tokenizer.decode(&ids, false)?);
            self.compare("byte_decodes.decode", &what, &case["decode"], &found);
            let Some(encoded) = case.get("bytes_b64").and_then(Value::as_str) else {
                continue;
            };
            let bytes = base64(encoded)
                .ok_or_else(|| Error::field(self.file, "byte_decodes.bytes_b64", encoded, "it is not base64"))?;
            let found = json!(self.tokenizer.decode_bytes(&ids)?);
            self.compare("byte_decodes.bytes", &what, &json!(bytes), &found);
        }
        Ok(())
    }

    fn prefix_decodes(&mut self, golden: &Value) -> Result<()> {
        let Some(case) = golden.get("prefix_decodes") else {
            return Ok(());
        };
        let ids = self.ids(case, "ids")?;
        let mut stream = StreamDecoder::new(self.tokenizer, false);
        let mut streamed = String::new();
        for (count, expected) in (1..).zip(self.list_of(case, "text")?) {
            let what = format!("the first {count} ids");
            let prefix = ids.get(..count).unwrap_or(&ids);
            let found = json!(self.tokenizer.decode(prefix, false)?);
            self.compare("prefix_decodes.text", &what, expected, &found);
            if let Some(&id) = prefix.last() {
                streamed.push_str(&stream.push(id)?.unwrap_or_default());
            }
            // What has been printed must be the text without a half character.
            let certain = expected.as_str().map(|text| text.trim_end_matches('\u{fffd}'));
            self.compare("prefix_decodes.stream", &what, &json!(certain), &json!(streamed));
        }
        Ok(())
    }

    fn pair(&mut self, golden: &Value) -> Result<()> {
        let Some(case) = golden.get("pair") else {
            return Ok(());
        };
        let text = |key: &str| {
            let text = case.get(key).and_then(Value::as_str);
            text.ok_or_else(|| Error::field(self.file, "pair", case, "it should have texts a and b"))
        };
        let found = self.tokenizer.encode_pair(text("a")?, text("b")?, true)?;
        self.compare("pair.ids", "the pair", &case["ids"], &json!(found));
        Ok(())
    }

    fn chat(&mut self, golden: &Value) -> Result<()> {
        let Some(case) = golden.get("chat") else {
            return Ok(());
        };
        let fail = |problem: &str| Error::field(self.file, "chat", case, problem);
        let text = |message: &Value, key: &str| {
            let text = message.get(key).and_then(Value::as_str).map(str::to_owned);
            text.ok_or_else(|| fail("each message should have role and content"))
        };
        let messages: Result<Vec<Message>> = self
            .list_of(case, "messages")?
            .iter()
            .map(|m| Ok(Message { role: text(m, "role")?, content: text(m, "content")? }))
            .collect();
        let rendered = self.tokenizer.render_chat(&messages?, true)?;
        self.compare("chat.rendered", "the conversation", &case["rendered"], &json!(rendered));
        Ok(())
    }
}

/// Standard base64 with padding; `None` where it is not.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0u32, 0);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn base64_is_read() {
        assert_eq!(base64("/w==").unwrap(), [255]);
        assert_eq!(base64("8J//mQ==").unwrap(), [0xf0, 0x9f, 0xff, 0x99]);
        assert_eq!(base64("TWFu").unwrap(), b"Man");
        assert_eq!(base64("!"), None);
    }
}
