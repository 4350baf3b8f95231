//! The parameter struct of every kernel file, as NVRTC sees it, is the Rust struct: names, order,
//! places and kinds of the fields. (The emulator's compiler is asked the same in its own tests.)

#![allow(clippy::unwrap_used)]

use tritter_cuda::cubin::{Arch, Source, Target};
use tritter_cuda::nvrtc::{Nvrtc, Rank};
use tritter_runtime::op::{Row, Size};

/// A row's file with assertions about its struct, which the debug text of an op describes:
/// `RmsNorm(RmsNorm { m: 3, k: 8, eps: 1e-5 })`. All fields are scalars of 4 bytes.
fn asserted(row: &Row, bytes: Option<usize>) -> String {
    let case = (row.cases)(Size::Small).remove(0);
    let shown = format!("{:?}", case.op);
    let (name, rest) = shown.split_once('(').unwrap();
    let fields = rest.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(fields, _)| fields);
    let mut text = Source::named(row.name).unwrap().text.to_string();
    text += "\ntemplate <typename T> constexpr bool IS_FLOAT = false;\n";
    text += "template <> constexpr bool IS_FLOAT<float> = true;\n";
    let bytes = bytes.unwrap_or(case.op.params().len());
    text += &format!("static_assert(sizeof({name}) == {bytes}, \"size\");\n");
    // Fields are initialised in the order of their declaration.
    let fields: Vec<&str> = fields.split(',').map(str::trim).filter(|field| !field.is_empty()).collect();
    let values: Vec<String> = (1..=fields.len()).map(|i| i.to_string()).collect();
    text += &format!("constexpr {name} PROBE = {{{}}};\n", values.join(", "));
    for (i, field) in fields.into_iter().enumerate() {
        let (field, value) = field.split_once(':').unwrap();
        let is_float = value.contains(['.', 'e', 'N', 'f']);
        let member = format!("decltype({name}::{field})");
        text += &format!("static_assert(PROBE.{field} == {}, \"{field}\");\n", i + 1);
        text += &format!("static_assert(sizeof({member}) == 4 && IS_FLOAT<{member}> == {is_float}, \"{field}\");\n");
    }
    text
}

fn compiles(nvrtc: &Nvrtc, row: &Row, bytes: Option<usize>) -> Result<(), String> {
    let text: &'static str = Box::leak(asserted(row, bytes).into_boxed_str());
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
