// Turns pages of tokens of a ring into codes (lib/codes.wgsl): ring[t, 2*g*d], groups[n,2] = (ring row of the first
// token, page of the pool) -> codes[p*g, words]. A page past the pool is none. A workgroup takes the keys or the
// values of one head of a page; parameters first, then codes by what was stored.

struct Params {
    n: u32,
    g: u32,
    d: u32,
    page: u32,
    t: u32,
    p: u32,
    bits: u32,
    exact: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> ring: array<f32>;
@group(0) @binding(1) var<storage, read> groups: array<u32>;
@group(0) @binding(2) var<storage, read_write> codes: array<u32>;

//!include "codes_read"
//!include "half"

// Scale and zero of elements between these.
fn store_parameters(section: u32, i: u32, low: f32, high: f32) {
    let most = f32((1u << BITS) - 1u);
    let range = high - low;
    // Division may be off by some units. `most` has at most 8 bits, so what the quotient misses is exact if it is
    // multiplied in halves, and a second term corrects it.
    var scale = range / most;
    let upper = bitcast<f32>(bitcast<u32>(scale) & 0xfffff000u);
    scale += ((range - upper * most) - (scale - upper) * most) / most;
    if PRECISE == 1u {
        codes[section + 2u * i] = bitcast<u32>(scale);
        codes[section + 2u * i + 1u] = bitcast<u32>(low);
    } else {
        let stored = clamp(vec2(scale, low), vec2(-65504.0), vec2(65504.0));
        codes[section + i] = half_bits(bitcast<u32>(stored.x)) | (half_bits(bitcast<u32>(stored.y)) << 16u);
    }
}

fn quantised(x: f32, by: vec2<f32>) -> u32 {
    if by.x == 0.0 {
        return 0u;
    }
    return u32(clamp(round((x - by.y) / by.x), 0.0, f32((1u << BITS) - 1u)));
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let job = wid.y * counts.x + wid.x;
    let head = job / 2u % p.g;
    let i = job / 2u / p.g;
    if i >= p.n {
        return;
    }
    let row = groups[2u * i];
    let page = groups[2u * i + 1u];
    if page >= p.p || p.t < p.page || row > p.t - p.page {
        return;
    }
    let values = job % 2u == 1u;
    let stride = 2u * p.g * p.d;
    // Element 0 of the page's first token.
    let first = row * stride + (head + select(0u, p.g, values)) * p.d;
    let block = (page * p.g + head) * block_words();
    let section = block + select(key_parameters(), value_parameters(), values);
    let entries = select((p.d + 3u) / 4u * 4u, p.page * value_groups(), values);
    for (var entry = lid; entry < entries; entry += 256u) {
        // A channel of all tokens, or a group of channels of one.
        var source = first + entry;
        var count = p.page;
        var apart = stride;
        if values {
            let c = entry % value_groups() * p.page;
            source = first + entry / value_groups() * stride + c;
            count = min(p.page, p.d - c);
            apart = 1u;
        } else if entry >= p.d {
            store_parameters(section, entry, 0.0, 0.0);
            continue;
        }
        var low = ring[source];
        var high = low;
        for (var j = 1u; j < count; j++) {
            let x = ring[source + j * apart];
            low = min(low, x);
            high = max(high, x);
        }
        store_parameters(section, entry, low, high);
    }
    storageBarrier();
    let begin = block + select(0u, value_codes(), values);
    for (var at = lid; at < p.page * row_words(); at += 256u) {
        let t = at / row_words();
        let c = at % row_words() * (32u / BITS);
        var bits = 0u;
        for (var j = 0u; j < 32u / BITS; j++) {
            if c + j < p.d {
                var entry = c + j;
                if values {
                    entry = t * value_groups() + (c + j) / p.page;
                }
                let code = quantised(ring[first + t * stride + c + j], parameters(section, entry));
                bits |= code << (j * BITS);
            }
        }
        codes[begin + at] = bits;
    }
}
