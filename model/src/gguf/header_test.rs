#![allow(clippy::unwrap_used)]
use super::*;
use crate::gguf::{Gguf, Value, fixture};

/// A file by hand, so that every field can be wrong.
struct Draft {
    version: u32,
    tensors: u64,
    entries: Vec<u8>,
    entry_count: u64,
    infos: Vec<u8>,
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Draft {
    fn new() -> Self {
        Draft { version: 3, tensors: 0, entries: vec![], entry_count: 0, infos: vec![], data: vec![] }
    }

    fn entry(mut self, key: &[u8], kind: u32, value: &[u8]) -> Self {
        self.entries.extend((key.len() as u64).to_le_bytes());
        self.entries.extend([key, &kind.to_le_bytes(), value].concat());
        self.entry_count += 1;
        self
    }

    fn tensor(mut self, name: &str, extents: &[u64], kind: u32, offset: u64) -> Self {
        self.infos.extend(text(name));
        self.infos.extend((extents.len() as u32).to_le_bytes());
        extents.iter().for_each(|n| self.infos.extend(n.to_le_bytes()));
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend(offset.to_le_bytes());
        self.tensors += 1;
        self
    }

    fn data(mut self, bytes: usize) -> Self {
        self.data = vec![0; bytes];
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.to_le_bytes(), self.entry_count.to_le_bytes()].concat();
        let mut file = [&b"GGUF"[..], &self.version.to_le_bytes(), &counts, &self.entries, &self.infos].concat();
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        file
    }

    fn open(&self) -> Result<Gguf> {
        Gguf::from_bytes(self.bytes())
    }

    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let message = self.open().unwrap_err().to_string();
        for word in words {
            assert!(message.contains(word), "`{word}` is not in: {message}");
        }
    }
}

#[test]
fn a_file_of_another_writer_reads_as_it_was_written() {
    let gguf = Gguf::from_bytes(fixture("whole.gguf")).unwrap();
    let m = gguf.metadata();
    for (key, value) in [
        ("u8", 200),
        ("i8", -100),
        ("u16", 60000),
        ("i16", -30000),
        ("u32", 4_000_000_000),
        ("i32", -2_000_000_000),
        ("u64", 1 << 63),
        ("i64", -(1 << 62)),
    ] {
        assert_eq!(m.get(&format!("k.{key}")), Some(&Value::Integer(value)), "{key}");
    }
    assert_eq!(m.number("k.f32").unwrap(), Some(1e-5));
    assert_eq!(m.number("k.f64").unwrap(), Some(1e-5));
    assert_eq!(m.flag("k.bool").unwrap(), Some(true));
    assert_eq!(m.text("k.text").unwrap(), Some("héllo"));
    assert_eq!(gguf.texts("k.texts").unwrap().unwrap(), ["a", "", "ü"]);
    assert_eq!(gguf.numbers("k.numbers").unwrap().unwrap(), [1.0, -2.0, 3.0]);
    assert_eq!(gguf.numbers("k.floats").unwrap().unwrap(), [0.5, 0.25]);
    assert!(m.flag("k.text").unwrap_err().to_string().contains("`k.text`"));
    assert!(m.size("k.i8").is_err() && gguf.texts("k.numbers").is_err());
    assert_eq!(m.size("k.absent").unwrap(), None);
    for (name, file) in [("f32", "floats.bin"), ("q8_0", "q8_0.bin"), ("tq1_0", "tq1_0.bin"), ("tq2_0", "tq2_0.bin")] {
        let tensor = gguf.tensor(name).unwrap();
        assert_eq!(tensor.shape, [2, 512], "{name}");
        assert_eq!(gguf.bytes(tensor).unwrap(), fixture(file), "{name}");
    }
    assert!(gguf.tensor("f64").unwrap_err().to_string().contains("`f64`"));
}

#[test]
fn versions_two_and_three_are_read() {
    for version in [2, 3] {
        let draft = Draft { version, ..Draft::new().tensor("t", &[4, 2], 0, 0).data(32) };
        let gguf = draft.open().unwrap();
        assert_eq!(gguf.tensor("t").unwrap().shape, [2, 4]);
        assert_eq!(gguf.data_bytes(), 32);
    }
    Draft { version: 1, ..Draft::new() }.refused(&["version 1", "convert"]);
    Draft { version: 4, ..Draft::new() }.refused(&["version 4"]);
    Draft { version: 3u32.swap_bytes(), ..Draft::new() }.refused(&["big-endian"]);
    let message = Gguf::from_bytes(b"PK\x03\x04".to_vec()).unwrap_err().to_string();
    assert!(message.contains("GGUF"), "{message}");
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    Draft { tensors: u64::MAX, ..Draft::new() }.refused(&["number of tensors", "damaged"]);
    Draft { entry_count: 1 << 60, ..Draft::new() }.refused(&["number of entries", "damaged"]);
    let claims = |count: u64| [&4u32.to_le_bytes()[..], &count.to_le_bytes()].concat();
    Draft::new().entry(b"list", 9, &claims(u64::MAX)).refused(&["`list`", "claims"]);
    let long = (u64::MAX - 3).to_le_bytes();
    Draft::new().entry(b"word", 8, &long).refused(&["`word`", "claims"]);
    Draft::new().tensor("t", &[1 << 40, 1 << 40], 0, 0).refused(&["`t`", "overflow"]);
    Draft::new().tensor("t", &[1 << 40], 0, 0).refused(&["`t`", "cut short"]);
    Draft::new().tensor("t", &[4; 5], 0, 0).data(4096).refused(&["`t`", "5 extents"]);
    Draft::new().tensor("t", &[4, 0], 0, 0).refused(&["`t`", "zero"]);
}

