// y[m, n0 + j] = f32(sum_k t_jk * x_ik) * (xs_i * ws[scale]) on cooperative matrices; operands as in
// ternary_matmul.wgsl.
//
// Codes and int8 are exact in f16, and sums in f32 are exact up to 2^24, so k is at most 2^24 / 128. A workgroup
// makes a tile of 64 rows and 64 columns of y in four units of 32 x 32, a subgroup each; where there are fewer
// subgroups it goes over k again. Steps of 32 along k: codes and activations are widened to f16 in workgroup memory.
//!include "matrix"

struct Params {
    m: u32,
    n: u32,
    k: u32,
    l: u32,
    n0: u32,
    scales: u32,
    scale: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<u32>;
@group(0) @binding(1) var<storage, read> ws: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<u32>;
@group(0) @binding(3) var<storage, read> xs: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

const WORKERS = 128u;
const TILE = 64u;
const DEPTH = 32u;
const LINE = 40u;
const UNIT = 32u;
const UNITS = 4u;
// Matrices side by side in a unit.
const ACROSS = UNIT / SIDE;
const SUM_LINE = 36u;

var<workgroup> x_tile: array<f16, TILE * LINE>;
var<workgroup> w_tile: array<f16, TILE * LINE>;
// Of each unit one row of matrices of sums.
var<workgroup> sums: array<f32, UNITS * SIDE * SUM_LINE>;

// The weights at columns 4g..4g + 4 of a row; 0 past its end.
fn weights(row: u32, g: u32) -> vec4<f16> {
//!if T1
    let words = (p.k + 19u) / 20u;
    if row >= p.n || g / 5u >= words {
        return vec4<f16>();
    }
    // A byte is five digits in fixed point: times 3, a digit moves above it.
    const POWERS = array<u32, 5>(1u, 3u, 9u, 27u, 81u);
    let bytes = (vec4(w[row * words + g / 5u]) >> vec4(0u, 8u, 16u, 24u)) & vec4(0xffu);
    let codes = (((bytes * POWERS[g % 5u]) & vec4(0xffu)) * 3u) >> vec4(8u);
//!else
    let words = (p.k + 15u) / 16u;
    if row >= p.n || g / 4u >= words {
        return vec4<f16>();
    }
    let codes = (vec4(w[row * words + g / 4u] >> (8u * (g % 4u))) >> vec4(0u, 2u, 4u, 6u)) & vec4(3u);
//!endif
    return vec4<f16>(vec4<i32>(codes) - 1);
}

// The activations at columns 4g..4g + 4 of a row.
fn activations(row: u32, g: u32) -> vec4<f16> {
    let words = 4u * ((p.k + 15u) / 16u);
    if row >= p.m || g >= words {
        return vec4<f16>();
    }
    return vec4<f16>(unpack4xI8(x[row * words + g]));
}

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let group = wid.y * groups.x + wid.x;
    let across = (p.n + TILE - 1u) / TILE;
    if group >= across * ((p.m + TILE - 1u) / TILE) {
        return;
    }
    let i0 = group / across * TILE;
    let j0 = group % across * TILE;
    clear_zeros(lid, WORKERS);
    workgroupBarrier();
    for (var first = 0u; first < UNITS; first += subgroups) {
        var acc: array<Sums, ACROSS * ACROSS>;
        for (var i = 0u; i < ACROSS * ACROSS; i++) {
            acc[i] = coopLoadT<Sums>(&zeros[0], SIDE);
        }
        for (var c0 = 0u; c0 < p.k; c0 += DEPTH) {
            workgroupBarrier();
            for (var i = lid; i < TILE * DEPTH / 4u; i += WORKERS) {
                let row = i / (DEPTH / 4u);
                let part = i % (DEPTH / 4u);
                let a = activations(i0 + row, c0 / 4u + part);
                let b = weights(j0 + row, c0 / 4u + part);
                for (var c = 0u; c < 4u; c++) {
                    x_tile[row * LINE + 4u * part + c] = a[c];
                    w_tile[row * LINE + 4u * part + c] = b[c];
                }
            }
            workgroupBarrier();
            for (var unit = first + subgroup; unit < UNITS; unit += UNITS) {
                for (var depth = 0u; depth < DEPTH; depth += SIDE) {
                    var right: array<Right, ACROSS>;
                    for (var j = 0u; j < ACROSS; j++) {
                        right[j] = coopLoad<Right>(&w_tile[(unit % 2u * UNIT + j * SIDE) * LINE + depth], LINE);
                    }
                    for (var i = 0u; i < ACROSS; i++) {
                        let left = coopLoadT<Left>(&x_tile[(unit / 2u * UNIT + i * SIDE) * LINE + depth], LINE);
                        for (var j = 0u; j < ACROSS; j++) {
                            acc[i * ACROSS + j] = coopMultiplyAdd(left, right[j], acc[i * ACROSS + j]);
                        }
                    }
                }
            }
        }
        for (var i = 0u; i < ACROSS; i++) {
            workgroupBarrier();
            for (var unit = first + subgroup; unit < UNITS; unit += UNITS) {
                for (var j = 0u; j < ACROSS; j++) {
                    coopStoreT(acc[i * ACROSS + j], &sums[unit * SIDE * SUM_LINE + j * SIDE], SUM_LINE);
                }
            }
            workgroupBarrier();
            // Of the units that this pass has made.
            let end = min(first + subgroups, UNITS) * SIDE * UNIT;
            for (var at = first * SIDE * UNIT + lid; at < end; at += WORKERS) {
                let unit = at / (SIDE * UNIT);
                let line = at / UNIT % SIDE;
                let row = i0 + unit / 2u * UNIT + i * SIDE + line;
                let column = j0 + unit % 2u * UNIT + at % UNIT;
                if row < p.m && column < p.n {
                    let sum = sums[(unit * SIDE + line) * SUM_LINE + at % UNIT];
                    y[row * p.l + p.n0 + column] = sum * (xs[row] * ws[p.scale]);
                }
            }
        }
    }
}
