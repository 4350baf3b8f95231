//! Metadata of a GGUF file: typed values by key.
//!
//! Arrays (a vocabulary has hundreds of thousands of strings) stay in the file: a value holds their
//! place, which was walked and checked when the header was read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::cursor::Cursor;
use crate::error::{Error, Result};

/// Type numbers of metadata values.
pub(crate) mod kind {
    pub(crate) const U8: u32 = 0;
    pub(crate) const I8: u32 = 1;
    pub(crate) const U16: u32 = 2;
    pub(crate) const I16: u32 = 3;
    pub(crate) const U32: u32 = 4;
    pub(crate) const I32: u32 = 5;
    pub(crate) const F32: u32 = 6;
    pub(crate) const BOOL: u32 = 7;
    pub(crate) const TEXT: u32 = 8;
    pub(crate) const ARRAY: u32 = 9;
    pub(crate) const U64: u32 = 10;
    pub(crate) const I64: u32 = 11;
    pub(crate) const F64: u32 = 12;
}

/// One value, its width in the file forgotten.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any whole number.
    Integer(i128),
    /// An f32 or f64.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list.
    Array(Array),
}

/// A list, by its place in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub(crate) kind: u32,
    /// Elements.
    pub count: usize,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Value {
    fn shown(&self) -> String {
        match self {
            Self::Integer(v) => v.to_string(),
            Self::Float(v) => v.to_string(),
            Self::Bool(v) => v.to_string(),
            Self::Text(v) => format!("{:?}", v.chars().take(80).collect::<String>()),
            Self::Array(v) => format!("a list of {}", v.count),
        }
    }
}

/// All values of a file, with typed access: an absent key is `None`, a value of another type an
/// error that names file, key and value.
#[derive(Clone, Debug)]
pub struct Metadata {
    pub(crate) path: PathBuf,
    pub(crate) values: BTreeMap<String, Value>,
}

impl Metadata {
    /// An error about a key and its value.
    pub(crate) fn error(&self, key: &str, problem: &str) -> Error {
        let value = self.values.get(key).map_or_else(|| "missing".to_owned(), Value::shown);
        Error::field(&self.path, key, value, problem)
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    fn typed<'a, T>(&'a self, key: &str, wanted: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.error(key, &format!("it should be {wanted}"))),
        }
    }

    /// A whole number that can be a size.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number, not negative", |value| match value {
            Value::Integer(v) => usize::try_from(*v).ok(),
            _ => None,
        })
    }

    /// As [`Metadata::size`], an error where absent.
    pub fn required_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.error(key, "the file must give it"))
    }

    /// A number. What was stored as f32 comes back as the shortest decimal that rounds to it, so
    /// that 1e-5 is 1e-5.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| match value {
            Value::Float(v) => Some(*v),
            Value::Integer(v) => Some(*v as f64),
            _ => None,
        })
    }

    /// True or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// Text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", |value| match value {
            Value::Text(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// A token id.
    pub fn id(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a token id", |value| match value {
            Value::Integer(v) => u32::try_from(*v).ok(),
            _ => None,
        })
    }

    /// A list of texts; `file` are the bytes of the whole file.
    pub fn texts<'a>(&'a self, key: &str, file: &'a [u8]) -> Result<Option<Vec<&'a str>>> {
        let Some(array) = self.array(key, "a list of texts", |k| k == kind::TEXT)? else { return Ok(None) };
        let mut cursor = self.at(array, file);
        // A text takes eight bytes or more, which bounds the list by the file.
        let mut list = Vec::with_capacity(array.count.min((array.end - array.start) / 8));
        for _ in 0..array.count {
            list.push(cursor.text("an entry")?);
        }
        Ok(Some(list))
    }

    /// A list of numbers.
    pub fn numbers(&self, key: &str, file: &[u8]) -> Result<Option<Vec<f64>>> {
        let Some(array) = self.array(key, "a list of numbers", |k| scalar_bytes(k).is_some())? else {
            return Ok(None);
        };
        let mut cursor = self.at(array, file);
        let mut list = Vec::with_capacity(array.count.min(array.end - array.start));
        for _ in 0..array.count {
            list.push(match scalar(&mut cursor, array.kind, key)? {
                Value::Integer(v) => v as f64,
                Value::Float(v) => v,
                Value::Bool(v) => f64::from(u8::from(v)),
                _ => return Err(self.error(key, "it should be a list of numbers")),
            });
        }
        Ok(Some(list))
    }

    fn array(&self, key: &str, wanted: &str, fits: impl FnOnce(u32) -> bool) -> Result<Option<&Array>> {
        self.typed(key, wanted, |value| match value {
            Value::Array(array) if fits(array.kind) => Some(array),
            _ => None,
        })
    }

    fn at<'a>(&'a self, array: &Array, file: &'a [u8]) -> Cursor<'a> {
        Cursor::new(&self.path, file.get(..array.end).unwrap_or_default(), array.start)
    }
}

