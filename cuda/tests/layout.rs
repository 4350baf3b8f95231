//! The parameter struct of every kernel file, as NVRTC sees it, is the Rust struct: names, order,
//! places and kinds of the fields. (The emulator's compiler is asked the same in its own tests.)

#![allow(clippy::unwrap_used)]

mod params;

use tritter_cuda::cubin::{Arch, Source, Target};
use tritter_cuda::nvrtc::{Nvrtc, Rank};
use tritter_runtime::op::Row;

fn compiles(nvrtc: &Nvrtc, row: &Row, bytes: Option<usize>) -> Result<(), String> {
    let text = Source::named(row.name).unwrap().text.to_string() + &params::assertions(row, bytes)?;
    let text: &'static str = Box::leak(text.into_boxed_str());
    let source = Source { name: row.name, text };
    nvrtc.compile(&source, Target::Ptx(Arch::new(8, 0)), &[]).map(|_| ())
}

#[test]
fn parameter_structs_are_those_of_the_rows() {
    let nvrtc = match Nvrtc::find(|_| Rank::Best) {
        Ok(nvrtc) => nvrtc,
        Err(why) => return println!("not run: {why}"),
    };
    let failed: Vec<String> = Row::all().iter().filter_map(|row| compiles(&nvrtc, row, None).err()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let first = &Row::all()[0];
    assert!(compiles(&nvrtc, first, Some(4096)).is_err_and(|why| why.contains("size")), "a wrong size was accepted");
}
