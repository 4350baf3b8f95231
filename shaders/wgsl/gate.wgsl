// y[m,k] = act(gate[m,k]) * up[m,k]; kind 0 is max(0, g)^2, kind 1 is g / (1 + exp(-g)).
// One invocation an element.

struct Params {
    m: u32,
    k: u32,
    kind: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> gate: array<f32>;
@group(0) @binding(1) var<storage, read> up: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

//!include "sigmoid"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let i = (wid.y * groups.x + wid.x) * 256u + lid;
    if i >= p.m * p.k {
        return;
    }
    let g = gate[i];
    if p.kind == 0u {
        let positive = max(g, 0.0);
        y[i] = positive * positive * up[i];
    } else {
        y[i] = g * sigmoid(g) * up[i];
    }
}
