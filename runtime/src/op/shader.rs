//! WGSL variants of a row: which file, for whom, and how it is launched.

use crate::device::Caps;
use crate::dtype::Spec;

/// Capabilities that a variant asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// `enable f16`.
    pub f16: bool,
    /// Subgroup operations (of any size).
    pub subgroups: bool,
    /// Cooperative matrices of this side, with f16 operands and f32 sums; 0 for none.
    pub matrix: u32,
}

impl Needs {
    /// Nothing beyond what every device guarantees.
    pub const NONE: Needs = Needs { f16: false, subgroups: false, matrix: 0 };
    /// Subgroup operations.
    pub const SUBGROUPS: Needs = Needs { f16: false, subgroups: true, matrix: 0 };

    /// Cooperative matrices of `side` × `side`.
    pub const fn matrix(side: u32) -> Needs {
        Needs { f16: true, subgroups: true, matrix: side }
    }

    /// What is missing on a device.
    pub fn missing(self, caps: &Caps) -> Option<&'static str> {
        if self.f16 && !caps.f16 {
            Some("shader f16")
        } else if self.subgroups && caps.subgroups.1 == 0 {
            Some("subgroup operations")
        } else if self.matrix != 0 && !caps.matrices.contains(&self.matrix) {
            Some(if self.matrix == 8 { "cooperative matrices of 8×8" } else { "cooperative matrices of 16×16" })
        } else {
            None
        }
    }
}

/// Workgroups and override constants of one dispatch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Launch {
    /// Workgroups in x, y, z, each at most 65,535.
    pub groups: [u32; 3],
    /// `override` constants that the text declares.
    pub overrides: Vec<(&'static str, f64)>,
}

impl Launch {
    /// `count` workgroups, folded into two dimensions (see [`fold_groups`]), without overrides.
    pub fn groups(count: usize) -> Launch {
        Launch { groups: fold_groups(count), overrides: Vec::new() }
    }

    /// With one more override constant.
    pub fn with(mut self, name: &'static str, value: usize) -> Launch {
        self.overrides.push((name, value as f64));
        self
    }
}

/// Folds a number of workgroups into `[x, y, 1]` with `x ≤ 65,535` and `x·y ≥ count`. Shaders
/// compute `group = wid.y * num_workgroups.x + wid.x` and leave if it is past the end.
pub fn fold_groups(count: usize) -> [u32; 3] {
    const MOST: usize = 65_535;
    let y = count.div_ceil(MOST).max(1);
    let x = count.div_ceil(y).max(1);
    [x as u32, y as u32, 1]
}

/// One WGSL variant.
#[derive(Debug)]
pub struct Wgsl<K> {
    /// Variant name for reports: `plain`, `subgroup`, `dot4`.
    pub name: &'static str,
    /// File `shaders/wgsl/<file>.wgsl`.
    pub file: &'static str,
    /// What the device must have.
    pub needs: Needs,
    /// Defines for the composer.
    pub defines: &'static [(&'static str, i64)],
    /// Operands it takes (dtypes, sizes).
    pub when: fn(&K, &[Spec]) -> bool,
    /// How it is launched.
    pub launch: fn(&K, &[Spec]) -> Launch,
}

/// A variant chosen for given operands.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Variant name.
    pub variant: &'static str,
    /// Shader file.
    pub file: &'static str,
    /// What the device must have.
    pub needs: Needs,
    /// Defines for the composer.
    pub defines: &'static [(&'static str, i64)],
    /// Workgroups and overrides.
    pub launch: Launch,
}

impl<K> Wgsl<K> {
    /// This variant for given operands, if it takes them.
    pub fn choose(&self, op: &K, operands: &[Spec]) -> Option<Choice> {
        (self.when)(op, operands).then(|| Choice {
            variant: self.name,
            file: self.file,
            needs: self.needs,
            defines: self.defines,
            launch: (self.launch)(op, operands),
        })
    }
}
