//! What the `tritter` command line is made of, as far as tests use it too.

pub mod validate;
