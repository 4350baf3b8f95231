// Ternary codes t[n,k] = clamp(round(w[n,k] * (1 / s)), -1, 1), halves to even, stored
// as t + 1 in two bits, 16 in a word, lowest bits first; padding codes are 1 (zero).
// A thread makes one word.

struct Params {
    n: u32,
    k: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<f32>;
@group(0) @binding(1) var<storage, read> s: array<f32>;
@group(0) @binding(2) var<storage, read_write> t: array<u32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let words = (p.k + 15u) / 16u;
    let at = (wid.y * groups.x + wid.x) * 256u + lid;
    if at >= p.n * words {
        return;
    }
    let row = at / words;
    let first = 16u * (at - row * words);
    let scale = 1.0 / s[0];
    var packed = 0x55555555u;
    for (var i = 0u; i < min(16u, p.k - first); i++) {
        // Clamping first is the same and keeps the value within i32.
        let code = i32(round(clamp(w[row * p.k + first + i] * scale, -1.0, 1.0)));
        // The code's bits hold 1 already: 1 ^ (t + 1) flips what differs.
        packed ^= (bitcast<u32>(code + 1) ^ 1u) << (2u * i);
    }
    t[at] = packed;
}
