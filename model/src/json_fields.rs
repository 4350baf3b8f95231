//! Typed access to the fields of a JSON object from outside: an absent or null
//! field is `None`, a field of the wrong type an error that names file, field
//! and value.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// An object of a JSON file.
pub(crate) struct Fields<'a> {
    file: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The object `json`, called `prefix` within `file` (empty at the top).
    pub(crate) fn new(file: &'a Path, prefix: &str, json: &'a Value) -> Result<Self> {
        let map = json.as_object().ok_or_else(|| {
            let field = if prefix.is_empty() { "(whole file)" } else { prefix };
            Error::field(file, field, shortened(json), "it should be an object {…}")
        })?;
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}.") };
        Ok(Self { file, prefix, map })
    }

    /// An error about the field `key` and its value.
    pub(crate) fn error(&self, key: &str, problem: &str) -> Error {
        let value = self.map.get(key).map_or_else(|| "missing".to_owned(), shortened);
        Error::field(self.file, format!("{}{key}", self.prefix), value, problem)
    }

    /// Whether the field is there and not null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether the field is there, be it null.
    pub(crate) fn names(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn typed<T>(&self, key: &str, wanted: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| self.error(key, &format!("it should be {wanted}")))
    }

    /// A whole number that can be a size.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number, not negative", |value| usize::try_from(value.as_u64()?).ok())
    }

    /// As [`Fields::size`], an error where absent.
    pub(crate) fn required_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.error(key, "the file must give it"))
    }

    /// A number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// As [`Fields::number`], an error where absent.
    pub(crate) fn required_number(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.error(key, "the file must give it"))
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A nested object.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        Fields::new(self.file, &format!("{}{key}", self.prefix), value).map(Some)
    }

    /// Token ids given as one number or a list; negative ones mean "none".
    pub(crate) fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let one = std::slice::from_ref(value);
        let list = value.as_array().map_or(one, Vec::as_slice);
        let mut ids = Vec::with_capacity(list.len());
        for entry in list {
            match entry.as_i64().map(u32::try_from) {
                Some(Ok(id)) => ids.push(id),
                Some(Err(_)) if entry.as_i64().is_some_and(|id| id < 0) => {}
                _ => return Err(self.error(key, "it should be a token id or a list of them")),
            }
        }
        Ok(ids)
    }

    /// Whether the field is absent or a list of nothing but `name`.
    pub(crate) fn only_lists(&self, key: &str, name: &str) -> bool {
        match self.get(key) {
            None => true,
            Some(Value::Array(list)) => list.iter().all(|entry| entry.as_str() == Some(name)),
            Some(_) => false,
        }
    }
}

/// A value as JSON, cut where a message would drown in it.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 {
        return text;
    }
    text.chars().take(80).chain("…".chars()).collect()
}
