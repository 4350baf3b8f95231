// y[m, n0 + j] = f32(sum_k t_jk * x_ik) * (xs_i * ws) for few rows of x: t from w[n,k]
// in two bits (t + 1, 16 in a word, lowest bits first), x[m,k] int8 in rows padded
// with zeros to 16 bytes, y in rows of l.
//
// A workgroup takes 8 rows of w and ROWS rows of x. 32 threads share a row of w, each
// takes every 32nd word of it with the four words of x that it meets. Codes 0..2 go
// into integer dot products as they are: sum t x = sum (t + 1) x - sum x. All sums are
// integers, so their order does not matter.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    l: u32,
    n0: u32,
    scales: u32,
    scale: u32,
}

//!if ROWS == 1
const ROWS: u32 = 1u;
//!else
const ROWS: u32 = 4u;
//!endif
const LANES: u32 = 32u;
const OUTPUTS: u32 = 8u;

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<u32>;
@group(0) @binding(1) var<storage, read> ws: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> xs: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

var<workgroup> partial: array<i32, 256u * ROWS>;

// The four codes of a byte, one in each byte.
fn spread(byte: u32) -> u32 {
    let nibbles = (byte | (byte << 12u)) & 0x000f000fu;
    return (nibbles | (nibbles << 6u)) & 0x03030303u;
}

fn dot(codes: vec4<u32>, x: vec4<u32>) -> i32 {
    let sum = dot4I8Packed(x.x, 0x01010101u) + dot4I8Packed(x.y, 0x01010101u)
        + dot4I8Packed(x.z, 0x01010101u) + dot4I8Packed(x.w, 0x01010101u);
    return dot4I8Packed(codes.x, x.x) + dot4I8Packed(codes.y, x.y)
        + dot4I8Packed(codes.z, x.z) + dot4I8Packed(codes.w, x.w) - sum;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let group = wid.y * groups.x + wid.x;
    let across = (p.n + OUTPUTS - 1u) / OUTPUTS;
    if group >= across * ((p.m + ROWS - 1u) / ROWS) {
        return;
    }
    let i0 = group / across * ROWS;
    let j = group % across * OUTPUTS + lid / LANES;
    let lane = lid % LANES;
    let words = (p.k + 15u) / 16u;

    var sums: array<i32, ROWS>;
    if j < p.n {
        for (var at = lane; at < words; at += LANES) {
            let word = w[j * words + at];
            let codes = vec4<u32>(spread(word & 0xffu), spread((word >> 8u) & 0xffu),
                spread((word >> 16u) & 0xffu), spread(word >> 24u));
            for (var i = 0u; i < ROWS; i++) {
                // Past the last row the last one again; its sums are not written.
                let row = min(i0 + i, p.m - 1u);
                sums[i] += dot(codes, x[row * words + at]);
            }
        }
    }
    for (var i = 0u; i < ROWS; i++) {
        partial[i * 256u + lid] = sums[i];
    }
    for (var stride = LANES / 2u; stride > 0u; stride >>= 1u) {
        workgroupBarrier();
        if lane < stride {
            for (var i = 0u; i < ROWS; i++) {
                partial[i * 256u + lid] += partial[i * 256u + lid + stride];
            }
        }
    }
    if lane == 0u && j < p.n {
        for (var i = 0u; i < min(ROWS, p.m - i0); i++) {
            let scale = xs[i0 + i] * ws[p.scale];
            y[(i0 + i) * p.l + p.n0 + j] = f32(partial[i * 256u + lid]) * scale;
        }
    }
}
