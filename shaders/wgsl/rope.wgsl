// Rotary position embedding, half-split: pairs (i, i + d/2) of x[m,h,d] turn by
// sign * pos[m] * w_i into y[m,h,d]. The angle is composed of a row of coarse[c,d]
// and one of fine[f,d], each [cosines | sines]: pos = hi * f + lo. Positions from
// c * f on count as c * f - 1. One invocation a pair.

struct Params {
    m: u32,
    h: u32,
    d: u32,
    c: u32,
    f: u32,
    sign: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> pos: array<u32>;
@group(0) @binding(2) var<storage, read> coarse: array<f32>;
@group(0) @binding(3) var<storage, read> fine: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let pair = (wid.y * groups.x + wid.x) * 256u + lid;
    let pairs = p.d / 2u;
    if pair >= p.m * p.h * pairs {
        return;
    }
    let row = pair / pairs;
    let i = pair % pairs;
    let token = row / p.h;
    let position = min(pos[token], p.c * p.f - 1u);
    let hi = (position / p.f) * p.d + i;
    let lo = (position % p.f) * p.d + i;
    let cosine = coarse[hi] * fine[lo] - coarse[hi + pairs] * fine[lo + pairs];
    let sine = p.sign * (coarse[hi + pairs] * fine[lo] + coarse[hi] * fine[lo + pairs]);
    let a = row * p.d + i;
    let b = a + pairs;
    y[a] = x[a] * cosine - x[b] * sine;
    y[b] = x[b] * cosine + x[a] * sine;
}
