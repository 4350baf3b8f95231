//! Signatures: `w[n,k]:t2 x[m,k]:i8 -> y[m,n]:f32`, parsed once a row.

use crate::dtype::DType;

/// How an op uses an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    In,
    /// Written whole, old content ignored.
    Out,
    /// Read and written.
    InOut,
}

impl Access {
    /// Does the op read it?
    pub fn reads(self) -> bool {
        self != Access::Out
    }

    /// Does the op write it?
    pub fn writes(self) -> bool {
        self != Access::In
    }
}

/// One operand of a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Its name.
    pub name: &'static str,
    /// Names of its extents; a number stands for itself.
    pub dims: Vec<&'static str>,
    /// Dtypes that the row takes, the usual one first.
    pub dtypes: Vec<DType>,
    /// How it is used.
    pub access: Access,
}

impl Operand {
    /// Extents for given dimensions. An unknown name counts 0, which no tensor has.
    pub fn shape(&self, dims: &[(&'static str, usize)]) -> Vec<usize> {
        let extent = |name: &&str| {
            let named = dims.iter().find(|(n, _)| n == name).map(|(_, extent)| *extent);
            named.or_else(|| name.parse().ok()).unwrap_or(0)
        };
        self.dims.iter().map(extent).collect()
    }
}

/// A parsed signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// As written in the row.
    pub text: &'static str,
    /// Operands in order.
    pub operands: Vec<Operand>,
}

impl Signature {
    /// Parses a signature. What does not parse leaves an operand without extents or dtypes,
    /// which the test over all rows reports; the texts are constants of this crate.
    pub fn parse(text: &'static str) -> Signature {
        let (inputs, outputs) = text.split_once("->").unwrap_or((text, ""));
        let mut operands = Vec::new();
        for (part, written) in [(inputs, false), (outputs, true)] {
            operands.extend(part.split_whitespace().map(|word| operand(word, written)));
        }
        Signature { text, operands }
    }

    /// Index of a named operand.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.operands.iter().position(|o| o.name == name)
    }
}

fn operand(word: &'static str, written: bool) -> Operand {
    let bare = word.trim_start_matches('&');
    let access = match (written, bare.len() < word.len()) {
        (false, _) => Access::In,
        (true, false) => Access::Out,
        (true, true) => Access::InOut,
    };
    let (head, dtypes) = bare.split_once(':').unwrap_or((bare, ""));
    let (name, dims) = head.split_once('[').unwrap_or((head, ""));
    Operand {
        name,
        dims: dims.trim_end_matches(']').split(',').filter(|d| !d.is_empty()).collect(),
        dtypes: dtypes.split('|').filter_map(DType::parse).collect(),
        access,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_says_names_extents_dtypes_and_access() {
        let s = Signature::parse("w[n,k]:t2 s[1]:f32 -> y[m,n]:f32|f16 &h[4]:u32");
        assert_eq!(s.operands.len(), 4);
        assert_eq!(s.operands[0].dims, ["n", "k"]);
        assert_eq!(s.operands[2].dtypes, [DType::F32, DType::F16]);
        assert_eq!(s.operands[2].access, Access::Out);
        assert_eq!(s.operands[3].access, Access::InOut);
        assert_eq!(s.operands[1].shape(&[("n", 3)]), [1]);
        assert_eq!(s.operands[0].shape(&[("n", 3), ("k", 7)]), [3, 7]);
    }
}
