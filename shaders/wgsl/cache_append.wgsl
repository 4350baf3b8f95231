// cache[pos[i]] = x[i] for the rows of x[m,c] and cache[t,c]; positions past the end
// are ignored. HALF: the cache is f16, two in a word and rows padded to words, and
// values are rounded to nearest, ties to even. One invocation a word of the cache.

struct Params {
    m: u32,
    c: u32,
    t: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read> pos: array<u32>;
@group(0) @binding(2) var<storage, read_write> cache: array<u32>;

// The bits of an f32 to those of the nearest f16. Written out because WGSL leaves
// the rounding of pack2x16float open.
fn half_bits(v: u32) -> u32 {
    let sign = (v >> 16u) & 0x8000u;
    let a = v & 0x7fffffffu;
    if a > 0x7f800000u {
        return sign | 0x7e00u | ((a >> 13u) & 0x3ffu);
    }
    // From 65520 on the nearest is infinity.
    if a >= 0x477ff000u {
        return sign | 0x7c00u;
    }
    if a < 0x38800000u {
        // Below 2^-14: a multiple of 2^-24. At most 2^-25 rounds to zero.
        if a <= 0x33000000u {
            return sign;
        }
        let shift = 126u - (a >> 23u);
        let mantissa = (a & 0x7fffffu) | 0x800000u;
        let odd = (mantissa >> shift) & 1u;
        return sign | ((mantissa + (1u << (shift - 1u)) - 1u + odd) >> shift);
    }
    let odd = (a >> 13u) & 1u;
    return sign | ((a - 0x38000000u + 0xfffu + odd) >> 13u);
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let index = (wid.y * groups.x + wid.x) * 256u + lid;
//!if HALF
    let words = (p.c + 1u) / 2u;
//!else
    let words = p.c;
//!endif
    if index >= p.m * words {
        return;
    }
    let row = index / words;
    let word = index % words;
    let at = pos[row];
    if at >= p.t {
        return;
    }
//!if HALF
    let first = row * p.c + 2u * word;
    var bits = half_bits(x[first]);
    if 2u * word + 1u < p.c {
        bits |= half_bits(x[first + 1u]) << 16u;
    }
    cache[at * words + word] = bits;
//!else
    cache[at * words + word] = x[index];
//!endif
}
