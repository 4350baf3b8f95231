// Joins parts of attention: y = sum over parts of exp(lse_j - L) * o_j with L = ln(sum of exp(lse_j)), for
// o[n,m,h,d], lse[n,m,h] -> y[m,h,d]; 0 where all parts are empty (lse = -1e30). One invocation an element.

struct Params {
    n: u32,
    m: u32,
    h: u32,
    d: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> o: array<f32>;
@group(0) @binding(1) var<storage, read> lse: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const NOTHING = -1e30;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let index = (wid.y * groups.x + wid.x) * 256u + lid;
    let rows = p.m * p.h;
    if index >= rows * p.d {
        return;
    }
    let row = index / p.d;
    var most = NOTHING;
    for (var j = 0u; j < p.n; j++) {
        most = max(most, lse[j * rows + row]);
    }
    var total = 0.0;
    var sum = 0.0;
    if most > NOTHING {
        for (var j = 0u; j < p.n; j++) {
            let weight = exp(lse[j * rows + row] - most);
            total += weight;
            sum += weight * o[j * rows * p.d + index];
        }
    }
    y[index] = select(0.0, sum / max(total, 1e-30), total > 0.0);
}