fn scalar_bytes(number: u32) -> Option<usize> {
    match number {
        kind::U8 | kind::I8 | kind::BOOL => Some(1),
        kind::U16 | kind::I16 => Some(2),
        kind::U32 | kind::I32 | kind::F32 => Some(4),
        kind::U64 | kind::I64 | kind::F64 => Some(8),
        _ => None,
    }
}

/// Reads a value of that type.
pub(crate) fn read_value(cursor: &mut Cursor<'_>, number: u32, key: &str) -> Result<Value> {
    match number {
        kind::TEXT => Ok(Value::Text(cursor.text(key)?.to_owned())),
        kind::ARRAY => read_array(cursor, key).map(Value::Array),
        _ => scalar(cursor, number, key),
    }
}

fn read_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Array> {
    let kind = cursor.u32(key)?;
    let count = cursor.u64(key)?;
    let least = match kind {
        kind::TEXT => 8,
        kind::ARRAY => return Err(cursor.fault(key, "is a list of lists, which no model file needs")),
        _ => scalar_bytes(kind).ok_or_else(|| cursor.fault(key, &format!("has entries of the unknown type {kind}")))?,
    };
    let count = cursor.count(key, count, least)?;
    let start = cursor.position();
    if kind == kind::TEXT {
        for _ in 0..count {
            cursor.text(key)?;
        }
    } else {
        cursor.take(count * least, key)?;
    }
    Ok(Array { kind, count, start, end: cursor.position() })
}

fn scalar(cursor: &mut Cursor<'_>, number: u32, key: &str) -> Result<Value> {
    Ok(match number {
        kind::U8 => Value::Integer(u8::from_le_bytes(cursor.array(key)?).into()),
        kind::I8 => Value::Integer(i8::from_le_bytes(cursor.array(key)?).into()),
        kind::U16 => Value::Integer(u16::from_le_bytes(cursor.array(key)?).into()),
        kind::I16 => Value::Integer(i16::from_le_bytes(cursor.array(key)?).into()),
        kind::U32 => Value::Integer(u32::from_le_bytes(cursor.array(key)?).into()),
        kind::I32 => Value::Integer(i32::from_le_bytes(cursor.array(key)?).into()),
        kind::U64 => Value::Integer(u64::from_le_bytes(cursor.array(key)?).into()),
        kind::I64 => Value::Integer(i64::from_le_bytes(cursor.array(key)?).into()),
        kind::F32 => Value::Float(shortest(f32::from_le_bytes(cursor.array(key)?))),
        kind::F64 => Value::Float(f64::from_le_bytes(cursor.array(key)?)),
        kind::BOOL => match cursor.array::<1>(key)? {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            [other] => return Err(cursor.fault(key, &format!("is {other}, neither true (1) nor false (0)"))),
        },
        _ => return Err(cursor.fault(key, &format!("has the unknown type {number}"))),
    })
}

/// The f64 whose decimal is the shortest that rounds to `value`.
pub(crate) fn shortest(value: f32) -> f64 {
    format!("{value}").parse().unwrap_or(f64::from(value))
}

/// The path of metadata that did not come from a file.
pub(crate) fn no_path() -> &'static Path {
    Path::new("gguf")
}
