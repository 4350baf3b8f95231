// AdamW with clipping by the global norm, one invocation an element.
// g[m,k], hyper[8], norm[1], in place: p[m,k], m1[m,k], m2[m,k]
// hyper = [lr, beta1, beta2, eps, weight_decay, 1 - beta1^t, 1 - beta2^t, max_norm]
// Where the norm is not finite, nothing changes. That is read off its exponent, because
// a compiler may assume that no float is infinite or NaN.

struct Params {
    m: u32,
    k: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> g: array<f32>;
@group(0) @binding(1) var<storage, read> hyper: array<f32>;
@group(0) @binding(2) var<storage, read> norm: array<u32>; // bits of an f32
@group(0) @binding(3) var<storage, read_write> weight: array<f32>;
@group(0) @binding(4) var<storage, read_write> m1: array<f32>;
@group(0) @binding(5) var<storage, read_write> m2: array<f32>;

const EXPONENT = 0x7f800000u;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let i = (wid.y * groups.x + wid.x) * 256u + lid;
    if i >= p.m * p.k || (norm[0] & EXPONENT) == EXPONENT {
        return;
    }
    let length = bitcast<f32>(norm[0]);
    let max_norm = hyper[7];
    var clip = 1.0;
    if max_norm > 0.0 && length > max_norm {
        clip = max_norm / length;
    }
    let d = clip * g[i];
    let first = hyper[1] * m1[i] + (1.0 - hyper[1]) * d;
    let second = hyper[2] * m2[i] + (1.0 - hyper[2]) * d * d;
    let move_by = hyper[0] / hyper[5] * first / (sqrt(second) / sqrt(hyper[6]) + hyper[3]);
    m1[i] = first;
    m2[i] = second;
    weight[i] = weight[i] * (1.0 - hyper[0] * hyper[4]) - move_by;
}
