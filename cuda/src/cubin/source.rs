//! The kernel sources in the executable.

use super::wire::Fnv;
use std::sync::OnceLock;

mod embedded {
    // Written by `build.rs` from `cuda/kernels` and `cuda/cubins`.
    include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
}

/// Names and texts of the headers that kernels may include.
pub const HEADERS: &[(&str, &str)] = embedded::HEADERS;

/// Options of every compilation but the architecture. Fast mathematics stays off; products and sums
/// are contracted (the default), which the tolerances of the rows allow for.
pub const OPTIONS: &[&str] = &["--std=c++17"];

/// Counted up when what is made of the same sources changes otherwise.
const EDITION: &[u8] = b"tritter kernels 1";

/// One file of `cuda/kernels`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// File name without `.cu`: the name of the row.
    pub name: &'static str,
    /// CUDA C.
    pub text: &'static str,
}

impl Source {
    /// All files, by name.
    pub fn all() -> impl ExactSizeIterator<Item = Source> {
        embedded::KERNELS.iter().map(|&(name, text)| Source { name, text })
    }

    /// The file of a row.
    pub fn named(name: &str) -> Option<Source> {
        Source::all().find(|source| source.name == name)
    }

    /// Identifies what the compiler gets but for the architecture: this file, all headers and the
    /// options. A header counts for files that do not include it as well: rebuilding too much is
    /// cheap, a kernel of yesterday is not.
    pub fn hash(&self) -> u64 {
        static SHARED: OnceLock<Fnv> = OnceLock::new();
        let shared = SHARED.get_or_init(|| {
            let options = OPTIONS.iter().fold(Fnv::new().with(EDITION), |sum, option| part(sum, option));
            HEADERS.iter().fold(options, |sum, (name, text)| part(part(sum, name), text))
        });
        part(part(*shared, self.name), self.text).value()
    }
}

/// Adds a text and its length, so that no two lists of texts run together. A checkout may have
/// turned line ends into CR LF, which changes no kernel.
fn part(sum: Fnv, text: &str) -> Fnv {
    let text = text.replace("\r\n", "\n");
    sum.with(&(text.len() as u64).to_le_bytes()).with(text.as_bytes())
}

/// The embedded archives of ready cubins.
pub(super) fn archives() -> &'static [&'static [u8]] {
    embedded::ARCHIVES
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_kernels_are_embedded_with_their_headers() {
        let source = Source::named("rms_norm").unwrap();
        assert!(source.text.contains("rms_norm_f32"));
        assert!(HEADERS.iter().any(|(name, text)| *name == "tritter.cuh" && text.contains("block_reduce")));
        assert_eq!(Source::named("no_such_row"), None);
    }

    #[test]
    fn the_hash_follows_name_and_text_but_not_line_ends() {
        let hash = |name, text| Source { name, text }.hash();
        assert_eq!(hash("a", "x\r\ny\r\n"), hash("a", "x\ny\n"));
        assert_ne!(hash("a", "x"), hash("a", "y"));
        assert_ne!(hash("a", "bx"), hash("ab", "x"));
    }
}
