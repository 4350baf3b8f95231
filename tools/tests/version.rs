//! The executable starts and says what it is. (A package's executable is built for its own
//! integration tests: with this one, `cargo test --workspace` always tests a fresh one.)

#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn it_says_its_name_and_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_tritter")).arg("--version").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.trim(), format!("tritter {}", env!("CARGO_PKG_VERSION")));
}
