//! Composition of small files held in memory.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

fn compose(files: &[(&str, &'static str)], defines: &[(&str, i64)]) -> Result<Composed, ComposeError> {
    let lookup = |name: &str| files.iter().find(|file| file.0 == name).map(|file| file.1);
    compose_with(&lookup, "op", defines)
}

fn text(op: &'static str, defines: &[(&str, i64)]) -> String {
    compose(&[("op", op)], defines).unwrap().text
}

#[test]
fn branches_nest_and_inactive_ones_are_not_evaluated() {
    let op = "//!if A\na\n  //!if B > 1\nb\n  //!else\nnot b\n  //!endif\n//!else\n//!if UNKNOWN\nx\n//!else\ny\n//!endif\nnot a\n//!endif\nend\n";
    assert_eq!(text(op, &[("A", 1), ("B", 2)]), "a\nb\nend\n");
    assert_eq!(text(op, &[("A", 1), ("B", 1)]), "a\nnot b\nend\n");
    let error = compose(&[("op", op)], &[("A", 0)]).unwrap_err();
    assert_eq!(error.to_string().split(';').next(), Some("wgsl/op.wgsl:9: `UNKNOWN` is not defined"));
    assert_eq!(text(op, &[("A", 0), ("UNKNOWN", 0)]), "y\nnot a\nend\n");
    // The inner //!else of an inactive branch must not switch lines back on.
    assert_eq!(text("//!if A\n//!if B\nx\n//!else\ny\n//!endif\n//!endif\n", &[("A", 0)]), "");
}

#[test]
fn an_include_is_expanded_once_and_cycles_end() {
    let files = [
        ("op", "//!include \"a\"\n//!include \"b\"\nop\n//!include \"a\"\n"),
        ("lib/a", "//!include \"b\"\na\n"),
        ("lib/b", "//!include \"a\"\nb\n"),
    ];
    assert_eq!(compose(&files, &[]).unwrap().text, "b\na\nop\n");
}

#[test]
fn an_include_that_is_not_kept_is_not_looked_up() {
    let op = "//!if A\n//!include \"absent\"\n//!endif\nop\n";
    assert_eq!(text(op, &[("A", 0)]), "op\n");
    let error = compose(&[("op", op)], &[("A", 1)]).unwrap_err();
    let (file, name) = ("wgsl/op.wgsl".to_owned(), "absent".to_owned());
    assert_eq!(error, ComposeError::UnknownInclude { file, line: 2, name });
}

#[test]
fn enable_and_requires_move_to_the_top_once_each() {
    let files = [
        ("op", "const a = 1;\n  enable f16; // why\n//!include \"l\"\n//!if A\nenable never;\n//!endif\n"),
        ("lib/l", "fn f() {}\nenable subgroups,f16;\nrequires packed;\nrequires packed;\n"),
    ];
    let composed = compose(&files, &[("A", 0)]).unwrap();
    assert_eq!(composed.text, "enable f16;\nenable subgroups;\nrequires packed;\nconst a = 1;\nfn f() {}\n");
    let origins = [
        ("wgsl/op.wgsl", 2),
        ("wgsl/lib/l.wgsl", 2),
        ("wgsl/lib/l.wgsl", 3),
        ("wgsl/op.wgsl", 1),
        ("wgsl/lib/l.wgsl", 1),
    ];
    for (line, (file, number)) in (1..).zip(origins) {
        assert_eq!(composed.origin(line), Some(Origin { file, line: number }), "line {line}");
    }
    assert_eq!(composed.origin(0), None);
    assert_eq!(composed.origin(6), None);
}

#[test]
fn immediates_become_a_uniform_on_demand() {
    let op = "  var<immediate> p: Params;\n//!if UNIFORM_PARAMS\nu\n//!else\ni\n//!endif\n";
    let immediate = "  var<immediate> p: Params;\ni\n";
    assert_eq!(text(op, &[]), immediate);
    assert_eq!(text(op, &[(UNIFORM_PARAMS, 0)]), immediate);
    assert_eq!(text(op, &[(UNIFORM_PARAMS, 1)]), "@group(1) @binding(0) var<uniform> p: Params;\nu\n");
}

#[test]
fn a_message_is_traced_to_the_file_where_its_line_was_written() {
    let files = [("op", "one\n//!include \"l\"\ntwo\n"), ("lib/l", "//!if A\nskipped\n//!endif\n  wrong;\n")];
    let composed = compose(&files, &[("A", 0)]).unwrap();
    assert_eq!(composed.explain("unknown name", 2), "wgsl/lib/l.wgsl:4: unknown name\n    wrong;");
    assert_eq!(composed.explain("bad", 3), "wgsl/op.wgsl:3: bad\n    two");
    assert_eq!(composed.explain("nowhere", 9), "nowhere");
}

#[test]
fn unbalanced_directives_are_refused_where_they_stand() {
    // (text of the included file, line blamed)
    let rows = [
        ("//!else\n", 1),
        ("a\n//!endif\n", 2),
        ("//!if A\n//!else\n//!else\n//!endif\n", 3),
        ("a\n//!if A\n//!if A\n//!endif\n", 2),
    ];
    for (library, blamed) in rows {
        // The //!if round the include must not balance what the file leaves open.
        let files = [("op", "//!if A\n//!include \"l\"\n//!endif\n"), ("lib/l", library)];
        let error = compose(&files, &[("A", 1)]).unwrap_err();
        let ComposeError::Unbalanced { file, line, .. } = error else {
            panic!("{library} gave {error:?}");
        };
        assert_eq!((file.as_str(), line), ("wgsl/lib/l.wgsl", blamed), "{library}");
    }
}

#[test]
fn a_malformed_line_is_refused_even_where_it_is_not_kept() {
    let error = compose(&[("op", "//!if A\n//!incldue \"x\"\n//!endif\n")], &[("A", 0)]).unwrap_err();
    assert!(error.to_string().starts_with("wgsl/op.wgsl:2: `//!incldue \"x\"`"), "{error}");
}

#[test]
fn windows_line_ends_and_a_missing_last_one_are_read() {
    assert_eq!(text("a\r\n//!if A\r\nb\r\n//!endif\r\nc", &[("A", 1)]), "a\nb\nc\n");
}
