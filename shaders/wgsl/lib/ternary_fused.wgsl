// What the fused decode rows begin with: rows of x[m,k] are normed (p.p == p.k; else norm is unread),
// quantised to int8 and multiplied with four rows of ternary codes a team, as rms_norm, quantize_int8
// and ternary_matmul do.
//
// Every workgroup of 256 norms and quantises for itself, CHUNK elements at a time, into workgroup memory.
// The file that includes this declares `p` with m, k, p and eps.
//!include "reduce"
//!include "team_sum"
//!include "ternary_rows"

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> norm: array<f32>;
//!if VEC
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;
//!else
@group(0) @binding(2) var<storage, read> w: array<u32>;
//!endif
@group(0) @binding(3) var<storage, read> ws: array<f32>;

// Elements that are quantised at a time: whole words of both layouts, four at a time.
//!if ROWS == 1
const CHUNK: u32 = 8000u;
//!else
const CHUNK: u32 = 2560u;
//!endif
//!if T1
const CODES: u32 = 20u;
//!else
const CODES: u32 = 16u;
//!endif

var<workgroup> quantised: array<u32, ROWS * CHUNK / 4u>;
// First word of activations of the chunk.
var<private> origin: u32;
// By row of x: what it is multiplied with before it is rounded, and the scale of its codes.
var<private> factors: array<f32, ROWS>;
var<private> by: array<f32, ROWS>;
var<private> scales: array<f32, ROWS>;

//!if T1
fn activations(i: u32, at: u32) -> u32 {
    return quantised[i * (CHUNK / 4u) + at - origin];
}
//!else
fn activations(i: u32, at: u32) -> vec4<u32> {
    let first = i * (CHUNK / 4u) + 4u * at - origin;
    return vec4<u32>(quantised[first], quantised[first + 1u], quantised[first + 2u], quantised[first + 3u]);
}
//!endif

fn normed(row: u32, j: u32, factor: f32) -> f32 {
    let v = x[row * p.k + j];
    if p.p == p.k {
        return norm[j] * (v * factor);
    }
    return v;
}

fn code(row: u32, j: u32, i: u32) -> u32 {
    if j >= p.k {
        return 0u;
    }
    // Clamping first is the same and keeps the value within i32.
    let rounded = round(clamp(normed(row, j, factors[i]) * by[i], -128.0, 127.0));
    return bitcast<u32>(i32(rounded)) & 0xffu;
}

// Fills acc and scales for the rows i0.. of x (past the last the last one) and rows of w that begin at
// these words. All invocations of the workgroup call together.
fn fused_product(lid: u32, i0: u32, rows: vec4<u32>) {
    for (var i = 0u; i < ROWS; i++) {
        let row = min(i0 + i, p.m - 1u);
        factors[i] = 1.0;
        if p.p == p.k {
            var squares = 0.0;
            for (var j = lid; j < p.k; j += 256u) {
                let v = x[row * p.k + j];
                squares += v * v;
            }
            factors[i] = inverseSqrt(workgroup_sum(lid, squares) / f32(p.k) + p.eps);
        }
        var most = 1e-5;
        for (var j = lid; j < p.k; j += 256u) {
            most = max(most, abs(normed(row, j, factors[i])));
        }
        let a = workgroup_max(lid, most);
        scales[i] = a / 127.0;
        by[i] = 127.0 / a;
    }
    let words = (p.k + CODES - 1u) / CODES;
    for (var first = 0u; first < p.k; first += CHUNK) {
        origin = first / 4u;
        let length = min(CHUNK, words * CODES - first);
        for (var word = lid; word < length / 4u; word += 256u) {
            for (var i = 0u; i < ROWS; i++) {
                let row = min(i0 + i, p.m - 1u);
                let j = first + 4u * word;
                quantised[i * (CHUNK / 4u) + word] = code(row, j, i) | (code(row, j + 1u, i) << 8u)
                    | (code(row, j + 2u, i) << 16u) | (code(row, j + 3u, i) << 24u);
            }
        }
        workgroupBarrier();
        add_words(lid % LANES, rows, first / CODES, (first + length) / CODES);
        workgroupBarrier();
    }
}
