// y[m, n0 + j] = sum over k of x[m, k] * w[j, k] for few rows of x, w kept in few bits. Bound by reading w
// once: a team of LANES invocations shares four rows of w and meets ROWS rows of x with them, 16 columns
// (which share a scale) at a time. Sums are added in a tree of fixed order.
//!include "team_sum"
//!include "weights_product"

//!if ROWS == 1
const ROWS: u32 = 1u;
//!else
const ROWS: u32 = 4u;
//!endif

// Columns 4c..4c + 4 of a row of x; past the last row stands the last one, whose sums are not written.
fn activations(i: u32, c: u32) -> vec4<f32> {
    let first = min(i, p.m - 1u) * p.k;
    let d = 4u * c;
    if d + 3u < p.k {
        return vec4<f32>(x[first + d], x[first + d + 1u], x[first + d + 2u], x[first + d + 3u]);
    }
    var v = vec4<f32>();
    for (var e = 0u; d + e < p.k; e++) {
        v[e] = x[first + d + e];
    }
    return v;
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
    let outputs = 4u * (256u / LANES);
    let group = wid.y * groups.x + wid.x;
    let across = (p.n + outputs - 1u) / outputs;
    if group >= across * ((p.m + ROWS - 1u) / ROWS) {
        return;
    }
    let i0 = group / across * ROWS;
    let j0 = group % across * outputs + 4u * (lid / LANES);
    let rows = min(vec4<u32>(j0) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.n - 1u));
    // By row of x, with the four rows of w.
    var acc: array<vec4<f32>, ROWS>;
    let units = (p.k + 15u) / 16u;
    for (var unit = lid % LANES; unit < units; unit += LANES) {
        var part: array<vec4<f32>, ROWS>;
        // Not past the padding of rows in 16 bits, which is to two columns.
        for (var c = 4u * unit; c < min(4u * unit + 4u, (p.k + 3u) / 4u); c++) {
            let a = four(rows.x, c);
            let b = four(rows.y, c);
            let e = four(rows.z, c);
            let f = four(rows.w, c);
            for (var i = 0u; i < ROWS; i++) {
                let v = activations(i0 + i, c);
                part[i] += vec4<f32>(dot(a, v), dot(b, v), dot(e, v), dot(f, v));
            }
        }
//!if GROUPED
        let d = 16u * unit;
        let scale = vec4<f32>(scale_of(rows.x, d), scale_of(rows.y, d), scale_of(rows.z, d), scale_of(rows.w, d));
        for (var i = 0u; i < ROWS; i++) {
            acc[i] += part[i] * scale;
        }
//!else
        for (var i = 0u; i < ROWS; i++) {
            acc[i] += part[i];
        }
//!endif
    }
    for (var i = 0u; i < ROWS; i++) {
        let sum = team_sum(lid, size, acc[i]);
        if lid % LANES == 0u && i0 + i < p.m {
            for (var r = 0u; r < 4u && j0 + r < p.n; r++) {
                y[(i0 + i) * p.l + p.n0 + j0 + r] = sum[r];
            }
        }
    }
}
