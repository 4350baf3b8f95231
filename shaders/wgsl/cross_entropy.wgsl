// Cross entropy with z-loss, one workgroup a row.
// logits[m,v], target[m], loss[m], lse[m]
// lse = max + log(sum exp(x - max)); loss = lse - x[target] + z lse^2, or 0 where target >= v.

//!include "reduce"

struct Params {
    m: u32,
    v: u32,
    z: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> target_id: array<u32>;
@group(0) @binding(2) var<storage, read_write> loss: array<f32>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let row = wid.y * groups.x + wid.x;
    if row >= p.m {
        return;
    }
    let base = row * p.v;

    var most = -3.4028234e38;
    for (var j = lid; j < p.v; j += WORKGROUP) {
        most = max(most, logits[base + j]);
    }
    let shift = workgroup_max(lid, most);

    var sum = 0.0;
    for (var j = lid; j < p.v; j += WORKGROUP) {
        sum += exp(logits[base + j] - shift);
    }
    let total = workgroup_sum(lid, sum);

    if lid == 0u {
        let l = shift + log(total);
        let picked = target_id[row];
        var value = 0.0;
        if picked < p.v {
            value = l - logits[base + picked] + p.z * l * l;
        }
        lse[row] = l;
        loss[row] = value;
    }
}
