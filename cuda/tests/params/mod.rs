//! Assertions about the parameter struct of a kernel file, for any C++ compiler; the emulator's tests use them too.

use tritter_runtime::op::{Row, Size};

/// C++ to stand behind a row's kernel file: it compiles if the struct there has the fields of the Rust struct, in
/// names, order, places and kinds, and takes `bytes`, by default as many as the Rust struct.
///
/// The debug text of an op describes the Rust struct: `RmsNorm(RmsNorm { m: 3, k: 8, eps: 1e-5 })`. All fields are
/// scalars of 4 bytes, so their order and the size of the whole give their places.
pub(crate) fn assertions(row: &Row, bytes: Option<usize>) -> Result<String, String> {
    let case = (row.cases)(Size::Small).into_iter().next().ok_or("the row has no case")?;
    let shown = format!("{:?}", case.op);
    let (name, rest) = shown.split_once('(').ok_or("no variant")?;
    let fields = rest.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(fields, _)| fields);
    let fields: Vec<&str> = fields.split(',').map(str::trim).filter(|field| !field.is_empty()).collect();
    let bytes = bytes.unwrap_or(case.op.params().len());
    let mut text = String::from("\ntemplate <typename T> constexpr bool IS_FLOAT = false;\n");
    text += "template <> constexpr bool IS_FLOAT<float> = true;\n";
    text += &format!("static_assert(sizeof({name}) == {bytes}, \"size\");\n");
    // Fields are initialised in the order of their declaration.
    let values: Vec<String> = (1..=fields.len()).map(|i| i.to_string()).collect();
    text += &format!("constexpr {name} PROBE = {{{}}};\n", values.join(", "));
    for (i, field) in fields.into_iter().enumerate() {
        let (field, value) = field.split_once(':').ok_or_else(|| format!("`{field}` is no field"))?;
        let is_float = value.contains(['.', 'e', 'N', 'f']);
        let member = format!("decltype({name}::{field})");
        text += &format!("static_assert(PROBE.{field} == {}, \"{field}\");\n", i + 1);
        text += &format!("static_assert(sizeof({member}) == 4 && IS_FLOAT<{member}> == {is_float}, \"{field}\");\n");
    }
    Ok(text)
}
