//! One line of a shader file, classified. Knows nothing of files or defines.

/// What a line is to the composer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// `//!include "name"`
    Include(&'a str),
    /// `//!if name op number`
    If(Condition<'a>),
    /// `//!else`
    Else,
    /// `//!endif`
    Endif,
    /// `enable a, b;` or `requires a, b;`
    Hoist {
        /// `enable` or `requires`.
        keyword: &'static str,
        /// The comma-separated names.
        list: &'a str,
    },
    /// The declaration after `var<immediate>`, of the form ` NAME: TYPE;`.
    Immediate(&'a str),
    /// Anything else.
    Text,
}

/// `name op number`
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Condition<'a> {
    pub(crate) name: &'a str,
    op: Op,
    number: i64,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Condition<'_> {
    /// Whether `value op number`.
    pub(crate) fn holds(&self, value: i64) -> bool {
        match self.op {
            Op::Eq => value == self.number,
            Op::Ne => value != self.number,
            Op::Lt => value < self.number,
            Op::Le => value <= self.number,
            Op::Gt => value > self.number,
            Op::Ge => value >= self.number,
        }
    }
}

const IF_FORM: &str =
    "write `//!if NAME` or `//!if NAME op n` with spaces around op (== != < <= > >=) and n an integer";
const INCLUDE_FORM: &str = "write `//!include \"name\"`, without folder or extension";
const BARE_FORM: &str = "nothing may follow this directive";
const HOIST_FORM: &str = "an enable or requires line holds nothing else, and ends with a semicolon";
const KNOWN: &str = "there are //!include, //!if, //!else and //!endif; a comment begins with // alone";

/// Classifies `line`; the error says what would have been right.
pub(crate) fn classify(line: &str) -> Result<Line<'_>, &'static str> {
    let line = line.trim();
    if let Some(directive) = line.strip_prefix("//!") {
        return parse(directive);
    }
    for keyword in ["enable", "requires"] {
        if let Some(rest) = line.strip_prefix(keyword)
            && rest.starts_with(char::is_whitespace)
        {
            return hoisted(keyword, rest);
        }
    }
    match line.strip_prefix("var<immediate>") {
        Some(declaration) => Ok(Line::Immediate(declaration)),
        None => Ok(Line::Text),
    }
}

fn parse(directive: &str) -> Result<Line<'_>, &'static str> {
    let (keyword, rest) = directive.split_once(char::is_whitespace).unwrap_or((directive, ""));
    let bare = |line| {
        if rest.trim().is_empty() { Ok(line) } else { Err(BARE_FORM) }
    };
    match keyword {
        "include" => include(rest.trim()),
        "if" => condition(rest).map(Line::If).ok_or(IF_FORM),
        "else" => bare(Line::Else),
        "endif" => bare(Line::Endif),
        _ => Err(KNOWN),
    }
}

fn include(rest: &str) -> Result<Line<'_>, &'static str> {
    rest.strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .filter(|name| is_identifier(name))
        .map(Line::Include)
        .ok_or(INCLUDE_FORM)
}

fn condition(rest: &str) -> Option<Condition<'_>> {
    let mut words = rest.split_whitespace();
    let name = words.next().filter(|name| is_identifier(name))?;
    let (op, number) = match (words.next(), words.next(), words.next()) {
        (None, ..) => (Op::Ne, 0),
        (Some(op), Some(number), None) => (operator(op)?, number.parse().ok()?),
        _ => return None,
    };
    Some(Condition { name, op, number })
}

fn operator(op: &str) -> Option<Op> {
    Some(match op {
        "==" => Op::Eq,
        "!=" => Op::Ne,
        "<" => Op::Lt,
        "<=" => Op::Le,
        ">" => Op::Gt,
        ">=" => Op::Ge,
        _ => return None,
    })
}

fn hoisted<'a>(keyword: &'static str, rest: &'a str) -> Result<Line<'a>, &'static str> {
    let (list, after) = rest.split_once(';').ok_or(HOIST_FORM)?;
    let after = after.trim();
    let clean = after.is_empty() || (after.starts_with("//") && !after.starts_with("//!"));
    if !clean || list.trim().is_empty() {
        return Err(HOIST_FORM);
    }
    Ok(Line::Hoist { keyword, list })
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn holds(text: &str, value: i64) -> bool {
        match classify(text).unwrap() {
            Line::If(condition) => condition.holds(value),
            other => panic!("{text} gave {other:?}"),
        }
    }

    #[test]
    fn each_operator_compares_as_written() {
        // (text, holds at 1, at 2, at 3)
        let rows = [
            ("//!if N", [true, true, true]),
            ("//!if N == 2", [false, true, false]),
            ("//!if N != 2", [true, false, true]),
            ("//!if N < 2", [true, false, false]),
            ("//!if N <= 2", [true, true, false]),
            ("  //!if  N > 2 ", [false, false, true]),
            ("//!if N >= 2", [false, true, true]),
        ];
        for (text, want) in rows {
            assert_eq!([1, 2, 3].map(|value| holds(text, value)), want, "{text}");
        }
        assert!(!holds("//!if N", 0));
        assert!(holds("//!if N > -5", -4));
    }

    #[test]
    fn malformed_directives_are_refused() {
        for text in [
            "//!if",
            "//!if 3",
            "//!if N =",
            "//!if N==1",
            "//!if N == x",
            "//!if N == 1 2",
            "//!if N == 99999999999999999999",
            "//!include reduce",
            "//!include \"../x\"",
            "//!include \"\"",
            "//!else if N",
            "//!endif N",
            "//! if N",
            "//!elif N",
            "//!",
            "enable f16",
            "enable ;",
            "enable f16; fn f() {}",
        ] {
            assert!(classify(text).is_err(), "{text}");
        }
    }

    #[test]
    fn plain_lines_are_text() {
        for text in ["", "// enable f16;", "enabled = 1;", "var<workgroup> a: f32;", "a; //!if N"] {
            assert_eq!(classify(text), Ok(Line::Text), "{text}");
        }
    }
}
