// Attention of a few query rows over a paged cache, keys split into parts: q[m,h,d], qs[m,h,d] (for sinks),
// cache[t, 2*g*d] (f16 with HALF), rows[m,4] = (row of the table, first key, last key, unread), table[s,e] ->
// o[parts,m,h,d], lse[parts,m,h]. See lib/decode_tile.wgsl. VEC: loads of 16 bytes (d a multiple of 4, or of 8 with
// HALF).

struct Params {
    m: u32,
    h: u32,
    d: u32,
    g: u32,
    scale: f32,
    window: u32,
    sinks: u32,
    page: u32,
    p: u32,
    s: u32,
    e: u32,
    parts: u32,
    prompt: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> qs: array<f32>;
//!if VEC
//!if HALF
@group(0) @binding(2) var<storage, read> cache: array<vec4<u32>>;
//!else
@group(0) @binding(2) var<storage, read> cache: array<vec4<f32>>;
//!endif
//!else
//!if HALF
@group(0) @binding(2) var<storage, read> cache: array<u32>;
//!else
@group(0) @binding(2) var<storage, read> cache: array<f32>;
//!endif
//!endif
@group(0) @binding(3) var<storage, read> rows: array<u32>;
@group(0) @binding(4) var<storage, read> table: array<u32>;
@group(0) @binding(5) var<storage, read_write> o: array<f32>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

//!include "decode_tile"

//!if HALF
alias CacheElement = u32;
//!else
alias CacheElement = f32;
//!endif

// Elements of a load.
//!if VEC
//!if HALF
const UNIT = 8u;
//!else
const UNIT = 4u;
//!endif
//!else
//!if HALF
const UNIT = 2u;
//!else
const UNIT = 1u;
//!endif
//!endif

// Where the keys of this tile and of the one before it lie, in loads.
var<workgroup> places: array<u32, 128>;

fn key_place(sequence: u32, key: u32) -> u32 {
    let page = min(table[sequence * p.e + key / p.page], p.p - 1u);
    return ((page * p.page + key % p.page) * 2u * p.g + work.kv) * p.d / UNIT;
}

// Adds a load of each of the team's keys, which begin at `at`.
fn add_unit(at: vec4<u32>, unit: u32) {
    let first = query_at(unit * UNIT);
//!if VEC
//!if HALF
    var words: array<vec4<u32>, 4>;
    for (var j = 0u; j < EACH; j++) {
        words[j] = cache[at[j] + unit];
    }
    for (var i = 0u; i < 4u; i++) {
        add_pairs(first + 2u * i * QUADS, vec4(words[0][i], words[1][i], words[2][i], words[3][i]));
    }
//!else
    var four: array<vec4<f32>, 4>;
    for (var j = 0u; j < EACH; j++) {
        four[j] = cache[at[j] + unit];
    }
    for (var i = 0u; i < 4u; i++) {
        add_score(first + i * QUADS, vec4(four[0][i], four[1][i], four[2][i], four[3][i]));
    }
//!endif
//!else
    var one = vec4<CacheElement>();
    for (var j = 0u; j < EACH; j++) {
        one[j] = cache[at[j] + unit];
    }
//!if HALF
    add_pairs(first, one);
//!else
    add_score(first, one);
//!endif
//!endif
}

//!if HALF
// Adds two elements of each of the team's keys.
fn add_pairs(at: u32, words: vec4<u32>) {
    let a = unpack2x16float(words.x);
    let b = unpack2x16float(words.y);
    let c = unpack2x16float(words.z);
    let d = unpack2x16float(words.w);
    add_score(at, vec4(a.x, b.x, c.x, d.x));
    add_score(at + QUADS, vec4(a.y, b.y, c.y, d.y));
}
//!endif

// Adds elements of a value from c on, eight or up to the end of the head.
fn add_eight(key: u32, at: u32, c: u32) {
    var a = vec4(0.0);
    var b = vec4(0.0);
//!if VEC
//!if HALF
    let words = cache[at];
    a = vec4(unpack2x16float(words.x), unpack2x16float(words.y));
    b = vec4(unpack2x16float(words.z), unpack2x16float(words.w));
//!else
    a = cache[at];
    if c + 4u < p.d {
        b = cache[at + 1u];
    }
//!endif
//!else
    for (var i = 0u; i < 4u; i++) {
//!if HALF
        if c + 2u * i < p.d {
            let pair = unpack2x16float(cache[at + i]);
            if i < 2u {
                a[2u * i] = pair.x;
                a[2u * i + 1u] = pair.y;
            } else {
                b[2u * i - 4u] = pair.x;
                b[2u * i - 3u] = pair.y;
            }
        }
//!else
        if c + i < p.d {
            a[i] = cache[at + i];
        }
        if c + 4u + i < p.d {
            b[i] = cache[at + 4u + i];
        }
//!endif
    }
//!endif
    add_value(key, a, b);
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
    let keys = part_of(visible_keys(rows[4u * work.row + 1u], rows[4u * work.row + 2u], p.e * p.page));
    let lane = lid % LANES;
    let column = lid % columns();
    var side = 0u;
    for (var run = 0u; run < 3u; run++) {
        let range = run_of(keys, run);
        for (var tile = range.x; tile < range.y; tile += TILE) {
            let count = min(TILE, range.y - tile);
            if tile == range.x {
                for (var i = lid; i < p.d * QUADS; i += WORKERS) {
                    let c = i / QUADS;
                    queries[query_at(c) + i % QUADS] = query_of(i % QUADS, c, run < 2u);
                }
            }
            // Those of the tile before may still be read.
            side = TILE - side;
            if lid < count {
                places[side + lid] = key_place(sequence, tile + lid);
            }
            workgroupBarrier();
            clear_scores();
            if lid / LANES < count {
                var at = vec4(0u);
                for (var j = 0u; j < EACH; j++) {
                    at[j] = places[side + key_of(lid, j, count)];
                }
                for (var unit = lane; unit < p.d / UNIT; unit += LANES) {
                    add_unit(at, unit);
                }
            }
//!if SUBGROUPS
            weigh(lid, size, subgroup, count, false);
//!else
            weigh(lid, count, false);
//!endif
            for (var key = lid / columns(); key < count; key += keys_apart()) {
                // Invocations past the last whole row of columns have none.
                if lid < keys_apart() * columns() {
                    let place = places[side + key] + (p.g * p.d + 8u * column) / UNIT;
                    add_eight(key, place, 8u * column);
                }
            }
        }
    }
    finish(lid);
}
