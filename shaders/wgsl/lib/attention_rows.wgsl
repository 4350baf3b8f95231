// Geometry of the tiled attention kernels: 16 rows of queries against 32 keys at a
// time, or 16 keys against 32 rows. A row is (token, head) with the heads that share
// one key-value head next to each other. Wants Params p (m, h, d, t, g) and span.

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

// First key that a token sees, and the key after its last; equal or falling: none.
fn keys_of(token: u32) -> vec2<u32> {
    return vec2(span[2u * token], min(span[2u * token + 1u], p.t - 1u) + 1u);
}

// From the first to the last key that a range of tokens sees.
fn keys_of_all(first: u32, end: u32) -> vec2<u32> {
    var range = vec2(p.t, 0u);
    for (var token = first; token < end; token++) {
        let keys = keys_of(token);
        if keys.x < keys.y {
            range = vec2(min(range.x, keys.x), max(range.y, keys.y));
        }
    }
    return range;
}
