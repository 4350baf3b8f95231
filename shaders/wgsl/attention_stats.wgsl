// stats[m,h,2] = (lse[m,h], sum over d of o[m,h,d] * do[m,h,d]). One invocation a row.

struct Params {
    m: u32,
    h: u32,
    d: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> o: array<f32>;
@group(0) @binding(1) var<storage, read> upstream: array<f32>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read_write> stats: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let row = (wid.y * groups.x + wid.x) * 64u + lid;
    if row >= p.m * p.h {
        return;
    }
    var sum = 0.0;
    for (var i = 0u; i < p.d; i++) {
        sum += o[row * p.d + i] * upstream[row * p.d + i];
    }
    stats[2u * row] = lse[row];
    stats[2u * row + 1u] = sum;
}
