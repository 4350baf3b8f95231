//! What a `MODEL` argument means: a folder, a GGUF file, a preset's name, or
//! the id of a model in the local Hugging Face cache. Nothing is ever fetched.
//!
//! The cache keeps `models--ORG--NAME/refs/main` (a revision) and
//! `models--ORG--NAME/snapshots/REVISION/` (the files).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::presets::{PRESETS, Preset, preset};
use crate::tensors::is_plain_name;

/// What a `MODEL` argument turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Located {
    /// A folder with a `config.json`.
    Folder(PathBuf),
    /// A file whose name ends with `.gguf`.
    File(PathBuf),
    /// A shape without weights.
    Preset(&'static Preset),
}

/// Finds what `model` names, looking in this order: a folder that holds a
/// `config.json`, a GGUF file, a preset, the Hugging Face cache. The error says what was
/// looked for and where.
pub fn locate(model: &str) -> Result<Located> {
    locate_in(model, &hub_folders(|name| std::env::var_os(name)))
}

/// As [`locate`], with the cache folders given.
pub fn locate_in(model: &str, hubs: &[PathBuf]) -> Result<Located> {
    let folder = Path::new(model);
    if folder.join("config.json").is_file() {
        return Ok(Located::Folder(folder.to_path_buf()));
    }
    if is_gguf_name(folder) && folder.is_file() {
        return Ok(Located::File(folder.to_path_buf()));
    }
    if let Some(preset) = preset(model) {
        return Ok(Located::Preset(preset));
    }
    if let Some(entry) = cache_entry(model)
        && let Some(found) = hubs.iter().find_map(|hub| snapshot(&hub.join(&entry)))
    {
        return Ok(Located::Folder(found));
    }
    Err(Error::NotFound(not_found(model, hubs)))
}

/// Whether a path is named as GGUF files are.
pub fn is_gguf_name(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The folders where the Hugging Face cache may be, by the environment:
/// `HF_HUB_CACHE`, `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub`,
/// `~/.cache/huggingface/hub`.
pub fn hub_folders(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("HOME").or_else(|| set("USERPROFILE"));
    let places = [
        set("HF_HUB_CACHE"),
        set("HF_HOME").map(|folder| folder.join("hub")),
        set("XDG_CACHE_HOME").map(|folder| folder.join("huggingface").join("hub")),
        home.map(|folder| folder.join(".cache").join("huggingface").join("hub")),
    ];
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in places.into_iter().flatten() {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// The folder name of `org/name` in a cache; `None` where it is no such id.
fn cache_entry(model: &str) -> Option<String> {
    let (organisation, name) = model.split_once('/')?;
    let plain = is_plain_name(organisation) && is_plain_name(name);
    plain.then(|| format!("models--{organisation}--{name}"))
}

/// The files of `refs/main`, if that revision is there.
fn snapshot(entry: &Path) -> Option<PathBuf> {
    let revision = std::fs::read_to_string(entry.join("refs").join("main")).ok()?;
    let revision = revision.trim();
    let folder = entry.join("snapshots").join(revision);
    (is_plain_name(revision) && folder.join("config.json").is_file()).then_some(folder)
}

fn not_found(model: &str, hubs: &[PathBuf]) -> String {
    let path = Path::new(model);
    let folder = if path.is_dir() {
        "the folder of that name has no config.json".to_owned()
    } else if path.exists() {
        "it is a file; give the folder that holds config.json, or a file that ends with .gguf".to_owned()
    } else {
        "there is no folder of that name".to_owned()
    };
    let names: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
    let cache = match cache_entry(model) {
        None => "it is no Hub id (organisation/name)".to_owned(),
        Some(_) if hubs.is_empty() => "no home folder is set to find a Hub cache in".to_owned(),
        Some(entry) => {
            let places: Vec<_> = hubs.iter().map(|hub| hub.display().to_string()).collect();
            format!(
                "the Hugging Face cache has no complete {entry} in {} (fetch it first, or give \
                 its folder)",
                places.join(" or ")
            )
        }
    };
    format!("no model `{model}`: {folder}; no preset is called so ({}); {cache}", names.join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn folders_come_before_presets() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("7B");
        fs::create_dir(&folder).unwrap();
        let name = folder.to_str().unwrap();
        let message = locate_in(name, &[]).unwrap_err().to_string();
        assert!(message.contains("has no config.json"), "{message}");
        fs::write(folder.join("config.json"), "{}").unwrap();
        assert_eq!(locate_in(name, &[]).unwrap(), Located::Folder(folder.clone()));
        let file = folder.join("config.json");
        let message = locate_in(file.to_str().unwrap(), &[]).unwrap_err().to_string();
        assert!(message.contains("it is a file"), "{message}");
        let file = folder.join("model.GGUF");
        fs::write(&file, "").unwrap();
        assert_eq!(locate_in(file.to_str().unwrap(), &[]).unwrap(), Located::File(file));
        let Located::Preset(found) = locate_in("125m", &[]).unwrap() else { unreachable!("a preset's name") };
        assert_eq!(found.name, "125M");
    }

    #[test]
    fn the_cache_is_followed_through_its_main_revision() {
        let hub = tempfile::tempdir().unwrap();
        let entry = hub.path().join("models--org--name");
        let snapshot = entry.join("snapshots").join("abc123");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(entry.join("refs")).unwrap();
        let hubs = [hub.path().join("none"), hub.path().to_path_buf()];
        fs::write(entry.join("refs/main"), "abc123\n").unwrap();
        let message = locate_in("org/name", &hubs).unwrap_err().to_string();
        assert!(message.contains("models--org--name"), "{message}");
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(locate_in("org/name", &hubs).unwrap(), Located::Folder(snapshot));
        fs::write(entry.join("refs/main"), "../snapshots/abc123").unwrap();
        assert!(locate_in("org/name", &hubs).is_err());
    }

    #[test]
    fn ids_cannot_leave_the_cache() {
        for id in ["../x", "a/..", "a/b/c", "/a", "a/", "org"] {
            assert_eq!(cache_entry(id), None, "{id}");
        }
        assert_eq!(cache_entry("org/na.me").unwrap(), "models--org--na.me");
    }

    #[test]
    fn the_error_says_where_it_looked() {
        let message = locate_in("org/none", &[PathBuf::from("somewhere/hub")]).unwrap_err().to_string();
        for word in ["org/none", "somewhere/hub", "125M", "no folder of that name"] {
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn the_environment_gives_the_cache_folders() {
        let folders = hub_folders(|name| match name {
            "HF_HOME" => Some("h".into()),
            "HOME" => Some("u".into()),
            "XDG_CACHE_HOME" => Some("".into()),
            _ => None,
        });
        assert_eq!(folders, [Path::new("h/hub"), Path::new("u/.cache/huggingface/hub")]);
    }
}
