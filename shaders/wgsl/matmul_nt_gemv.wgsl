// y[m, n0 + j] = sum over k of x[m, k] * w[j, k] for j < n and m <= 4; rows of y have l columns.
// Bound by reading w once: 32 invocations share a row of w and meet all rows of x with it;
// a workgroup of 256 takes 8 rows of w. Their sums are added in a tree of fixed order.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    n0: u32,
    l: u32,
}

const LANES: u32 = 32u;

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>; // [m, k]
@group(0) @binding(1) var<storage, read> w: array<f32>; // [n, k]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [m, l]

var<workgroup> partial: array<vec4<f32>, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) lid: u32,
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let group = wid.y * groups.x + wid.x;
    let j = group * 8u + lid / LANES;
    let lane = lid % LANES;
    var sum = vec4<f32>();
    if j < p.n {
        for (var d = lane; d < p.k; d += LANES) {
            var column = vec4<f32>(x[d], 0.0, 0.0, 0.0);
            if p.m > 1u {
                column.y = x[p.k + d];
            }
            if p.m > 2u {
                column.z = x[2u * p.k + d];
            }
            if p.m > 3u {
                column.w = x[3u * p.k + d];
            }
            sum += w[j * p.k + d] * column;
        }
    }
    partial[lid] = sum;
    for (var stride = LANES / 2u; stride > 0u; stride >>= 1u) {
        workgroupBarrier();
        if lane < stride {
            partial[lid] += partial[lid + stride];
        }
    }
    // The first invocation of each row has added its last element itself.
    if lane == 0u && j < p.n {
        for (var i = 0u; i < p.m; i++) {
            y[i * p.l + p.n0 + j] = partial[lid][i];
        }
    }
}
