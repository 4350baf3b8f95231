// loss = sum of (x - t)^2 / (m k), by one workgroup in a fixed order.

//!include "reduce"

struct Params {
    m: u32,
    k: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>; // [m, k]
@group(0) @binding(1) var<storage, read> t: array<f32>; // [m, k]
@group(0) @binding(2) var<storage, read_write> loss: array<f32>; // [1]

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) lid: u32, @builtin(workgroup_id) wid: vec3<u32>) {
    if wid.x + wid.y > 0u {
        return;
    }
    let n = p.m * p.k;
    var sum = 0.0;
    for (var i = lid; i < n; i += WORKGROUP) {
        let difference = x[i] - t[i];
        sum += difference * difference;
    }
    let total = workgroup_sum(lid, sum);
    if lid == 0u {
        loss[0] = total / f32(n);
    }
}
