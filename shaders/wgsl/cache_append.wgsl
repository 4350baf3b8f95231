// cache[slot[i]] = k[i] then v[i] for the rows of k[m,c], v[m,c] and cache[t,2*c]; slots past the end are ignored.
// HALF: the cache is f16, two in a word, and values are rounded to nearest, ties to even. One invocation a word of the
// cache.

struct Params {
    m: u32,
    c: u32,
    t: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> k: array<u32>;
@group(0) @binding(1) var<storage, read> v: array<u32>;
@group(0) @binding(2) var<storage, read> slot: array<u32>;
@group(0) @binding(3) var<storage, read_write> cache: array<u32>;

//!include "half"

// Element e of the cache's row for token i.
fn element(i: u32, e: u32) -> u32 {
    if e < p.c {
        return k[i * p.c + e];
    }
    return v[i * p.c + e - p.c];
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let index = (wid.y * groups.x + wid.x) * 256u + lid;
//!if HALF
    let words = p.c;
//!else
    let words = 2u * p.c;
//!endif
    if index >= p.m * words {
        return;
    }
    let i = index / words;
    let word = index % words;
    let at = slot[i];
    if at >= p.t {
        return;
    }
//!if HALF
    let bits = half_bits(element(i, 2u * word)) | (half_bits(element(i, 2u * word + 1u)) << 16u);
//!else
    let bits = element(i, word);
//!endif
    cache[at * words + word] = bits;
}
