// Reads blocks of codes: `codes` holds words, or with VEC four at a time.
//!include "codes"

fn word(at: u32) -> u32 {
//!if VEC
    return codes[at / 4u][at % 4u];
//!else
    return codes[at];
//!endif
}

// Scale and zero of entry i of the section of parameters that begins at a word.
fn parameters(section: u32, i: u32) -> vec2<f32> {
    if PRECISE == 1u {
        return vec2(bitcast<f32>(word(section + 2u * i)), bitcast<f32>(word(section + 2u * i + 1u)));
    }
    return unpack2x16float(word(section + i));
}
