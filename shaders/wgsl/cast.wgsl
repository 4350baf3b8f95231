// y[m, k] = x[m, k] in another dtype. TO_BF16 1: from f32 to bf16, rounded to nearest, halves to
// even, and NaN kept; 0: from bf16 to f32, exactly. bf16 lies two in a word, low half first, and
// rows are padded to words with 0. All on bits, so that no driver's arithmetic matters.
// One invocation a pair of columns.

struct Params {
    m: u32,
    k: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<u32>; // [m, k]
@group(0) @binding(1) var<storage, read_write> y: array<u32>; // [m, k]

//!if TO_BF16
//!include "bf16"
//!endif

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) lid: u32,
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let index = (wid.y * groups.x + wid.x) * 256u + lid;
    let words = (p.k + 1u) / 2u;
    if index >= p.m * words {
        return;
    }
    let row = index / words;
    let column = 2u * (index % words);
    let at = row * p.k + column;
    let pair = column + 1u < p.k;
//!if TO_BF16
    var bits = bf16_bits(x[at]);
    if pair {
        bits |= bf16_bits(x[at + 1u]) << 16u;
    }
    y[index] = bits;
//!else
    let bits = x[index];
    y[at] = bits << 16u;
    if pair {
        y[at + 1u] = bits & 0xffff0000u;
    }
//!endif
}
