// Int8 codes and scales of x[m,k], one scale a row: a = max(max_j |x_ij|, 1e-5),
// q[m,k] = clamp(round(x * (127 / a)), -128, 127), halves to even, s[m] = a / 127.
// Rows of q are padded with zeros to 16 bytes. A workgroup takes a row: a maximum
// over it in a tree, then a thread packs four codes at a time.
//!include "reduce"

struct Params {
    m: u32,
    k: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> q: array<u32>;
@group(0) @binding(2) var<storage, read_write> s: array<f32>;

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
    let first = row * p.k;
    var most = 1e-5;
    for (var j = lid; j < p.k; j += WORKGROUP) {
        most = max(most, abs(x[first + j]));
    }
    let a = workgroup_max(lid, most);
    if lid == 0u {
        s[row] = a / 127.0;
    }
    let scale = 127.0 / a;
    let words = 4u * ((p.k + 15u) / 16u);
    for (var word = lid; word < words; word += WORKGROUP) {
        var packed = 0u;
        for (var i = 0u; i < 4u; i++) {
            let j = 4u * word + i;
            if j < p.k {
                // Clamping first is the same and keeps the value within i32.
                let code = i32(round(clamp(x[first + j] * scale, -128.0, 127.0)));
                packed |= (bitcast<u32>(code) & 0xffu) << (8u * i);
            }
        }
        q[row * words + word] = packed;
    }
}
