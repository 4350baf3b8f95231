// Geometry of the tiled attention kernels: 16 rows of queries against 32 keys at a
// time, or 16 keys against 32 rows. A row is (token, head) with the heads that share
// one key-value head next to each other. Wants Params p (m, h, d, t, g, window, sinks) and span.
//!include "visible_keys"

fn shared_heads() -> u32 {
    return p.h / p.g;
}

// Rows of one key-value head.
fn row_count() -> u32 {
    return p.m * shared_heads();
}

// Index of a row in [m,h].
fn row_index(row: u32, kv: u32) -> u32 {
    return (row / shared_heads()) * p.h + kv * shared_heads() + row % shared_heads();
}

// What a token sees.
fn keys_of(token: u32) -> Keys {
    return visible_keys(span[2u * token], span[2u * token + 1u], p.t);
}

// What a range of tokens sees.
fn keys_of_all(first: u32, end: u32) -> Keys {
    var all = no_keys(p.t);
    for (var token = first; token < end; token++) {
        all = both_keys(all, keys_of(token));
    }
    return all;
}
