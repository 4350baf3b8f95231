// What decoding over caches shares (Flash-Decoding, Dao et al. 2023). A workgroup takes a part of the keys of one
// query row and one key-value head, and up to 4 * QUADS of the query heads that share it, so that keys and values
// are read once. It goes over tiles of at most TILE keys:
//
// - scores: a team of four invocations (LANES) shares TILE / 32 keys, each with some of their elements, so that an
//   element of a query is fetched once for all of them; queries lie in workgroup memory, four heads side by side;
// - the running maximum and the weights, four heads side by side as well;
// - values: an invocation sums eight elements, a column, of all heads over a part of the keys.
//
// The file that includes this declares p (m, h, d, g, scale, window, sinks, page, e, parts), q, qs, o and lse.
//!include "visible_keys"
//!include "team_sum"

// Four query heads are a quad; 1 or 2.
override QUADS: u32 = 1u;
// Keys of a tile, and of those a team's: TILE / 32, which is 1, 2 or 4.
override TILE: u32 = 64u;
override EACH: u32 = 2u;
// Places of queries, four heads each. A run of SPREAD elements has one more place, which spreads what the
// invocations of a team read over the banks.
override QUERY: u32 = 256u;
override SPREAD: u32 = 4096u;

const NOTHING = -1e30;
// Invocations and teams of a workgroup.
const WORKERS = 128u;
const TEAMS = 32u;

var<workgroup> queries: array<vec4<f32>, QUERY>;
// By key and quad.
var<workgroup> weights: array<vec4<f32>, 256>;
var<workgroup> peaks: array<vec4<f32>, 64>;
// Added to the scores of a tile: the sum of eight.
var<workgroup> shifts: array<vec4<f32>, 16>;

// What a workgroup works on.
struct Work {
    part: u32,
    row: u32,
    kv: u32,
    // First of its query heads, and the one after the last.
    heads: vec2<u32>,
}

var<private> work: Work;
// By quad: sums of eight elements, the highest score, and the sum of a team's own weights.
var<private> sums: array<vec4<f32>, 16>;
var<private> highest: array<vec4<f32>, 2>;
var<private> total: array<vec4<f32>, 2>;
// By key of the team and quad.
var<private> score: array<vec4<f32>, 8>;

fn blocks() -> u32 {
    return (p.h / p.g + 4u * QUADS - 1u) / (4u * QUADS);
}

// Workgroup `group` of parts * m * g * blocks; false past the last.
fn begin(group: u32) -> bool {
    let shared_heads = p.h / p.g;
    let block = group % blocks();
    let kv = group / blocks() % p.g;
    let row = group / (blocks() * p.g);
    let first = block * 4u * QUADS;
    let heads = kv * shared_heads + vec2(first, min(first + 4u * QUADS, shared_heads));
    work = Work(row / p.m, row % p.m, kv, heads);
    for (var quad = 0u; quad < QUADS; quad++) {
        highest[quad] = vec4(NOTHING);
        total[quad] = vec4(0.0);
        for (var i = 0u; i < 8u; i++) {
            sums[quad * 8u + i] = vec4(0.0);
        }
    }
    return work.part < p.parts;
}

// Keys of the part, of all that are seen in rising order.
fn part_of(keys: Keys) -> Keys {
    let before = keys.sinks.y - keys.sinks.x;
    let n = before + keys.window.y - keys.window.x;
    let size = ((n + p.parts - 1u) / p.parts + 127u) / 128u * 128u;
    let range = min(vec2(work.part, work.part + 1u) * size, vec2(n));
    return Keys(keys.sinks.x + min(range, vec2(before)), keys.window.x + max(range, vec2(before)) - before, keys.sink_end);
}

// Keys that are scored with one query: 0 sinks, 1 sinks within the window (both with qs), 2 others.
fn run_of(keys: Keys, run: u32) -> vec2<u32> {
    if run == 0u {
        return keys.sinks;
    }
    let border = clamp(keys.sink_end, keys.window.x, keys.window.y);
    return select(vec2(border, keys.window.y), vec2(keys.window.x, border), run == 1u);
}

// Element c of the queries of a quad times the factor of scores; zero for heads that are others'.
fn query_of(quad: u32, c: u32, sink: bool) -> vec4<f32> {
    var v = vec4(0.0);
    for (var i = 0u; i < 4u; i++) {
        let head = work.heads.x + 4u * quad + i;
        if head < work.heads.y {
            let at = (work.row * p.h + head) * p.d + c;
            if sink {
                v[i] = qs[at] * p.scale;
            } else {
                v[i] = q[at] * p.scale;
            }
        }
    }
    return v;
}

// Place of an element of the queries.
fn query_at(c: u32) -> u32 {
    return (c + c / SPREAD) * QUADS;
}

fn clear_scores() {
    for (var i = 0u; i < 8u; i++) {
        score[i] = vec4(0.0);
    }
}

// The team's j-th key, or the last of the tile where there are fewer.
fn key_of(lid: u32, j: u32, count: u32) -> u32 {
    return min(lid / LANES + TEAMS * j, count - 1u);
}

// Adds an element of the team's keys to their scores.
fn add_score(at: u32, x: vec4<f32>) {
    for (var quad = 0u; quad < QUADS; quad++) {
        let query = queries[at + quad];
        for (var j = 0u; j < EACH; j++) {
            score[j * QUADS + quad] += x[j] * query;
        }
    }
}

