//! Documents in files, folders and JSON lines.
//!
//! A file is a document, except that each line of a `.jsonl` file is one, in its field `text`.
//! Folders are walked in sorted order; `.gitignore` and `.ignore` files inside them hold, hidden
//! files are passed over, and so are files that are not UTF-8 text, which are counted. Data is
//! read anew at every pass, one file (one line of `.jsonl`) in memory at a time.

use crate::error::{Error, Result};
use ignore::WalkBuilder;
use serde::Deserialize;
use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Files that hold documents, in a fixed order.
#[derive(Clone, Debug)]
pub struct Source {
    files: Vec<Found>,
}

#[derive(Clone, Debug)]
struct Found {
    path: PathBuf,
    /// Given by name, not found in a folder: then it must be text.
    named: bool,
}

/// One document.
#[derive(Clone, Debug)]
pub struct Document<'a> {
    /// File, or `file:line`.
    pub place: String,
    /// Its text, never empty.
    pub text: &'a str,
}

/// What a pass over a source met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Files read.
    pub files: u64,
    /// Files in folders that are not UTF-8 text.
    pub skipped: u64,
    /// Documents that are not empty.
    pub documents: u64,
    /// Their UTF-8 bytes.
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
}

impl Source {
    /// Finds the files of these paths; one that does not exist or holds no file is an error.
    pub fn open(paths: &[PathBuf]) -> Result<Source> {
        let mut files = Vec::new();
        for path in paths {
            let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
            if !metadata.is_dir() {
                files.push(Found { path: path.clone(), named: true });
                continue;
            }
            let before = files.len();
            walk(path, &mut files)?;
            if files.len() == before {
                let problem = "the folder holds no files (hidden and ignored ones do not count)";
                return Err(Error::data(path.display().to_string(), problem));
            }
        }
        if files.is_empty() {
            return Err(Error::data("training data", "no paths were given; name files or folders of text"));
        }
        Ok(Source { files })
    }

    /// The files, in order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|f| f.path.as_path())
    }

    /// Calls `f` for every document, in order.
    pub fn read(&self, mut f: impl FnMut(Document<'_>) -> Result<()>) -> Result<Summary> {
        let mut summary = Summary::default();
        for file in &self.files {
            let before = summary.documents;
            let lines = file.path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl"));
            if lines {
                read_lines(&file.path, &mut summary, &mut f)?
            } else {
                read_text(file, &mut summary, &mut f)?
            }
            if file.named && summary.documents == before {
                return Err(Error::data(file.path.display().to_string(), "it holds no text"));
            }
        }
        if summary.documents == 0 {
            let names: Vec<String> = self.files.iter().take(3).map(|f| f.path.display().to_string()).collect();
            let problem = format!("{} files hold no text, {} of them are not UTF-8", self.files.len(), summary.skipped);
            return Err(Error::data(names.join(", "), problem));
        }
        Ok(summary)
    }
}

fn walk(folder: &Path, files: &mut Vec<Found>) -> Result<()> {
    let mut walk = WalkBuilder::new(folder);
    // Only what lies in the folder decides, so that the same data gives the same run elsewhere.
    walk.parents(false).git_global(false).git_exclude(false).require_git(false);
    walk.sort_by_file_path(|a, b| a.cmp(b));
    for entry in walk.build() {
        let entry = entry.map_err(|e| Error::data(folder.display().to_string(), format!("cannot be walked: {e}")))?;
        if entry.file_type().is_some_and(|t| t.is_file()) {
            files.push(Found { path: entry.into_path(), named: false });
        }
    }
    Ok(())
}

fn give(
    place: String,
    text: &str,
    summary: &mut Summary,
    f: &mut impl FnMut(Document<'_>) -> Result<()>,
) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    summary.documents += 1;
    summary.bytes += text.len() as u64;
    f(Document { place, text })
}

