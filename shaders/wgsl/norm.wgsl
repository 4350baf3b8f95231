// Global norm: y[0] = scale sqrt(sum x[0..n]), one workgroup, fixed order.

//!include "reduce"

struct Params {
    n: u32,
    scale: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    if wid.x + wid.y > 0u {
        return;
    }
    var sum = 0.0;
    for (var i = lid; i < p.n; i += WORKGROUP) {
        sum += x[i];
    }
    let total = workgroup_sum(lid, sum);
    if lid == 0u {
        y[0] = p.scale * sqrt(total);
    }
}