// Turns the teams' scores of a tile of `count` keys into weights. All call together; the first call of a barrier
// also ends what is read of an earlier tile's weights. shifted: all scores of the tile get the sums of shifts.
//!if SUBGROUPS
fn weigh(lid: u32, size: u32, subgroup: u32, count: u32, shifted: bool) {
//!else
fn weigh(lid: u32, count: u32, shifted: bool) {
    let size = 1u;
//!endif
    let leader = lid % LANES == 0u;
    let team = lid / LANES;
    for (var i = 0u; i < EACH * QUADS; i++) {
        score[i] = team_sum(lid, size, score[i]);
    }
//!if SUBGROUPS
    let many = WORKERS / size;
    for (var quad = 0u; quad < QUADS; quad++) {
        var peak = vec4(NOTHING);
        for (var j = 0u; j < EACH; j++) {
            let seen = leader && team + TEAMS * j < count;
            peak = max(peak, select(vec4(NOTHING), score[j * QUADS + quad], seen));
        }
        peak = subgroupMax(peak);
        if lid % size == 0u {
            peaks[subgroup * QUADS + quad] = peak;
        }
    }
//!else
    // Sixteen invocations look at a sixteenth of the keys each.
    let many = 16u;
    if leader {
        for (var i = 0u; i < EACH * QUADS; i++) {
            weights[team * QUADS + i / QUADS * TEAMS * QUADS + i % QUADS] = score[i];
        }
    }
    workgroupBarrier();
    if lid < many * QUADS {
        var peak = vec4(NOTHING);
        for (var k = lid / QUADS; k < count; k += many) {
            peak = max(peak, weights[k * QUADS + lid % QUADS]);
        }
        peaks[lid] = peak;
    }
//!endif
    workgroupBarrier();
    for (var quad = 0u; quad < QUADS; quad++) {
        var shift = vec4(0.0);
        if shifted {
            for (var i = 0u; i < 8u; i++) {
                shift += shifts[i * QUADS + quad];
            }
        }
        var peak = peaks[quad];
        for (var i = 1u; i < many; i++) {
            peak = max(peak, peaks[i * QUADS + quad]);
        }
        let fresh = max(highest[quad], peak + shift);
        if any(fresh > highest[quad]) {
            let shrink = exp(highest[quad] - fresh);
            total[quad] *= shrink;
            for (var i = 0u; i < 8u; i++) {
                sums[quad * 8u + i] *= shrink;
            }
            highest[quad] = fresh;
        }
        for (var j = 0u; j < EACH; j++) {
            let key = team + TEAMS * j;
            if leader && key < count {
                let weight = exp(score[j * QUADS + quad] + shift - fresh);
                total[quad] += weight;
                weights[key * QUADS + quad] = weight;
            }
        }
    }
    workgroupBarrier();
}

// Adds eight elements of a value.
fn add_value(key: u32, a: vec4<f32>, b: vec4<f32>) {
    for (var quad = 0u; quad < QUADS; quad++) {
        let weight = weights[key * QUADS + quad];
        let at = quad * 8u;
        sums[at] += a.x * weight;
        sums[at + 1u] += a.y * weight;
        sums[at + 2u] += a.z * weight;
        sums[at + 3u] += a.w * weight;
        sums[at + 4u] += b.x * weight;
        sums[at + 5u] += b.y * weight;
        sums[at + 6u] += b.z * weight;
        sums[at + 7u] += b.w * weight;
    }
}

// Columns of eight elements; invocation lid has column lid % columns() of every keys_apart()-th key, from
// lid / columns() on, which is none where that is keys_apart() or more.
fn columns() -> u32 {
    return (p.d + 7u) / 8u;
}

fn keys_apart() -> u32 {
    return WORKERS / columns();
}

// Joins what the invocations summed and writes o and lse.
fn finish(lid: u32) {
    workgroupBarrier();
    for (var quad = 0u; quad < QUADS; quad++) {
        if lid % LANES == 0u {
            weights[lid / LANES * QUADS + quad] = total[quad];
        }
    }
    workgroupBarrier();
    for (var quad = 0u; quad < QUADS; quad++) {
        var all = vec4(0.0);
        for (var team = 0u; team < TEAMS; team++) {
            all += weights[team * QUADS + quad];
        }
        let factor = select(vec4(0.0), 1.0 / max(all, vec4(1e-30)), all > vec4(0.0));
        let first = work.heads.x + 4u * quad;
        let row = (work.part * p.m + work.row) * p.h + first;
        for (var i = 0u; i < 8u; i++) {
            partial[lid] = sums[quad * 8u + i];
            workgroupBarrier();
            let c = lid * 8u + i;
            if c < p.d {
                var sum = vec4(0.0);
                for (var k = 0u; k < keys_apart(); k++) {
                    sum += partial[k * columns() + lid];
                }
                sum *= factor;
                for (var head = 0u; head < min(4u, work.heads.y - min(first, work.heads.y)); head++) {
                    o[(row + head) * p.d + c] = sum[head];
                }
            }
            workgroupBarrier();
        }
        if lid < 4u && first + lid < work.heads.y {
            lse[row + lid] = select(NOTHING, highest[quad][lid] + log(max(all[lid], 1e-30)), all[lid] > 0.0);
        }
    }
}
