// What attention of a prompt over caches shares; see attention.wgsl. A workgroup takes 16 rows of queries (tokens,
// and the heads that share a key-value head) and goes over the tiles of 32 keys that any of them sees. Pages are
// multiples of 32 keys, so a tile lies in one. Sinks are scored with another query, and a cache may hold a key in two
// forms; each combination is a pass over the tile, most of which are empty.
//
// The file that includes this declares p (m, h, d, g, scale, window, sinks, page, p, s, e), q, qs, rows, table, o,
// lse, FORMS = 1 or 2, and
// - forms(tile, first, last): whether the tile is needed in the first and in the second form by rows between these
//   boundaries;
// - form_of(key, boundary): the form in which a row reads a key;
// - place_of(form, sequence, kv, tile): where the tile lies;
// - key_at(form, place, t, c), value_at(form, place, t, c): element c of its t-th token.
//!include "visible_keys"

// Elements of a head that are staged at a time, and how often that is.
const DEPTH = 32u;
override DEPTHS: u32 = 8u;

const NOTHING = -1e30;

// Rows of 33 spread over the banks.
var<workgroup> staged_q: array<f32, 528>;
var<workgroup> staged_k: array<f32, 1056>;
var<workgroup> scores: array<f32, 528>;
var<workgroup> highest: array<f32, 16>;
var<workgroup> total: array<f32, 16>;
var<workgroup> shrink: array<f32, 16>;
// Keys of the tile that count for any row.
var<workgroup> wanted: array<u32, 32>;

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

fn attend(group: u32, lid: u32) {
    let count = p.m * shared_heads();
    let tiles = (count + 15u) / 16u;
    if group >= tiles * p.g {
        return;
    }
    let kv = group / tiles;
    let first_row = (group % tiles) * 16u;
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
    // A row past the end computes the last one again and writes nothing.
    let row = min(first_row + r, count - 1u);
    let mine = keys_of(row / shared_heads());
    let boundary = rows[4u * (row / shared_heads()) + 3u];
    if lid < 16u {
        highest[lid] = NOTHING;
        total[lid] = 0.0;
    }
    var sums: array<f32, 16>;
    for (var i = 0u; i < 16u; i++) {
        sums[i] = 0.0;
    }

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
            for (var depth = 0u; depth < p.d; depth += DEPTH) {
                workgroupBarrier();
                let element = depth + lid % 32u;
                for (var line = lid / 32u; line < 48u; line += 8u) {
                    var value = 0.0;
                    if line < 16u {
                        if element < p.d {
                            let source = row_index(min(first_row + line, count - 1u), kv) * p.d + element;
                            if sink {
                                value = qs[source];
                            } else {
                                value = q[source];
                            }
                        }
                        staged_q[line * 33u + lid % 32u] = value;
                    } else {
                        if element < p.d {
                            value = key_at(form, place, line - 16u, element);
                        }
                        staged_k[(line - 16u) * 33u + lid % 32u] = value;
                    }
                }
                workgroupBarrier();
                for (var i = 0u; i < DEPTH; i++) {
                    let a = staged_q[r * 33u + i];
                    s += a * vec2(staged_k[lane * 33u + i], staged_k[(lane + 16u) * 33u + i]);
                }
            }
            var counts = vec2(false);
            for (var i = 0u; i < 2u; i++) {
                let key = tile + lane + 16u * i;
                counts[i] = sees(mine, key) && (key < mine.sink_end) == sink && form_of(key, boundary) == form;
                scores[r * 33u + lane + 16u * i] = select(NOTHING, s[i] * p.scale, counts[i]);
            }
            workgroupBarrier();
            if lid < 16u {
                let old = highest[lid];
                var fresh = old;
                for (var i = 0u; i < 32u; i++) {
                    fresh = max(fresh, scores[lid * 33u + i]);
                }
                highest[lid] = fresh;
                shrink[lid] = exp(old - fresh);
            }
            workgroupBarrier();
            for (var i = 0u; i < 2u; i++) {
                let at = r * 33u + lane + 16u * i;
                scores[at] = select(0.0, exp(scores[at] - highest[r]), counts[i]);
            }
            workgroupBarrier();
            if lid < 16u {
                var sum = total[lid] * shrink[lid];
                for (var i = 0u; i < 32u; i++) {
                    sum += scores[lid * 33u + i];
                }
                total[lid] = sum;
            } else if lid >= 32u && lid < 64u {
                // What no row gives a weight is not read: a cache may hold NaN there.
                var most = 0.0;
                for (var i = 0u; i < 16u; i++) {
                    most = max(most, scores[i * 33u + lid - 32u]);
                }
                wanted[lid - 32u] = select(0u, 1u, most > 0.0);
            }
            for (var i = 0u; i < 16u; i++) {
                sums[i] *= shrink[r];
            }
            for (var depth = 0u; depth < DEPTHS; depth++) {
                workgroupBarrier();
                let element = depth * DEPTH + lid % 32u;
                for (var line = lid / 32u; line < 32u; line += 8u) {
                    var value = 0.0;
                    if element < p.d && wanted[line] == 1u {
                        value = value_at(form, place, line, element);
                    }
                    staged_k[line * 33u + lid % 32u] = value;
                }
                workgroupBarrier();
                var two = vec2(0.0);
                for (var key = 0u; key < 32u; key++) {
                    let at = key * 33u + lane;
                    two += scores[r * 33u + key] * vec2(staged_k[at], staged_k[at + 16u]);
                }
                sums[2u * depth] += two.x;
                sums[2u * depth + 1u] += two.y;
            }
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
