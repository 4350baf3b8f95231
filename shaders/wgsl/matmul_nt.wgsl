// y[m, n0 + j] = sum over k of x[m, k] * w[j, k] for j < n; rows of y have l columns.
// PAIRS: x and w are bf16 (BF16) or f16, two in a word, computed with in f32; Y_BF16: y is bf16 too,
// and n0 is even.
// One workgroup of 256 a tile of 64x64.

//!include "dense_tile"
//!if BF16
//!include "bf16"
//!endif

struct Params {
    m: u32,
    n: u32,
    k: u32,
    n0: u32,
    l: u32,
}

var<immediate> p: Params;
//!if PAIRS
@group(0) @binding(0) var<storage, read> x: array<u32>; // [m, k]
@group(0) @binding(1) var<storage, read> w: array<u32>; // [n, k]
//!else
@group(0) @binding(0) var<storage, read> x: array<f32>; // [m, k]
@group(0) @binding(1) var<storage, read> w: array<f32>; // [n, k]
//!endif
//!if Y_BF16
@group(0) @binding(2) var<storage, read_write> y: array<u32>; // [m, l]
//!else
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [m, l]
//!endif

//!if PAIRS
// Element of a word: the low half for an even index, the high half for an odd one.
fn element(word: u32, index: u32) -> f32 {
//!if BF16
    return bf16_value(word, index);
//!else
    return unpack2x16float(word)[index % 2u];
//!endif
}

//!endif
const A_BY_DEPTH: bool = true;
const B_BY_DEPTH: bool = true;

fn load_a(i: u32, d: u32) -> f32 {
    if i < p.m && d < p.k {
//!if PAIRS
        return element(x[i * ((p.k + 1u) / 2u) + d / 2u], d);
//!else
        return x[i * p.k + d];
//!endif
    }
    return 0.0;
}

fn load_b(d: u32, j: u32) -> f32 {
    if d < p.k && j < p.n {
//!if PAIRS
        return element(w[j * ((p.k + 1u) / 2u) + d / 2u], d);
//!else
        return w[j * p.k + d];
//!endif
    }
    return 0.0;
}

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) lid: u32,
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let group = wid.y * groups.x + wid.x;
    let across = (p.n + TILE - 1u) / TILE;
    let first_row = group / across * TILE;
    let first_column = group % across * TILE;
    if first_row >= p.m {
        return;
    }
    var sum = dense_tile(lid, first_row, first_column, p.k);
    for (var r = 0u; r < 4u; r++) {
        let i = first_row + tile_row(lid) + r;
//!if Y_BF16
        for (var c = 0u; c < 4u; c += 2u) {
            let j = first_column + tile_column(lid, c);
            if i < p.m && j < p.n {
                y[i * ((p.l + 1u) / 2u) + (p.n0 + j) / 2u] = bf16_pair(sum[r][c], sum[r][c + 1u], j + 1u < p.n);
            }
        }
//!else
        for (var c = 0u; c < 4u; c++) {
            let j = first_column + tile_column(lid, c);
            if i < p.m && j < p.n {
                y[i * p.l + p.n0 + j] = sum[r][c];
            }
        }
//!endif
    }
}
