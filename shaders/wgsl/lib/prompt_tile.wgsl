// Attention of the tokens of a prompt over caches; see attention.wgsl. A workgroup takes 16 rows of queries (tokens,
// and the heads that share a key-value head) and goes over the tiles of 32 keys that any of them sees. Pages are
// multiples of 32 keys, so a tile lies in one. Sinks are scored with another query, and a cache may hold a key in two
// forms; each combination is a pass over the tile, most of which are empty.
//
// SIDE: 0, or the side of the cooperative matrices on which the first form is multiplied (prompt_matrix.wgsl). All
// else is multiplied in f32 (prompt_plain.wgsl).
//
// The file that includes this declares p (m, h, d, g, scale, window, sinks, page, p, s, e), q, qs, rows, table, o,
// lse, FORMS = 1 or 2, Place, what the two files above want, and
// - forms(tile, first, last): whether the tile is needed in the first and in the second form by rows between these
//   boundaries;
// - form_of(key, boundary): the form in which a row reads a key;
// - place_of(form, sequence, kv, tile): where the tile lies.
//!include "visible_keys"

// Elements of a head that are staged at a time, and how often that is.
const DEPTH = 32u;
override DEPTHS: u32 = 8u;

const NOTHING = -1e30;

// The first form that is multiplied in f32.
//!if SIDE
const PLAIN_FORM = 1u;
//!else
const PLAIN_FORM = 0u;
//!endif

// Elements of a row of scores: an odd number spreads the banks, matrices want multiples of 16 bytes.
//!if SIDE
const SCORES = 36u;
//!else
const SCORES = 33u;
//!endif

var<workgroup> scores: array<f32, 16u * SCORES>;
var<workgroup> highest: array<f32, 16>;
var<workgroup> total: array<f32, 16>;
var<workgroup> shrink: array<f32, 16>;
// Keys of the tile that count for any row.
var<workgroup> wanted: array<u32, 32>;
// This invocation's elements of its row, a column of 16 apart.
var<private> sums: array<f32, 16>;

// What an invocation is to do.
struct Work {
    lid: u32,
    kv: u32,
    first_row: u32,
    // Rows of all.
    count: u32,
    // Of the workgroup, with SIDE.
    subgroup: u32,
    subgroups: u32,
}

fn shared_heads() -> u32 {
    return p.h / p.g;
}

// Index of a row in [m,h].
fn row_index(row: u32, kv: u32) -> u32 {
    return (row / shared_heads()) * p.h + kv * shared_heads() + row % shared_heads();
}

fn keys_of(token: u32) -> Keys {
    return visible_keys(rows[4u * token + 1u], rows[4u * token + 2u], p.e * p.page);
}

// Element c of the query of a row of the tile; a row past the end is the last one again.
fn query_at(work: Work, sink: bool, r: u32, c: u32) -> f32 {
    let at = row_index(min(work.first_row + r, work.count - 1u), work.kv) * p.d + c;
    if sink {
        return qs[at];
    }
    return q[at];
}

//!if SIDE
//!include "prompt_matrix"
//!endif
//!if PLAIN
//!include "prompt_plain"
//!endif

// Tiles of 16 rows, each with one key-value head.
fn row_tiles() -> u32 {
    return (p.m * shared_heads() + 15u) / 16u;
}