#[test]
fn damaged_entries_are_named() {
    let one = 1u32.to_le_bytes();
    Draft::new().entry(b"a", 4, &one).entry(b"a", 4, &one).refused(&["`a`", "twice"]);
    Draft::new().entry(b"a", 99, &one).refused(&["`a`", "unknown type 99"]);
    Draft::new().entry(b"a", 7, &[2]).refused(&["`a`", "neither true"]);
    Draft::new().entry(b"", 4, &one).refused(&["empty"]);
    Draft::new().entry(b"a", 8, &[&1u64.to_le_bytes()[..], &[0xff]].concat()).refused(&["`a`", "UTF-8"]);
    Draft::new().entry(&[0xff], 4, &one).refused(&["UTF-8"]);
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &4u32.to_le_bytes(), &0u64.to_le_bytes()].concat();
    Draft::new().entry(b"a", 9, &nested).refused(&["`a`", "list of lists"]);
    let bad = [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &1u64.to_le_bytes(), &[0xff]].concat();
    Draft::new().entry(b"a", 9, &bad).refused(&["`a`", "UTF-8"]);
    for alignment in [0u32, 3, 1 << 30] {
        let draft = Draft::new().entry(b"general.alignment", 4, &alignment.to_le_bytes());
        draft.refused(&["`general.alignment`", "power of two"]);
    }
}

#[test]
fn tensors_must_lie_where_the_format_says() {
    let two = |first: u64, second: u64| Draft::new().tensor("a", &[8], 0, first).tensor("b", &[8], 0, second).data(64);
    two(0, 32).open().unwrap();
    two(32, 0).open().unwrap();
    two(0, 0).refused(&["overlaps"]);
    two(0, 16).refused(&["`b`", "multiple of 32"]);
    two(0, 64).refused(&["`b`", "ends at 32"]);
    two(0, 32).data(63).refused(&["`b`", "cut short"]);
    two(0, 32).data(96).refused(&["32 bytes more"]);
    Draft::new().tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).data(64).refused(&["`a`", "twice"]);
    Draft::new().tensor("", &[8], 0, 0).data(32).refused(&["name of a tensor", "empty"]);
    Draft::new().tensor("a", &[256], 12, 0).data(160).refused(&["`a`", "type 12 (Q4_K)", "TQ1_0"]);
    Draft::new().tensor("a", &[128], 35, 0).data(64).refused(&["`a`", "multiples of 256"]);
    Draft::new().tensor("a", &[64], 36, 0).data(64).refused(&["`a`", "I2_S", "multiples of 128", "group size"]);
}

#[test]
fn the_group_of_type_42_follows_from_the_size() {
    // 1024 elements: 288 bytes in groups of 64, 272 (padded to 288) in groups of 128; 2048: 576 and 544.
    let open = |width: u64, bytes: usize| Draft::new().tensor("a", &[width], 42, 0).data(bytes).open();
    assert_eq!(open(2048, 576).unwrap().tensor("a").unwrap().dtype, TensorType::Q2_0);
    assert_eq!(open(2048, 544).unwrap().tensor("a").unwrap().dtype, TensorType::Q2_0G128);
    assert!(open(2048, 512).is_err() && open(2048, 608).is_err());
    // Where one tensor says nothing another one does.
    let both = |second: u64, bytes: usize| {
        let draft = Draft::new().tensor("a", &[1024], 42, 0).tensor("b", &[2048], 42, 288).tensor("c", &[8], 0, second);
        draft.data(bytes).open().unwrap().tensor("a").unwrap().dtype
    };
    assert_eq!(both(288 + 576, 288 + 576 + 32), TensorType::Q2_0);
    assert_eq!(both(288 + 544, 288 + 544 + 32), TensorType::Q2_0G128);
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let bytes = fixture("whole.gguf");
    // Padding after the last tensor may be missing.
    let end = Gguf::from_bytes(bytes.clone()).unwrap().tensors().map(|t| t.end).max().unwrap();
    for length in 0..end {
        assert!(Gguf::from_bytes(bytes[..length].to_vec()).is_err(), "{length} bytes were taken");
    }
}
