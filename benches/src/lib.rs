//! Criterion benches over the op rows; see `benches/rows.rs`.
