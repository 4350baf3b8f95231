// The block of codes of a page and a head (KIVI, Liu et al. 2024): codes of the keys, rows of tokens; their
// parameters by channel; codes of the values; their parameters by token and group of `page` channels. Every section
// is a whole number of 4 words. A parameter is a scale and a zero: two f16 in a word, or two words of f32 (PRECISE).
// Wants Params p (d, page).

override BITS: u32 = 4u;
override PRECISE: u32 = 0u;

// Words of a token's codes.
fn row_words() -> u32 {
    return (p.d * BITS + 31u) / 32u;
}

// Groups of channels of a value.
fn value_groups() -> u32 {
    return (p.d + p.page - 1u) / p.page;
}

// First words of the sections after the first, and of the next block.
fn key_parameters() -> u32 {
    return p.page * row_words();
}

fn value_codes() -> u32 {
    return key_parameters() + (p.d + 3u) / 4u * 4u * (1u + PRECISE);
}

fn value_parameters() -> u32 {
    return value_codes() + p.page * row_words();
}

fn block_words() -> u32 {
    return value_parameters() + p.page * value_groups() * (1u + PRECISE);
}
