//! The byte alphabet of byte-level tokenizers: each of the 256 bytes stands as
//! one printable character (GPT-2's table: printable Latin-1 as itself, the
//! rest from U+0100 on).

use std::collections::HashMap;

/// The character that stands for a byte.
pub(crate) fn byte_to_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    // Unprintable bytes are numbered in order from U+0100.
    let rank = (0..byte).filter(|&below| !printable(below)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The table in both directions between bytes, characters and token ids.
#[derive(Debug, Clone)]
pub(crate) struct ByteAlphabet {
    ids: [u32; 256],
    bytes: HashMap<char, u8>,
}

impl ByteAlphabet {
    /// The alphabet of a vocabulary, or `None` where a byte has no token.
    pub(crate) fn new(token_id: impl Fn(&str) -> Option<u32>) -> Option<Self> {
        let mut ids = [0; 256];
        let mut bytes = HashMap::with_capacity(256);
        for (id, byte) in ids.iter_mut().zip(0..=u8::MAX) {
            let letter = byte_to_char(byte);
            *id = token_id(letter.encode_utf8(&mut [0; 4]))?;
            bytes.insert(letter, byte);
        }
        Some(Self { ids, bytes })
    }

    /// The token of a single byte.
    pub(crate) fn id(&self, byte: u8) -> u32 {
        // A u8 cannot leave a table of 256.
        self.ids.get(usize::from(byte)).copied().unwrap_or_default()
    }

    /// Adds a token's bytes. A token with a character outside the alphabet (an
    /// added token with a space, say) stands for its own text, as in the
    /// decoder of `tokenizers`.
    pub(crate) fn push_bytes(&self, token: &str, out: &mut Vec<u8>) {
        let start = out.len();
        for letter in token.chars() {
            let Some(&byte) = self.bytes.get(&letter) else {
                out.truncate(start);
                out.extend_from_slice(token.as_bytes());
                return;
            };
            out.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_one_to_one_and_starts_as_known() {
        let letters: std::collections::HashSet<char> = (0..=255).map(byte_to_char).collect();
        assert_eq!(letters.len(), 256);
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(byte_to_char(b'a'), 'a');
        assert_eq!(byte_to_char(0), 'Ā');
        assert_eq!(byte_to_char(0xAD), 'Ń');
    }
}
