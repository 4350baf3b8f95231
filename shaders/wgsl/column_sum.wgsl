// y[n] += sum over m of x[m, n].
// A workgroup of 256 takes 16 columns: 16 invocations a column, each every 16th row in order,
// then a tree of fixed order.

struct Params {
    m: u32,
    n: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>; // [m, n]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [n]

var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) lid: u32,
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    // Neighbouring invocations read neighbouring columns.
    let j = (wid.y * groups.x + wid.x) * 16u + lid % 16u;
    let lane = lid / 16u;
    var sum = 0.0;
    if j < p.n {
        for (var i = lane; i < p.m; i += 16u) {
            sum += x[i * p.n + j];
        }
    }
    partial[lid] = sum;
    for (var stride = 8u; stride > 0u; stride >>= 1u) {
        workgroupBarrier();
        if lane < stride {
            partial[lid] += partial[lid + stride * 16u];
        }
    }
    if lane == 0u && j < p.n {
        y[j] += partial[lid];
    }
}
