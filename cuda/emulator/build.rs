//! Nothing is built here: the script exists so that `OUT_DIR` does, the folder of compiled kernels.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
