// Values of ternary codes: y[n,k] = t[n,k] * s, with t + 1 in two bits, 16 in a word,
// rows padded to whole words. A thread makes one value.

struct Params {
    n: u32,
    k: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> t: array<u32>;
@group(0) @binding(1) var<storage, read> s: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let at = (wid.y * groups.x + wid.x) * 256u + lid;
    if at >= p.n * p.k {
        return;
    }
    let row = at / p.k;
    let j = at - row * p.k;
    let word = t[row * ((p.k + 15u) / 16u) + j / 16u];
    let code = i32((word >> (2u * (j % 16u))) & 3u) - 1;
    y[at] = f32(code) * s[0];
}
