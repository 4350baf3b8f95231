//! The WGSL compute shaders of tritter and the composer that specialises them.
//!
//! An op's shader is `wgsl/<op>.wgsl` and shared functions are
//! `wgsl/lib/<name>.wgsl`; both are embedded at build time. Directives are WGSL
//! comments on lines of their own, so the files also open in plain tools:
//!
//! | line | effect |
//! |---|---|
//! | `//!include "f"` | the text of `lib/f`, once for each composition; includes nest |
//! | `//!if NAME op n` | keeps the lines if it holds; `op` is `==`, `!=`, `<`, `<=`, `>` or `>=` and `n` an integer |
//! | `//!if NAME` | the same as `//!if NAME != 0` |
//! | `//!else`, `//!endif` | close what the `//!if` of the same file opened |
//! | `enable a, b;`, `requires a;` | moved to the top, each name once |
//! | `var<immediate> p: T;` | with [`UNIFORM_PARAMS`] non-zero: a uniform at group 1, binding 0 |
//!
//! A name that the caller does not define is an error where an active `//!if`
//! asks for it, and so is any other line that begins with `//!`. Lines are taken
//! one by one: a directive inside a `/* */` comment still acts. Identifiers are
//! never substituted: alternatives stand in constants, functions and `override`s.

mod compose;
mod directive;
mod error;

pub use compose::{Composed, Origin, compose_with};
pub use error::ComposeError;

/// The define that turns `var<immediate>` parameters into a uniform buffer
/// (`@group(1) @binding(0)`), for browsers, which lack immediates. Default 0.
pub const UNIFORM_PARAMS: &str = "UNIFORM_PARAMS";

/// Every embedded file as (name, text), sorted by name; library files are `lib/<name>`.
static FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/files.rs"));

/// Composes the embedded shader `name` (an op, such as `rms_norm`).
///
/// `defines` are the values that `//!if` sees; the first of two entries with one
/// name counts.
///
/// # Errors
/// An unknown shader or include, an undefined name, a malformed directive or an
/// unbalanced `//!if`, each with file and line.
pub fn compose(name: &str, defines: &[(&str, i64)]) -> Result<Composed, ComposeError> {
    compose_with(&source, name, defines)
}

/// Names of the op shaders in alphabetical order, without the library.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|&(name, _)| name).filter(|name| !name.starts_with(LIBRARY))
}

/// The text as written of the op shader `name`, or of the library file `lib/<name>`.
pub fn source(name: &str) -> Option<&'static str> {
    let index = FILES.binary_search_by_key(&name, |&(name, _)| name).ok()?;
    FILES.get(index).map(|&(_, text)| text)
}

/// What the name of a library file begins with.
pub(crate) const LIBRARY: &str = "lib/";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_table_is_sorted_and_holds_the_library() {
        assert!(FILES.is_sorted_by(|a, b| a.0 < b.0));
        let text = source("lib/reduce").unwrap();
        assert!(text.contains("fn workgroup_sum("));
        assert!(names().all(|name| !name.contains('/') && source(name).is_some()));
        assert_eq!(source("lib/absent"), None);
        assert_eq!(source(""), None);
    }

    #[test]
    fn an_unknown_shader_is_an_error_that_names_it() {
        let error = compose("no_such_op", &[]).unwrap_err();
        assert!(error.to_string().contains("no_such_op"), "{error}");
    }
}
