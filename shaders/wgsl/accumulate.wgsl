// y[m, k] += scale * x[m, k].
// One invocation an element.

struct Params {
    m: u32,
    k: u32,
    scale: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>; // [m, k]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [m, k]

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
    y[at] += p.scale * x[at];
}
