//! Expands one shader file with its includes into WGSL text with a line map.

use crate::directive::{Condition, Line, classify};
use crate::{ComposeError, LIBRARY, UNIFORM_PARAMS};

/// A shader ready for a WGSL compiler, and where each of its lines was written.
#[derive(Debug, Clone)]
pub struct Composed {
    /// The WGSL text; every line ends with a newline.
    pub text: String,
    /// Files in the order of their first use.
    files: Vec<String>,
    /// For each line of `text`: index into `files`, and the 1-based line there.
    lines: Vec<(usize, u32)>,
}

/// Where a line of composed text was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The file, such as `wgsl/lib/reduce.wgsl`.
    pub file: &'a str,
    /// The 1-based line in it.
    pub line: u32,
}

impl Composed {
    /// Where the 1-based `line` of the text was written.
    pub fn origin(&self, line: usize) -> Option<Origin<'_>> {
        let &(file, line) = self.lines.get(line.checked_sub(1)?)?;
        let file = self.files.get(file)?;
        Some(Origin { file, line })
    }

    /// A compiler's `message` about the 1-based `line` of the text, as
    /// `wgsl/rms_norm.wgsl:12: message` and the line itself below it. The message
    /// comes back alone if the text has no such line.
    pub fn explain(&self, message: &str, line: usize) -> String {
        let Some(origin) = self.origin(line) else {
            return message.to_owned();
        };
        let source = self.text.lines().nth(line - 1).unwrap_or_default();
        format!("{}:{}: {message}\n    {}", origin.file, origin.line, source.trim())
    }
}

/// Composes the shader `name` out of `files`, which gives the text of an op by its
/// name and of a library file by `lib/<name>`. See [`crate::compose`].
///
/// # Errors
/// As for [`crate::compose`].
pub fn compose_with<'a>(
    files: &dyn Fn(&str) -> Option<&'a str>,
    name: &str,
    defines: &[(&str, i64)],
) -> Result<Composed, ComposeError> {
    let Some(text) = files(name) else {
        let name = name.to_owned();
        return Err(ComposeError::UnknownShader { name });
    };
    let mut composer = Composer { source: files, defines, files: Vec::new(), hoisted: Vec::new(), body: Vec::new() };
    composer.expand(name, text)?;
    Ok(composer.finish())
}

/// A line to write: its text, the index of its file and its line there.
type Placed = (String, usize, u32);

struct Composer<'c, 'a> {
    source: &'c dyn Fn(&str) -> Option<&'a str>,
    defines: &'c [(&'c str, i64)],
    files: Vec<String>,
    hoisted: Vec<Placed>,
    body: Vec<Placed>,
}

/// An `//!if` that waits for its `//!endif`.
struct Open {
    line: u32,
    /// Whether the lines round the `//!if` are kept at all.
    outer: bool,
    /// Whether the current branch is kept.
    active: bool,
    has_else: bool,
}

impl<'a> Composer<'_, 'a> {
    fn expand(&mut self, name: &str, text: &'a str) -> Result<(), ComposeError> {
        let path = path(name);
        let file = self.files.len();
        self.files.push(path.clone());
        let mut open: Vec<Open> = Vec::new();
        for (line, number) in text.lines().zip(1..) {
            let kept = open.last().is_none_or(|branch| branch.active);
            let class = classify(line).map_err(|expected| ComposeError::Malformed {
                file: path.clone(),
                line: number,
                text: line.trim().to_owned(),
                expected,
            })?;
            match class {
                Line::If(condition) => {
                    // A branch that is not kept may ask for names that this variant lacks.
                    let active = kept && self.holds(&condition, &path, number)?;
                    open.push(Open { line: number, outer: kept, active, has_else: false });
                }
                Line::Else => switch(&mut open, &path, number)?,
                Line::Endif => {
                    open.pop().ok_or_else(|| unbalanced(&path, number, "//!endif without an //!if in this file"))?;
                }
                _ if !kept => {}
                Line::Include(name) => self.include(name, &path, number)?,
                Line::Hoist { keyword, list } => self.hoist(keyword, list, file, number),
                Line::Immediate(declaration) if self.define(UNIFORM_PARAMS).unwrap_or(0) != 0 => {
                    let text = format!("@group(1) @binding(0) var<uniform>{declaration}");
                    self.body.push((text, file, number));
                }
                Line::Immediate(_) | Line::Text => {
                    self.body.push((line.to_owned(), file, number));
                }
            }
        }
        match open.pop() {
            None => Ok(()),
            Some(branch) => Err(unbalanced(&path, branch.line, "//!if without an //!endif in this file")),
        }
    }

    fn include(&mut self, name: &str, file: &str, line: u32) -> Result<(), ComposeError> {
        let name_in_library = format!("{LIBRARY}{name}");
        // A file is listed before it is expanded, so a cycle ends here too.
        if self.files.contains(&path(&name_in_library)) {
            return Ok(());
        }
        let text = (self.source)(&name_in_library).ok_or_else(|| ComposeError::UnknownInclude {
            file: file.to_owned(),
            line,
            name: name.to_owned(),
        })?;
        self.expand(&name_in_library, text)
    }

    /// WGSL wants these before every declaration, wherever a file states its need.
    fn hoist(&mut self, keyword: &str, list: &str, file: usize, line: u32) {
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let text = format!("{keyword} {name};");
            if !self.hoisted.iter().any(|(known, ..)| *known == text) {
                self.hoisted.push((text, file, line));
            }
        }
    }

    fn holds(&self, condition: &Condition<'_>, file: &str, line: u32) -> Result<bool, ComposeError> {
        let name = condition.name;
        let value = self.define(name).or((name == UNIFORM_PARAMS).then_some(0));
        match value {
            Some(value) => Ok(condition.holds(value)),
            None => Err(ComposeError::UndefinedName { file: file.to_owned(), line, name: name.to_owned() }),
        }
    }

    fn define(&self, name: &str) -> Option<i64> {
        let mut defines = self.defines.iter();
        defines.find(|(known, _)| *known == name).map(|&(_, value)| value)
    }

    fn finish(self) -> Composed {
        let mut text = String::new();
        let mut lines = Vec::with_capacity(self.hoisted.len() + self.body.len());
        for (line, file, number) in self.hoisted.into_iter().chain(self.body) {
            text.push_str(&line);
            text.push('\n');
            lines.push((file, number));
        }
        Composed { text, files: self.files, lines }
    }
}

/// Moves the innermost `//!if` to its other branch.
fn switch(open: &mut [Open], file: &str, line: u32) -> Result<(), ComposeError> {
    match open.last_mut() {
        None => Err(unbalanced(file, line, "//!else without an //!if in this file")),
        Some(branch) if branch.has_else => Err(unbalanced(file, line, "a second //!else for one //!if")),
        Some(branch) => {
            branch.has_else = true;
            branch.active = branch.outer && !branch.active;
            Ok(())
        }
    }
}

fn unbalanced(file: &str, line: u32, problem: &'static str) -> ComposeError {
    ComposeError::Unbalanced { file: file.to_owned(), line, problem }
}

/// The path of a file as messages show it.
fn path(name: &str) -> String {
    format!("wgsl/{name}.wgsl")
}

#[cfg(test)]
mod tests;