// group is below p.g * row_tiles().
fn attend(group: u32, lid: u32, subgroup: u32, subgroups: u32) {
    let count = p.m * shared_heads();
    let kv = group / row_tiles();
    let first_row = (group % row_tiles()) * 16u;
    let work = Work(lid, kv, first_row, count, subgroup, subgroups);
    let first_token = first_row / shared_heads();
    let last_token = (min(first_row + 16u, count) - 1u) / shared_heads();
    let sequence = min(rows[4u * first_token], p.s - 1u);
    let boundaries = vec2(rows[4u * first_token + 3u], rows[4u * last_token + 3u]);
    var all = no_keys(p.e * p.page);
    for (var token = first_token; token <= last_token; token++) {
        all = both_keys(all, keys_of(token));
    }

    let r = lid / 16u;
    let lane = lid % 16u;
    // A row past the end writes nothing.
    let row = min(first_row + r, count - 1u);
    let mine = keys_of(row / shared_heads());
    let boundary = rows[4u * (row / shared_heads()) + 3u];
    if lid < 16u {
        highest[lid] = NOTHING;
        total[lid] = 0.0;
    }
    for (var i = 0u; i < 16u; i++) {
        sums[i] = 0.0;
    }
//!if SIDE
    clear_zeros(lid, 256u);
//!endif

    for (var tile = first_tile(all); tile < all.window.y; tile = next_tile(all, tile)) {
        let needed = forms(tile, boundaries.x, boundaries.y);
        for (var pass_index = 0u; pass_index < 2u * FORMS; pass_index++) {
            let form = pass_index / 2u;
            let sink = pass_index % 2u == 1u;
            if !needed[form] || (sink && (p.sinks == 0u || tile >= all.sink_end)) {
                continue;
            }
            let place = place_of(form, sequence, kv, tile);
            var s = vec2(0.0);
//!if SIDE
            for (var coded = form; coded < 1u; coded++) {
                s = matrix_scores(work, place, sink);
            }
//!endif
//!if PLAIN
            if form >= PLAIN_FORM {
                s = scores_of(work, form, place, sink);
            }
//!endif
            var counts = vec2(false);
            for (var i = 0u; i < 2u; i++) {
                let key = tile + lane + 16u * i;
                counts[i] = sees(mine, key) && (key < mine.sink_end) == sink && form_of(key, boundary) == form;
                scores[r * SCORES + lane + 16u * i] = select(NOTHING, s[i] * p.scale, counts[i]);
            }
            workgroupBarrier();
            if lid < 16u {
                let old = highest[lid];
                var fresh = old;
                for (var i = 0u; i < 32u; i++) {
                    fresh = max(fresh, scores[lid * SCORES + i]);
                }
                highest[lid] = fresh;
                shrink[lid] = exp(old - fresh);
            }
            workgroupBarrier();
            for (var i = 0u; i < 2u; i++) {
                let at = r * SCORES + lane + 16u * i;
                scores[at] = select(0.0, exp(scores[at] - highest[r]), counts[i]);
            }
            workgroupBarrier();
            if lid < 16u {
                var sum = total[lid] * shrink[lid];
                for (var i = 0u; i < 32u; i++) {
                    sum += scores[lid * SCORES + i];
                }
                total[lid] = sum;
            } else if lid >= 32u && lid < 64u {
                // What no row gives a weight is not read: a cache may hold NaN there.
                var most = 0.0;
                for (var i = 0u; i < 16u; i++) {
                    most = max(most, scores[i * SCORES + lid - 32u]);
                }
                wanted[lid - 32u] = select(0u, 1u, most > 0.0);
            }
            for (var i = 0u; i < 16u; i++) {
                sums[i] *= shrink[r];
            }
//!if SIDE
            for (var coded = form; coded < 1u; coded++) {
                matrix_values(work, place);
            }
//!endif
//!if PLAIN
            if form >= PLAIN_FORM {
                add_values(work, form, place);
            }
//!endif
        }
    }
    workgroupBarrier();
    if first_row + r >= count {
        return;
    }
    let index = row_index(row, kv);
    let sum = total[r];
    for (var i = 0u; i < 16u; i++) {
        let element = lane + 16u * i;
        if element < p.d {
            o[index * p.d + element] = select(0.0, sums[i] / max(sum, 1e-30), sum > 0.0);
        }
    }
    if lane == 0u {
        lse[index] = select(NOTHING, highest[r] + log(max(sum, 1e-30)), sum > 0.0);
    }
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
//!if SIDE
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
//!endif
) {
    let group = wid.y * groups.x + wid.x;
    if group >= p.g * row_tiles() {
        return;
    }
//!if SIDE
    attend(group, lid, subgroup, subgroups);
//!else
    attend(group, lid, 0u, 1u);
//!endif
}
