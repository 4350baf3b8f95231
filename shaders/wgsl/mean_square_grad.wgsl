// dx[m, k] = sign * 2 (x - t) * dl / (m k).
// One invocation an element.

struct Params {
    m: u32,
    k: u32,
    sign: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>; // [m, k]
@group(0) @binding(1) var<storage, read> t: array<f32>; // [m, k]
@group(0) @binding(2) var<storage, read> dl: array<f32>; // [1]
@group(0) @binding(3) var<storage, read_write> dx: array<f32>; // [m, k]

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) lid: u32,
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let at = (wid.y * groups.x + wid.x) * 256u + lid;
    if at >= p.m * p.k {
        return;
    }
    let factor = 2.0 * p.sign * dl[0] / f32(p.m * p.k);
    dx[at] = factor * (x[at] - t[at]);
}
