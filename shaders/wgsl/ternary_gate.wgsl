// y[m,n] = act(g) * u for the products g and u of rms_norm(x[m,k]) in int8 with the ternary rows 0..n and
// n..2n of w[2n,k]; kind 0 is max(0, g)^2, kind 1 is g / (1 + exp(-g)). A team of LANES invocations
// takes two rows of each half and ROWS rows of x.
//!include "ternary_fused"
//!include "sigmoid"

struct Params {
    m: u32,
    n: u32,
    k: u32,
    p: u32,
    kind: u32,
    eps: f32,
}

var<immediate> p: Params;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

fn gated(g: f32, up: f32) -> f32 {
    if p.kind == 0u {
        let positive = max(g, 0.0);
        return positive * positive * up;
    }
    return g * sigmoid(g) * up;
}

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
    let outputs = 2u * (256u / LANES);
    let group = wid.y * groups.x + wid.x;
    let across = (p.n + outputs - 1u) / outputs;
    if group >= across * ((p.m + ROWS - 1u) / ROWS) {
        return;
    }
    let i0 = group / across * ROWS;
    let j0 = group % across * outputs + 2u * (lid / LANES);
    let words = (p.k + CODES - 1u) / CODES;
    let a = min(j0, p.n - 1u);
    let b = min(j0 + 1u, p.n - 1u);
    fused_product(lid, i0, vec4<u32>(a, b, p.n + a, p.n + b) * words);
    for (var i = 0u; i < ROWS; i++) {
        let sum = team_sum(lid, size, acc[i]);
        if lid % LANES == 0u && i0 + i < p.m {
            let gate = vec2<f32>(sum.xy) * (scales[i] * ws[0]);
            let up = vec2<f32>(sum.zw) * (scales[i] * ws[1]);
            for (var c = 0u; c < 2u && j0 + c < p.n; c++) {
                y[(i0 + i) * p.n + j0 + c] = gated(gate[c], up[c]);
            }
        }
    }
}
