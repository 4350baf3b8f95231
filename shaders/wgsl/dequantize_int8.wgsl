// Values of int8 codes: y[m,k] = q[m,k] * s[m]. Rows of q are padded to 16 bytes. A
// thread makes one value.

struct Params {
    m: u32,
    k: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<u32>;
@group(0) @binding(1) var<storage, read> s: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let at = (wid.y * groups.x + wid.x) * 256u + lid;
    if at >= p.m * p.k {
        return;
    }
    let row = at / p.k;
    let j = at - row * p.k;
    let word = q[row * (4u * ((p.k + 15u) / 16u)) + j / 4u];
    let code = extractBits(bitcast<i32>(word), 8u * (j % 4u), 8u);
    y[at] = f32(code) * s[row];
}
