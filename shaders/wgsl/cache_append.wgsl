// cache[pos[i]] = x[i] for the rows of x[m,c] and cache[t,c]; positions past the end
// are ignored. HALF: the cache is f16, two in a word and rows padded to words, and
// values are rounded to nearest, ties to even. One invocation a word of the cache.

struct Params {
    m: u32,
    c: u32,
    t: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read> pos: array<u32>;
@group(0) @binding(2) var<storage, read_write> cache: array<u32>;

//!include "half"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let index = (wid.y * groups.x + wid.x) * 256u + lid;
//!if HALF
    let words = (p.c + 1u) / 2u;
//!else
    let words = p.c;
//!endif
    if index >= p.m * words {
        return;
    }
    let row = index / words;
    let word = index % words;
    let at = pos[row];
    if at >= p.t {
        return;
    }
//!if HALF
    let first = row * p.c + 2u * word;
    var bits = half_bits(x[first]);
    if 2u * word + 1u < p.c {
        bits |= half_bits(x[first + 1u]) << 16u;
    }
    cache[at * words + word] = bits;
//!else
    cache[at * words + word] = x[index];
//!endif
}
