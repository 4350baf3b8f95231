// Gradient of RMSNorm with respect to its input. With g = w * dy:
// dx_ij = r_i (g_ij - x_ij r_i^2 mean_l(g_il x_il)).
// One workgroup a row; each invocation strides over the row twice.

//!include "reduce"

struct Params {
    m: u32,
    k: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;         // [m,k]
@group(0) @binding(1) var<storage, read> w: array<f32>;         // [k]
@group(0) @binding(2) var<storage, read> r: array<f32>;         // [m]
@group(0) @binding(3) var<storage, read> dy: array<f32>;        // [m,k]
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;  // [m,k]

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
    var dot = 0.0;
    for (var j = lid; j < p.k; j += WORKGROUP) {
        dot += w[j] * dy[first + j] * x[first + j];
    }
    let factor = r[row];
    let shrink = factor * factor * (workgroup_sum(lid, dot) / f32(p.k));
    for (var j = lid; j < p.k; j += WORKGROUP) {
        dx[first + j] = factor * (w[j] * dy[first + j] - x[first + j] * shrink);
    }
}
