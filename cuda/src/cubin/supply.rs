//! Where a card's kernels come from: ready, kept, or compiled now.

use super::arch::Arch;
use super::archive::Archive;
use super::cache::{Cache, Key};
use super::source::Source;
use crate::driver::{Fault, Outcome};
use crate::nvrtc::{ADVICE, Nvrtc, Rank};
use std::fmt;
use std::sync::OnceLock;

/// What the driver loads: a cubin, or PTX with its closing NUL.
#[derive(Clone, PartialEq, Eq)]
pub struct Image(pub Vec<u8>);

impl Image {
    /// PTX, which the driver compiles itself, and not a cubin (an ELF file).
    pub fn is_ptx(&self) -> bool {
        !self.0.starts_with(b"\x7fELF")
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", if self.is_ptx() { "PTX" } else { "cubin" }, self.0.len())
    }
}

/// The sources of kernels for one card.
pub struct Supply {
    arch: Arch,
    /// Version of CUDA that the driver is of.
    driver: (u32, u32),
    archives: Vec<Archive>,
    cache: Option<Cache>,
    nvrtc: OnceLock<Result<Nvrtc, String>>,
}

impl Supply {
    /// For a card of this architecture under a driver of this CUDA version.
    pub fn new(arch: Arch, driver: (u32, u32)) -> Supply {
        Supply::of(arch, driver, Archive::embedded(), Cache::of_user())
    }

    fn of(arch: Arch, driver: (u32, u32), archives: &[Archive], cache: Option<Cache>) -> Supply {
        let order = arch.runnable(archives.iter().map(|archive| archive.arch));
        let archives = order.iter().flat_map(|arch| archives.iter().filter(move |a| a.arch == *arch)).cloned();
        Supply { arch, driver, archives: archives.collect(), cache, nvrtc: OnceLock::new() }
    }

    /// The compiler, looked for once. A driver loads code only of a compiler of its own major version
    /// or an older one.
    fn nvrtc(&self) -> Result<&Nvrtc, &str> {
        let rank = |nvrtc: &Nvrtc| match nvrtc.version().0 <= self.driver.0 {
            true if nvrtc.archs().contains(&self.arch) => Rank::Best,
            true => Rank::Usable,
            false => Rank::Useless(format!("{nvrtc} is newer than the driver (CUDA {})", self.driver.0)),
        };
        self.nvrtc.get_or_init(|| Nvrtc::find(rank)).as_ref().map_err(String::as_str)
    }

    /// Gives `load` the images of a file, best first, until it takes one. A [`Fault::Failed`] means
    /// that the driver refuses the image and the next is tried; other faults end the search.
    pub fn load<T>(&self, name: &str, mut load: impl FnMut(&Image) -> Outcome<T>) -> Outcome<T> {
        let Some(source) = Source::named(name) else {
            return Err(Fault::Failed(format!("there is no cuda/kernels/{name}.cu")));
        };
        let mut reasons = Vec::new();
        let mut accepted = |image: Image, which: &str| match load(&image) {
            Ok(loaded) => Ok(Some(loaded)),
            Err(Fault::Failed(why)) => {
                tracing::debug!("{name}.cu: the {which} are refused: {why}");
                reasons.push(format!("the {which} are refused: {why}"));
                Ok(None)
            }
            Err(fault) => Err(fault),
        };
        let hash = source.hash();
        for entry in self.archives.iter().filter_map(|archive| archive.find(name, hash)) {
            let Ok(image) = entry.unpack().inspect_err(|why| tracing::warn!("{why}")) else { continue };
            if let Some(loaded) = accepted(Image(image), "ready kernels")? {
                return Ok(loaded);
            }
        }
        let compiler = self.nvrtc().map(Nvrtc::name).ok();
        let key = Key { name, hash, arch: self.arch, compiler: compiler.as_deref() };
        if let Some(image) = self.cache.as_ref().and_then(|cache| cache.get(&key))
            && let Some(loaded) = accepted(Image(image), "kept kernels")?
        {
            return Ok(loaded);
        }
        match self.compile(&source) {
            Ok(image) => {
                let which = if image.is_ptx() { "PTX made for an older architecture" } else { "kernels compiled now" };
                if let Some(loaded) = accepted(image.clone(), which)? {
                    if let Some(cache) = &self.cache {
                        cache.put(&key, &image.0);
                    }
                    return Ok(loaded);
                }
            }
            Err(why) => reasons.push(why),
        }
        Err(Fault::Failed(format!("no kernels of {name}.cu for {}: {}", self.arch, reasons.join("; "))))
    }

    fn compile(&self, source: &Source) -> Result<Image, String> {
        let nvrtc = self.nvrtc().map_err(|why| format!("{why} ({ADVICE})"))?;
        let target = self.arch.target(nvrtc.archs());
        let target = target.ok_or_else(|| format!("{nvrtc} compiles for nothing that {} runs", self.arch))?;
        // The largest files take a minute.
        tracing::info!("compiling {}.cu for {} with {}", source.name, self.arch, nvrtc.name());
        Ok(nvrtc.compile(source, target, &[])?.image)
    }

    /// How kernels are had, for people: `ready kernels for sm_90`, `kernels by NVRTC 12.9 at …`, or
    /// how to get them. Looks for NVRTC only where it is needed.
    pub fn describe(&self) -> String {
        let ready = |source: &Source| self.archives.iter().find(|a| a.find(source.name, source.hash()).is_some());
        let archs: Vec<Arch> = Source::all().filter_map(|source| ready(&source).map(|archive| archive.arch)).collect();
        let rest = || match self.nvrtc() {
            Ok(nvrtc) if self.arch.target(nvrtc.archs()).is_some() => format!("kernels by {nvrtc}"),
            Ok(nvrtc) => format!("no kernels for {}: {nvrtc} does not compile for it", self.arch),
            Err(why) => format!("no kernels for {}: {why} ({ADVICE})", self.arch),
        };
        let Some(first) = archs.first() else { return rest() };
        match Source::all().len() - archs.len() {
            0 => format!("ready kernels for {first}"),
            missing => format!("ready kernels for {first} but for {missing} of {}; {}", Source::all().len(), rest()),
        }
    }
}

#[cfg(test)]
#[path = "supply_tests.rs"]
mod tests;
