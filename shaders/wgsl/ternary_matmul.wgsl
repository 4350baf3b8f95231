// y[m, n0 + j] = f32(sum_k t_jk * x_ik) * (xs_i * ws[scale]): t from w[n,k] in two bits
// (t + 1, 16 in a word, lowest bits first, padding 1) or with T1 in 1.6 (20 in a word), x[m,k]
// int8 in rows padded with zeros to 16 bytes, y in rows of l.
//
// A workgroup makes a tile of 64 rows and 64 columns of y, a thread 4 x 4 of them, 16
// apart. Steps of four words of codes along k: codes are unpacked to signed bytes in workgroup
// memory once and meet 64 rows of x in integer dot products.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    l: u32,
    n0: u32,
    scales: u32,
    scale: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<u32>;
@group(0) @binding(1) var<storage, read> ws: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<u32>;
@group(0) @binding(3) var<storage, read> xs: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

const TILE: u32 = 64u;
// Words of four bytes of a step, each with one word a row; the odd stride spreads the banks.
const STRIDE: u32 = 65u;
//!if T1
const EACH: u32 = 5u; // in a word of codes
const DEPTH: u32 = 20u;
// 20 codes of 1 in 1.6 bits.
const PADDING: u32 = 0x80808080u;
//!else
const EACH: u32 = 4u;
const DEPTH: u32 = 16u;
const PADDING: u32 = 0x55555555u;
//!endif

var<workgroup> x_tile: array<u32, DEPTH * STRIDE>;
var<workgroup> w_tile: array<u32, DEPTH * STRIDE>;

// Subtracts 1 in each byte; the top bits keep borrows from crossing.
fn centred(codes: u32) -> u32 {
    return ((codes | 0x80808080u) - 0x01010101u) ^ 0x80808080u;
}

// The signed bytes -1..1 of a word of codes.
//!if T1
fn spread(word: u32) -> array<u32, EACH> {
    var bytes: array<u32, EACH>;
    // A byte is its digits in fixed point: times 3, a digit moves above it. Bytes in lanes of 16 bits.
    var even = word & 0x00ff00ffu;
    var odd = (word >> 8u) & 0x00ff00ffu;
    for (var s = 0u; s < EACH; s++) {
        even *= 3u;
        odd *= 3u;
        bytes[s] = centred(((even >> 8u) & 0x00ff00ffu) | (odd & 0xff00ff00u));
        even &= 0x00ff00ffu;
        odd &= 0x00ff00ffu;
    }
    return bytes;
}
//!else
fn spread(word: u32) -> array<u32, EACH> {
    var bytes: array<u32, EACH>;
    for (var s = 0u; s < EACH; s++) {
        let byte = (word >> (8u * s)) & 0xffu;
        let nibbles = (byte | (byte << 12u)) & 0x000f000fu;
        bytes[s] = centred((nibbles | (nibbles << 6u)) & 0x03030303u);
    }
    return bytes;
}
//!endif

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let group = wid.y * groups.x + wid.x;
    let across = (p.n + TILE - 1u) / TILE;
    if group >= across * ((p.m + TILE - 1u) / TILE) {
        return;
    }
    let i0 = group / across * TILE;
    let j0 = group % across * TILE;
    let words = (p.k + 4u * EACH - 1u) / (4u * EACH);
    let x_words = 4u * ((p.k + 15u) / 16u);
    // Thread's place when it loads: a row of the tile and one of four words of codes.
    let row = lid / 4u;
    let part = lid % 4u;
    // Thread's place when it computes.
    let ti = lid / 16u;
    let tj = lid % 16u;

    var acc: array<vec4<i32>, 4>;
    for (var first = 0u; first < words; first += 4u) {
        let at = first + part;
        var codes = PADDING;
        if at < words && j0 + row < p.n {
            codes = w[(j0 + row) * words + at];
        }
        var bytes: array<u32, EACH>;
        if i0 + row < p.m {
            for (var c = 0u; c < EACH; c++) {
                let word = EACH * at + c;
                bytes[c] = select(0u, x[(i0 + row) * x_words + min(word, x_words - 1u)], word < x_words);
            }
        }
        let spreaded = spread(codes);
        workgroupBarrier();
        for (var c = 0u; c < EACH; c++) {
            let place = (EACH * part + c) * STRIDE + row;
            w_tile[place] = spreaded[c];
            x_tile[place] = bytes[c];
        }
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d++) {
            let wp = d * STRIDE + tj;
            let wv = vec4<u32>(w_tile[wp], w_tile[wp + 16u], w_tile[wp + 32u], w_tile[wp + 48u]);
            for (var a = 0u; a < 4u; a++) {
                let xv = x_tile[d * STRIDE + ti + 16u * a];
                acc[a] += vec4<i32>(dot4I8Packed(xv, wv.x), dot4I8Packed(xv, wv.y),
                    dot4I8Packed(xv, wv.z), dot4I8Packed(xv, wv.w));
            }
        }
    }
    for (var a = 0u; a < 4u; a++) {
        let i = i0 + ti + 16u * a;
        if i < p.m {
            let scale = xs[i] * ws[p.scale];
            for (var b = 0u; b < 4u; b++) {
                let j = j0 + tj + 16u * b;
                if j < p.n {
                    y[i * p.l + p.n0 + j] = f32(acc[a][b]) * scale;
                }
            }
        }
    }
}
