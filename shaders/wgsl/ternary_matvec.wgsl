// y[m, n0 + j] = f32(sum_k t_jk * x_ik) * (xs_i * ws[scale]) for few rows of x: t from w[n,k] in two bits
// or 1.6 (T1), x[m,k] int8 in rows padded with zeros to 16 bytes, y in rows of l.
//
// A team of LANES invocations shares four rows of w and meets ROWS rows of x with them. All sums are
// integers, so their order does not matter.
//!include "team_sum"
//!include "ternary_rows"

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
//!if VEC
@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>;
//!else
@group(0) @binding(0) var<storage, read> w: array<u32>;
//!endif
@group(0) @binding(1) var<storage, read> ws: array<f32>;
//!if T1
@group(0) @binding(2) var<storage, read> x: array<u32>;
//!else
@group(0) @binding(2) var<storage, read> x: array<vec4<u32>>;
//!endif
@group(0) @binding(3) var<storage, read> xs: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// The first row of x; past the last row stands the last one, whose sums are not written.
var<private> i0: u32;

//!if T1
const CODES: u32 = 20u;

fn activations(i: u32, at: u32) -> u32 {
    let words = 4u * ((p.k + 15u) / 16u);
    let word = x[min(i0 + i, p.m - 1u) * words + min(at, words - 1u)];
    return select(0u, word, at < words);
}
//!else
const CODES: u32 = 16u;

fn activations(i: u32, at: u32) -> vec4<u32> {
    return x[min(i0 + i, p.m - 1u) * ((p.k + 15u) / 16u) + at];
}
//!endif

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
//!if SUBGROUPS
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) invocation: u32,
    @builtin(subgroup_size) size: u32,
//!else
    @builtin(local_invocation_index) lid: u32,
//!endif
) {
//!if SUBGROUPS
    let lid = subgroup * size + invocation;
//!else
    let size = 1u;
//!endif
    let outputs = 4u * (256u / LANES);
    let group = wid.y * groups.x + wid.x;
    let across = (p.n + outputs - 1u) / outputs;
    if group >= across * ((p.m + ROWS - 1u) / ROWS) {
        return;
    }
    i0 = group / across * ROWS;
    let j0 = group % across * outputs + 4u * (lid / LANES);
    let words = (p.k + CODES - 1u) / CODES;
    let rows = min(vec4<u32>(j0) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.n - 1u)) * words;
    add_words(lid % LANES, rows, 0u, words);
    for (var i = 0u; i < ROWS; i++) {
        let sum = team_sum(lid, size, acc[i]);
        if lid % LANES == 0u && i0 + i < p.m {
            let scale = xs[i0 + i] * ws[p.scale];
            for (var r = 0u; r < 4u && j0 + r < p.n; r++) {
                y[(i0 + i) * p.l + p.n0 + j0 + r] = f32(sum[r]) * scale;
            }
        }
    }
}