fn read_text(file: &Found, summary: &mut Summary, f: &mut impl FnMut(Document<'_>) -> Result<()>) -> Result<()> {
    let bytes = std::fs::read(&file.path).map_err(|e| Error::io(&file.path, "read", e))?;
    let place = file.path.display().to_string();
    match std::str::from_utf8(&bytes) {
        Ok(text) if !text.contains('\0') => {
            summary.files += 1;
            give(place, text, summary, f)
        }
        _ if file.named => Err(Error::data(place, "not UTF-8 text; convert it or leave it out")),
        _ => {
            summary.skipped += 1;
            tracing::debug!("{place} is not UTF-8 text and is skipped");
            Ok(())
        }
    }
}

fn read_lines(path: &Path, summary: &mut Summary, f: &mut impl FnMut(Document<'_>) -> Result<()>) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    summary.files += 1;
    for number in 1.. {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(|e| Error::io(path, "read", e))? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let place = format!("{}:{number}", path.display());
        let parsed: Line<'_> = serde_json::from_slice(&line)
            .map_err(|e| Error::data(&*place, format!("not a JSON object with a string `text`: {e}")))?;
        give(place, &parsed.text, summary, f)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    fn texts(source: &Source) -> (Vec<String>, Summary) {
        let mut texts = Vec::new();
        let summary = source.read(|d| {
            texts.push(d.text.to_owned());
            Ok(())
        });
        (texts, summary.unwrap())
    }

    #[test]
    fn folders_are_walked_in_order_and_ignore_files_hold() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("b/deep")).unwrap();
        fs::write(at("b/deep/2.txt"), "second").unwrap();
        fs::write(at("a.txt"), "first").unwrap();
        fs::write(at("c.bin"), [0xff, 0xfe, 0, 1]).unwrap();
        fs::write(at("d.dat"), "text with a \0 in it").unwrap();
        fs::write(at("empty"), "").unwrap();
        fs::write(at("left.log"), "ignored").unwrap();
        fs::write(at("b/not.md"), "ignored").unwrap();
        fs::write(at(".gitignore"), "*.log\n").unwrap();
        fs::write(at("b/.ignore"), "not.md\n").unwrap();
        fs::write(at("e.jsonl"), "{\"text\":\"third\\n\"}\n\n{\"id\":1,\"text\":\"fourth\"}").unwrap();
        let source = Source::open(&[folder.path().to_path_buf()]).unwrap();
        let (texts, summary) = texts(&source);
        assert_eq!(texts, ["first", "second", "third\n", "fourth"]);
        assert_eq!(summary, Summary { files: 4, skipped: 2, documents: 4, bytes: 23 });
        assert_eq!(source.files().count(), 6);
    }

    #[test]
    fn bad_data_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let error = |path: PathBuf| {
            let read = Source::open(&[path]).and_then(|s| s.read(|_| Ok(())));
            read.unwrap_err().to_string()
        };
        fs::write(at("x.jsonl"), "{\"text\":\"a\"}\n{\"txt\":\"b\"}\n").unwrap();
        assert!(error(at("x.jsonl")).contains("x.jsonl:2: not a JSON object"));
        fs::write(at("x.jsonl"), "{\"text\":\"a\"}\n\n{\"text\":").unwrap();
        assert!(error(at("x.jsonl")).contains("x.jsonl:3"));
        fs::write(at("binary"), [0xff, 0xfe]).unwrap();
        assert!(error(at("binary")).contains("binary: not UTF-8"));
        fs::write(at("empty.txt"), "").unwrap();
        assert!(error(at("empty.txt")).contains("empty.txt: it holds no text"));
        assert!(error(at("absent")).contains("absent"));
        fs::create_dir(at("hollow")).unwrap();
        assert!(error(at("hollow")).contains("hollow: the folder holds no files"));
        fs::write(at("hollow/blob"), [0xff]).unwrap();
        assert!(error(at("hollow")).contains("1 of them are not UTF-8"));
        assert!(Source::open(&[]).is_err());
    }

    #[test]
    fn an_error_of_the_caller_ends_the_pass() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "text").unwrap();
        let source = Source::open(&[folder.path().to_path_buf()]).unwrap();
        let result = source.read(|d| Err(Error::data(d.place, "stop")));
        assert!(result.unwrap_err().to_string().contains("stop"));
    }
}
