// Attention of a few query rows over a paged cache of codes, keys split into parts: q[m,h,d], qs[m,h,d] (for sinks),
// codes[p*g, words], ring[s*ring, 2*g*d], rows[m,4] = (row of the table, first key, last key, boundary), table[s,e]
// -> o[parts,m,h,d], lse[parts,m,h]. Keys below the boundary are codes in a page of the pool (lib/codes.wgsl), others
// rows of the sequence's ring. See lib/decode_tile.wgsl.
//
// A tile lies in one page. Codes become floats by standing in the upper bits of a mantissa: 1 + code / 2^BITS, which
// takes no conversion. With code * scale + zero = that * step + base, steps of the keys go into the queries once a tile,
// which leaves one product a code, and bases add the same to all scores of the tile. VEC: keys in loads of 16 bytes
// (row_words() is a multiple of 4).

struct Params {
    m: u32,
    h: u32,
    d: u32,
    g: u32,
    scale: f32,
    window: u32,
    sinks: u32,
    page: u32,
    ring: u32,
    p: u32,
    s: u32,
    e: u32,
    bits: u32,
    exact: u32,
    parts: u32,
    prompt: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> qs: array<f32>;
//!if VEC
@group(0) @binding(2) var<storage, read> codes: array<vec4<u32>>;
//!else
@group(0) @binding(2) var<storage, read> codes: array<u32>;
//!endif
@group(0) @binding(3) var<storage, read> ring: array<f32>;
@group(0) @binding(4) var<storage, read> rows: array<u32>;
@group(0) @binding(5) var<storage, read> table: array<u32>;
@group(0) @binding(6) var<storage, read_write> o: array<f32>;
@group(0) @binding(7) var<storage, read_write> lse: array<f32>;

//!include "decode_tile"
//!include "codes_read"

// Words of a load of keys.
//!if VEC
const UNIT = 4u;
//!else
const UNIT = 1u;
//!endif

// Step and base of scale and zero.
fn lifted_parameters(by: vec2<f32>) -> vec2<f32> {
    let step = by.x * f32(1u << BITS);
    return vec2(step, by.y - step);
}

// 1 + code / 2^BITS for the codes from bit `at` on.
fn lifted(bits: vec4<u32>, at: u32) -> vec4<f32> {
    let top = 23u - BITS;
    var moved = bits << vec4((top - at) % 32u);
    if at > top {
        moved = bits >> vec4((at - top) % 32u);
    }
    let mask = ((1u << BITS) - 1u) << top;
    return bitcast<vec4<f32>>((moved & vec4(mask)) | vec4(0x3f800000u));
}

// The queries of a tile in the block that begins at a word: times the steps of the keys, and in `partial` times their
// bases. Others see them after a barrier.
fn fold(lid: u32, block: u32, sink: bool) {
    let padded = row_words() * (32u / BITS);
    for (var i = lid; i < padded * QUADS; i += WORKERS) {
        let c = i / QUADS;
        var scaled = vec4(0.0);
        var bases = vec4(0.0);
        // What pads the last word counts nothing.
        if c < p.d {
            let query = query_of(i % QUADS, c, sink);
            let key = lifted_parameters(parameters(block + key_parameters(), c));
            scaled = query * key.x;
            bases = query * key.y;
        }
        queries[query_at(c) + i % QUADS] = scaled;
        if c < p.d {
            partial[i] = bases;
        }
    }
}

// Sums of an eighth of the bases.
fn add_shifts(lid: u32) {
    if lid < 8u * QUADS {
        var sum = vec4(0.0);
        for (var c = lid / QUADS; c < p.d; c += 8u) {
            sum += partial[c * QUADS + lid % QUADS];
        }
        shifts[lid] = sum;
    }
}

// Adds a word of codes of each of the team's keys; queries from `at` on.
fn add_codes(words: vec4<u32>, at: u32) {
    for (var i = 0u; i < 32u / BITS; i++) {
        add_score(at + i * QUADS, lifted(words, i * BITS));
    }
}

// Scores of the team's keys, whose codes begin at these words.
fn score_codes(lid: u32, at: vec4<u32>) {
    for (var unit = lid % LANES; unit < row_words() / UNIT; unit += LANES) {
        let first = query_at(unit * UNIT * (32u / BITS));
//!if VEC
        var four: array<vec4<u32>, 4>;
        for (var j = 0u; j < EACH; j++) {
            four[j] = codes[at[j] / 4u + unit];
        }
        for (var i = 0u; i < 4u; i++) {
            add_codes(vec4(four[0][i], four[1][i], four[2][i], four[3][i]), first + i * (32u / BITS) * QUADS);
        }
//!else
        var one = vec4(0u);
        for (var j = 0u; j < EACH; j++) {
            one[j] = codes[at[j] + unit];
        }
        add_codes(one, first);
//!endif
    }
}

// Scores of the team's keys, which begin at these elements of the ring.
fn score_ring(lid: u32, at: vec4<u32>) {
    for (var c = lid % LANES; c < p.d; c += LANES) {
        var x = vec4(0.0);
        for (var j = 0u; j < EACH; j++) {
            x[j] = ring[at[j] + c];
        }
        add_score(query_at(c), x);
    }
}

// Element of a key of the ring; its value lies g * d further on.
fn ring_place(sequence: u32, key: u32) -> u32 {
    return ((sequence * p.ring + key % p.ring) * 2u * p.g + work.kv) * p.d;
}

// As lifted, for the four lowest codes of a word.
fn four_codes(bits: u32) -> vec4<f32> {
    let all = vec4(bits);
    return vec4(lifted(all, 0u).x, lifted(all, BITS).x, lifted(all, 2u * BITS).x, lifted(all, 3u * BITS).x);
}

fn add_values(lid: u32, begin_key: u32, count: u32, block: u32) {
    let c = 8u * (lid % columns());
    if lid >= keys_apart() * columns() {
        return;
    }
    for (var key = lid / columns(); key < count; key += keys_apart()) {
        let t = begin_key % p.page + key;
        let entry = parameters(block + value_parameters(), t * value_groups() + c / p.page);
        let value = lifted_parameters(entry);
        // Eight channels are half a word, a word or two.
        let at = block + value_codes() + t * row_words() + c * BITS / 32u;
        let low = word(at) >> (c * BITS % 32u);
        var high = low >> (4u * BITS % 32u);
        if BITS == 8u {
            high = 0u;
            if c + 4u < p.d {
                high = word(at + 1u);
            }
        }
        add_value(key, four_codes(low) * value.x + value.y, four_codes(high) * value.x + value.y);
    }
}

fn add_ring_values(lid: u32, sequence: u32, begin_key: u32, count: u32) {
    let c = 8u * (lid % columns());
    if lid >= keys_apart() * columns() {
        return;
    }
    for (var key = lid / columns(); key < count; key += keys_apart()) {
        let at = ring_place(sequence, begin_key + key) + p.g * p.d + c;
        var a = vec4(0.0);
        var b = vec4(0.0);
        for (var i = 0u; i < 4u; i++) {
            if c + i < p.d {
                a[i] = ring[at + i];
            }
            if c + 4u + i < p.d {
                b[i] = ring[at + 4u + i];
            }
        }
        add_value(key, a, b);
    }
}

@compute @workgroup_size(128)
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
//!endif
    if !begin(wid.y * groups.x + wid.x) {
        return;
    }
    let sequence = min(rows[4u * work.row], p.s - 1u);
    let boundary = rows[4u * work.row + 3u];
    let keys = part_of(visible_keys(rows[4u * work.row + 1u], rows[4u * work.row + 2u], p.e * p.page));
    for (var run = 0u; run < 3u; run++) {
        let range = run_of(keys, run);
        var next = 0u;
        for (var tile = range.x; tile < range.y; tile = next) {
            next = min((tile / p.page + 1u) * p.page, range.y);
            let count = next - tile;
            let coded = tile < boundary;
            var block = 0u;
            if coded {
                let page = min(table[sequence * p.e + tile / p.page], p.p - 1u);
                block = (page * p.g + work.kv) * block_words();
                fold(lid, block, run < 2u);
            } else if tile == range.x || tile == boundary {
                for (var i = lid; i < p.d * QUADS; i += WORKERS) {
                    queries[query_at(i / QUADS) + i % QUADS] = query_of(i % QUADS, i / QUADS, run < 2u);
                }
            }
            workgroupBarrier();
            clear_scores();
            if coded {
                add_shifts(lid);
            }
            if lid / LANES < count {
                var at = vec4(0u);
                for (var j = 0u; j < EACH; j++) {
                    let key = tile + key_of(lid, j, count);
                    at[j] = select(ring_place(sequence, key), block + key % p.page * row_words(), coded);
                }
                if coded {
                    score_codes(lid, at);
                } else {
                    score_ring(lid, at);
                }
            }
//!if SUBGROUPS
            weigh(lid, size, subgroup, count, coded);
//!else
            weigh(lid, count, coded);
//!endif
            if coded {
                add_values(lid, tile, count, block);
            } else {
                add_ring_values(lid, sequence, tile, count);
            }
        }
    }
    finish(lid);
}
