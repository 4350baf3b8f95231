//! What composition refuses, with the file and the 1-based line where it stands.

/// Why a shader could not be composed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ComposeError {
    /// No shader has this name.
    #[error("there is no shader wgsl/{name}.wgsl; check the op's name")]
    UnknownShader {
        /// The name asked for.
        name: String,
    },
    /// `//!include` names a file that the library lacks.
    #[error("{file}:{line}: there is no library file wgsl/lib/{name}.wgsl to include")]
    UnknownInclude {
        /// File of the directive.
        file: String,
        /// Line of the directive.
        line: u32,
        /// The name in the directive.
        name: String,
    },
    /// An active `//!if` asks for a name that the caller did not define.
    #[error("{file}:{line}: `{name}` is not defined; pass it in the defines of this shader")]
    UndefinedName {
        /// File of the directive.
        file: String,
        /// Line of the directive.
        line: u32,
        /// The name in the directive.
        name: String,
    },
    /// A line that looks like a directive but is none.
    #[error("{file}:{line}: `{text}` is not a directive: {expected}")]
    Malformed {
        /// File of the directive.
        file: String,
        /// Line of the directive.
        line: u32,
        /// The line as written, trimmed.
        text: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// `//!if`, `//!else` and `//!endif` of one file do not match.
    #[error("{file}:{line}: {problem}")]
    Unbalanced {
        /// File of the directive.
        file: String,
        /// Line of the directive that has no partner.
        line: u32,
        /// What is missing.
        problem: &'static str,
    },
}
