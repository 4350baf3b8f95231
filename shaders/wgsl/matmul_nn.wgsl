// y[m, k] = sum over j < n of x[m, n0 + j] * w[j, k], added to y where add is 1; rows of x
// have l columns.
// BF16: x and w are bf16, computed with in f32; Y_BF16: y too, and add is 0.
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
    add: u32,
}

var<immediate> p: Params;
//!if BF16
@group(0) @binding(0) var<storage, read> x: array<u32>; // [m, l]
@group(0) @binding(1) var<storage, read> w: array<u32>; // [n, k]
//!else
@group(0) @binding(0) var<storage, read> x: array<f32>; // [m, l]
@group(0) @binding(1) var<storage, read> w: array<f32>; // [n, k]
//!endif
//!if Y_BF16
@group(0) @binding(2) var<storage, read_write> y: array<u32>; // [m, k]
//!else
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [m, k]
//!endif

const A_BY_DEPTH: bool = true;
const B_BY_DEPTH: bool = false;

fn load_a(i: u32, d: u32) -> f32 {
    if i < p.m && d < p.n {
//!if BF16
        return bf16_value(x[i * ((p.l + 1u) / 2u) + (p.n0 + d) / 2u], p.n0 + d);
//!else
        return x[i * p.l + p.n0 + d];
//!endif
    }
    return 0.0;
}

fn load_b(d: u32, j: u32) -> f32 {
    if d < p.n && j < p.k {
//!if BF16
        return bf16_value(w[d * ((p.k + 1u) / 2u) + j / 2u], j);
//!else
        return w[d * p.k + j];
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
    let across = (p.k + TILE - 1u) / TILE;
    let first_row = group / across * TILE;
    let first_column = group % across * TILE;
    if first_row >= p.m {
        return;
    }
    var sum = dense_tile(lid, first_row, first_column, p.n);
    for (var r = 0u; r < 4u; r++) {
        let i = first_row + tile_row(lid) + r;
//!if Y_BF16
        for (var c = 0u; c < 4u; c += 2u) {
            let j = first_column + tile_column(lid, c);
            if i < p.m && j < p.k {
                y[i * ((p.k + 1u) / 2u) + j / 2u] = bf16_pair(sum[r][c], sum[r][c + 1u], j + 1u < p.k);
            }
        }
//!else
        for (var c = 0u; c < 4u; c++) {
            let j = first_column + tile_column(lid, c);
            if i < p.m && j < p.k {
                let at = i * p.k + j;
                var value = sum[r][c];
                if p.add != 0u {
                    value += y[at];
                }
                y[at] = value;
            }
        }
//!endif
    }
}
