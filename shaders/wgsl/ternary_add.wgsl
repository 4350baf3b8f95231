// y[m,n] = r[m,n] + (rms_norm(x[m,k]) in int8) * (ternary w[n,k]): an output projection of a decode step
// with its residual. A team of LANES invocations takes four rows of w and ROWS rows of x.
//!include "ternary_fused"

struct Params {
    m: u32,
    n: u32,
    k: u32,
    p: u32,
    eps: f32,
}

var<immediate> p: Params;
@group(0) @binding(4) var<storage, read> r: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

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
    let i0 = group / across * ROWS;
    let j0 = group % across * outputs + 4u * (lid / LANES);
    let words = (p.k + CODES - 1u) / CODES;
    let rows = min(vec4<u32>(j0) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.n - 1u)) * words;
    fused_product(lid, i0, rows);
    for (var i = 0u; i < ROWS; i++) {
        let sum = team_sum(lid, size, acc[i]);
        if lid % LANES == 0u && i0 + i < p.m {
            let scale = scales[i] * ws[0];
            for (var c = 0u; c < 4u && j0 + c < p.n; c++) {
                let at = (i0 + i) * p.n + j0 + c;
                y[at] = r[at] + f32(sum[c]) * scale;
            }
        }
    }
}
