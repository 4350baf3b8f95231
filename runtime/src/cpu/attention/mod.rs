//! Attention over caches in pages: rows that are independent of each other, and chunks of a prompt.
//!
//! For single tokens a key is read once for the query heads that share it. They are bound by reading the cache, so
//! the inner loops do little else than load, widen, multiply and add, and fetch ahead what comes next: the hardware's
//! own prefetch stops at the end of a page of memory, and rows of a head lie apart. A prompt fills the tiles of
//! [`crate::ops::attention`] from the cache.

mod codes;
mod decode;
mod floats;
mod layout;
mod prompt;
mod runs;
mod simd;
mod softmax;
#[cfg(test)]
mod tests;
mod work;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86;

pub(crate) use decode::{Floats, Inputs, Quantised, Store};
pub(crate) use softmax::{Sum, online};

use simd::{Plain, Simd, Task};
use std::sync::LazyLock;

/// Scores of a head: those of the longest run, and a vector more.
const SCORES: usize = 128 + 16;

/// `o[n,m,h,d]` and `lse[n,m,h]` of a row over a cache.
pub(crate) fn attend(x: &Inputs<'_>, o: &mut [f32], lse: &mut [f32]) {
    if x.shape.prompt { prompt::prompt(Path::best(), x, o, lse) } else { decode::decode(Path::best(), x, o, lse) }
}

/// An instruction set that this CPU has.
#[derive(Clone, Copy, Debug)]
enum Path {
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    Plain(Plain),
}

impl Path {
    /// All there are, best first.
    fn all() -> Vec<Path> {
        let mut paths = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            paths.extend(x86::Avx512::found().map(Path::Avx512));
            paths.extend(x86::Avx2::found().map(Path::Avx2));
        }
        paths.push(Path::Plain(Plain));
        paths
    }

    fn best() -> Path {
        static BEST: LazyLock<Path> = LazyLock::new(|| Path::all()[0]);
        *BEST
    }

    fn run<T: Task>(self, task: T) -> T::Out {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(s) => s.run(task),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(s) => s.run(task),
            Path::Plain(s) => s.run(task),
        }
    }

    /// Lanes of a vector, and query heads that are computed together.
    fn extents(self) -> (usize, usize) {
        fn of<S: Simd>(_: S) -> (usize, usize) {
            (S::LANES, S::HEADS)
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(s) => of(s),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(s) => of(s),
            Path::Plain(s) => of(s),
        }
    }
}

/// `count` floats from `first` on.
#[inline(always)]
fn part_of(x: &mut [f32], first: usize, count: usize) -> &mut [f32] {
    &mut x[first..first + count]
}
