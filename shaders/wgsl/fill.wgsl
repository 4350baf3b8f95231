// Sets every element: y[m,k] = value. One invocation an element.

struct Params {
    m: u32,
    k: u32,
    value: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> y: array<f32>;  // [m,k]

const THREADS: u32 = 256u;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let i = (wid.y * groups.x + wid.x) * THREADS + lid;
    if i < p.m * p.k {
        y[i] = p.value;
    }
}
