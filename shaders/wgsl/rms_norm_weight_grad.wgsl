// Gradient of RMSNorm with respect to its weight, added to an accumulator:
// dw_j += sum_i dy_ij x_ij r_i.
// A workgroup takes 16 columns: 16 lanes each sum every 16th row of a column, then a
// tree adds the lanes, so the order is fixed and neighbours read neighbours.

struct Params {
    m: u32,
    k: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;         // [m,k]
@group(0) @binding(1) var<storage, read> r: array<f32>;         // [m]
@group(0) @binding(2) var<storage, read> dy: array<f32>;        // [m,k]
@group(0) @binding(3) var<storage, read_write> dw: array<f32>;  // [k], in and out

const COLUMNS: u32 = 16u;
const LANES: u32 = 16u;

var<workgroup> sums: array<f32, 256>;  // [LANES,COLUMNS]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let lane = lid / COLUMNS;
    let j = (wid.y * groups.x + wid.x) * COLUMNS + lid % COLUMNS;
    var sum = 0.0;
    if j < p.k {
        for (var i = lane; i < p.m; i += LANES) {
            let at = i * p.k + j;
            sum += dy[at] * x[at] * r[i];
        }
    }
    sums[lid] = sum;
    for (var half = LANES / 2u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if lane < half {
            sums[lid] += sums[lid + half * COLUMNS];
        }
    }
    if lane == 0u && j < p.k {
        dw[j] += sums[lid];
    }
}
