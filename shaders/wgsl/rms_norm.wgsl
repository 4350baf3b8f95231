// RMSNorm over the last axis (Zhang and Sennrich 2019, equation 4):
// r_i = 1 / sqrt(mean_j x_ij^2 + eps), y_ij = w_j x_ij r_i.
// One workgroup a row; each invocation strides over the row twice.

//!include "reduce"

struct Params {
    m: u32,
    k: u32,
    eps: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;        // [m,k]
@group(0) @binding(1) var<storage, read> w: array<f32>;        // [k]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // [m,k]
@group(0) @binding(3) var<storage, read_write> r: array<f32>;  // [m]

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let row = wid.y * groups.x + wid.x;
    if row >= p.m {
        return;
    }
    let first = row * p.k;
    var squares = 0.0;
    for (var j = lid; j < p.k; j += WORKGROUP) {
        let v = x[first + j];
        squares += v * v;
    }
    let factor = inverseSqrt(workgroup_sum(lid, squares) / f32(p.k) + p.eps);
    for (var j = lid; j < p.k; j += WORKGROUP) {
        y[first + j] = w[j] * (x[first + j] * factor);
    }
    if lid == 0u {
        r[row] = factor;
    }
}
