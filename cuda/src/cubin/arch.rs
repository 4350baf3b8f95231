//! Architectures: which compiled kernel runs on which card, and what to compile for it.

use std::fmt;

/// A compute capability as the compiler names it: `sm_90`, `sm_120`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arch {
    /// Major number: the generation.
    pub major: u32,
    /// Minor number, below 10.
    pub minor: u32,
}

/// Architectures whose cubins travel with the project.
pub const READY: &[Arch] = &[Arch::new(8, 0), Arch::new(8, 6), Arch::new(8, 9), Arch::new(9, 0), Arch::new(12, 0)];

/// What a compiler is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Machine code: a cubin.
    Cubin(Arch),
    /// Assembly for an older architecture, which the driver translates for its own.
    Ptx(Arch),
}

impl Arch {
    /// The oldest that the kernels are written for (`cp.async`, bf16 and int8 `mma`).
    pub const OLDEST: Arch = Arch::new(8, 0);

    /// Compute capability `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Arch {
        Arch { major, minor }
    }

    /// From the number in the compiler's name: 90, 120.
    pub fn from_number(number: u32) -> Arch {
        Arch::new(number / 10, number % 10)
    }

    /// The number in the compiler's name.
    pub fn number(self) -> u32 {
        self.major * 10 + self.minor
    }

    /// Whether a card of this architecture runs cubins of `other`: same generation, not newer, and not
    /// those of desktop cards on an embedded one (8.7).
    pub fn runs(self, other: Arch) -> bool {
        let embedded = (self.major, self.minor) == (8, 7);
        self == other || (self.major == other.major && self.minor >= other.minor && !embedded)
    }

    /// Those of `others` whose cubins run here, best first: its own, then the nearest older.
    pub fn runnable(self, others: impl IntoIterator<Item = Arch>) -> Vec<Arch> {
        let mut found: Vec<Arch> = others.into_iter().filter(|&other| self.runs(other)).collect();
        found.sort_unstable_by_key(|arch| std::cmp::Reverse(arch.minor));
        found.dedup();
        found
    }

    /// What a compiler that knows `known` should make for this architecture. PTX is only for
    /// generations that the compiler does not know.
    pub fn target(self, known: &[Arch]) -> Option<Target> {
        if let Some(&arch) = self.runnable(known.iter().copied()).first() {
            return Some(Target::Cubin(arch));
        }
        let older = known.iter().copied().filter(|&arch| arch < self && arch >= Arch::OLDEST);
        older.max().map(Target::Ptx)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.number())
    }
}

impl Target {
    /// The compiler's option.
    pub fn option(self) -> String {
        match self {
            Target::Cubin(arch) => format!("--gpu-architecture={arch}"),
            Target::Ptx(arch) => format!("--gpu-architecture=compute_{}", arch.number()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archs(numbers: &[u32]) -> Vec<Arch> {
        numbers.iter().map(|&n| Arch::from_number(n)).collect()
    }

    #[test]
    fn names_are_those_of_the_compiler() {
        assert_eq!(Arch::new(12, 0).to_string(), "sm_120");
        assert_eq!(Arch::from_number(87), Arch::new(8, 7));
        assert_eq!(Target::Ptx(Arch::new(9, 0)).option(), "--gpu-architecture=compute_90");
    }

    #[test]
    fn a_card_runs_its_own_generation_up_to_its_minor() {
        let ready = || READY.iter().copied();
        assert_eq!(Arch::new(8, 7).runnable(ready()), []);
        assert_eq!(Arch::new(8, 9).runnable(ready()), archs(&[89, 86, 80]));
        assert_eq!(Arch::new(8, 0).runnable(ready()), archs(&[80]));
        assert_eq!(Arch::new(12, 1).runnable(ready()), archs(&[120]));
        assert_eq!(Arch::new(10, 0).runnable(ready()), []);
    }

    #[test]
    fn a_compiler_makes_a_cubin_where_it_can_and_else_ptx() {
        let known = archs(&[75, 80, 86, 87, 89, 90]);
        assert_eq!(Arch::new(8, 7).target(&known), Some(Target::Cubin(Arch::new(8, 7))));
        assert_eq!(Arch::new(8, 8).target(&known), Some(Target::Cubin(Arch::new(8, 7))));
        assert_eq!(Arch::new(12, 0).target(&known), Some(Target::Ptx(Arch::new(9, 0))));
        assert_eq!(Arch::new(8, 0).target(&archs(&[75])), None);
    }
}
