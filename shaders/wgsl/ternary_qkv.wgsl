// Queries, keys and values of rms_norm(x[m,k]) in int8 with ternary w[n,k]: `heads` query heads, `groups` key
// heads and `groups` value heads of d rows each. Queries and keys turn as in rope; keys, then values, go to
// row slot[i] of cache[t, 2 * groups * d], f32 or f16 (HALF is 1), unless it is past the end.
//
// A team of LANES invocations takes four rows of w and ROWS rows of x: elements a and a + 1 of a head
// and what they turn with, a + d/2 and a + 1 + d/2. Where d/2 is odd, these would be halves of words of a
// cache in f16 whose others belong to other teams; then a team makes a and a + 1 (a even) alone.
//!include "ternary_fused"
//!include "half"

struct Params {
    m: u32,
    k: u32,
    p: u32,
    heads: u32,
    groups: u32,
    d: u32,
    t: u32,
    c: u32,
    f: u32,
    eps: f32,
}

override HALF: u32 = 0u;

var<immediate> p: Params;
@group(0) @binding(4) var<storage, read> pos: array<u32>;
@group(0) @binding(5) var<storage, read> slot: array<u32>;
@group(0) @binding(6) var<storage, read> coarse: array<f32>;
@group(0) @binding(7) var<storage, read> fine: array<f32>;
@group(0) @binding(8) var<storage, read_write> q: array<f32>;
@group(0) @binding(9) var<storage, read_write> cache: array<u32>;

// Element e of a head with value v, and partner the element it turns with.
fn turned(token: u32, e: u32, v: f32, partner: f32) -> f32 {
    let pairs = p.d / 2u;
    let i = e % pairs;
    let position = min(pos[token], p.c * p.f - 1u);
    let hi = (position / p.f) * p.d + i;
    let lo = (position % p.f) * p.d + i;
    let cosine = coarse[hi] * fine[lo] - coarse[hi + pairs] * fine[lo + pairs];
    let sine = coarse[hi + pairs] * fine[lo] + coarse[hi] * fine[lo + pairs];
    return v * cosine + select(-partner, partner, e >= pairs) * sine;
}

// Elements e and e + 1 of a head, e even where HALF (or they would not share a word).
fn store(token: u32, head: u32, e: u32, v: vec2<f32>, partner: vec2<f32>) {
    var made = v;
    if head < p.heads + p.groups {
        made.x = turned(token, e, v.x, partner.x);
        made.y = turned(token, e + 1u, v.y, partner.y);
    }
    if head < p.heads {
        let at = (token * p.heads + head) * p.d + e;
        q[at] = made.x;
        q[at + 1u] = made.y;
        return;
    }
    let row = slot[token];
    if row >= p.t {
        return;
    }
    // Value heads follow key heads, in the cache as in w.
    let at = (row * 2u * p.groups + head - p.heads) * p.d + e;
    if HALF == 1u {
        cache[at / 2u] = half_bits(bitcast<u32>(made.x)) | (half_bits(bitcast<u32>(made.y)) << 16u);
    } else {
        cache[at] = bitcast<u32>(made.x);
        cache[at + 1u] = bitcast<u32>(made.y);
    }
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
//!if SUBGROUPS
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) invocation: u32,
    @builtin(subgroup_size) size: u32,
//!else
    @builtin(local_invocation_index) lid: u32,
//!endif
) {
//!if SUBGROUPS
    let lid = subgroup * size + invocation;
//!else
    let size = 1u;
//!endif
    let pairs = p.d / 2u;
    let odd = pairs % 2u == 1u;
    // Teams that a head takes.
    let quads = select(pairs / 2u, pairs, odd);
    let all = quads * (p.heads + 2u * p.groups);
    let teams = 256u / LANES;
    let group = wid.y * groups.x + wid.x;
    let across = (all + teams - 1u) / teams;
    if group >= across * ((p.m + ROWS - 1u) / ROWS) {
        return;
    }
    let i0 = group / across * ROWS;
    let own = group % across * teams + lid / LANES;
    let quad = min(own, all - 1u);
    let head = quad / quads;
    let e = 2u * (quad % quads);
    let partner_a = select(e + pairs, e - pairs, e >= pairs);
    let partner_b = select(e + 1u + pairs, e + 1u - pairs, e + 1u >= pairs);
    let words = (p.k + CODES - 1u) / CODES;
    let elements = vec4<u32>(e, e + 1u, partner_a, partner_b);
    fused_product(lid, i0, (head * p.d + elements) * words);
    // The scale of the matrix of queries, of keys, of values.
    let matrix = select(0u, 1u, head >= p.heads) + select(0u, 1u, head >= p.heads + p.groups);
    for (var i = 0u; i < ROWS; i++) {
        let sum = team_sum(lid, size, acc[i]);
        if lid % LANES == 0u && i0 + i < p.m && own < all {
            let v = vec4<f32>(sum) * (scales[i] * ws[matrix]);
            store(i0 + i, head, e, v.xy, v.zw);
            if !odd {
                store(i0 + i, head, e + pairs, v.zw, v.xy);
            }
        }
    }
}
