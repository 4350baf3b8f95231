// Draws one token a row, one workgroup a row.
// logits[m,v] (bits of f32), control[m,8] = [temperature, top_k, top_p, min_p, repeat_penalty, 0, 0, 0],
// random[m,2] = [seed, step], recent[m,r] (the last ids, a ring) -> token[m], also at recent[step mod r]
//
// `sample.rs` has the definition. Logits are compared as integers that keep their order (keys), so NaN,
// infinities, subnormals and zeros of both signs do what it says whatever the compiler assumes of floats.
//
// A long row is read twice. The first pass takes the largest key of each invocation's share. The k-th
// largest of these bounds the k-th largest logit from below, so the second pass finds all that top-k, or
// a nucleus of moderate size, can keep in a list of a few logits, in which the rest is done. Where
// the list does not hold them, keys are searched in the whole row, eight bits a pass.

override WORKGROUP: u32 = 256u;

struct Params {
    m: u32,
    v: u32,
    r: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<u32>;
@group(0) @binding(1) var<storage, read> control: array<f32>;
@group(0) @binding(2) var<storage, read> random: array<u32>;
@group(0) @binding(3) var<storage, read_write> recent: array<u32>;
@group(0) @binding(4) var<storage, read_write> token: array<u32>;

const MINUS_INFINITY = 0x007fffffu; // as keys
const PLUS_INFINITY = 0xff800000u;
const LARGEST = 3.4028234e38;

// Loads that an invocation keeps under way.
const AHEAD = 8u;
// Logits of the list.
const LISTED = 1024u;
// Shares of the row whose maxima bound the list of a nucleus: of 256, so many that the list has
// room to spare.
const BOUNDING = 192u;
const FILTER = 64u; // words

var<workgroup> keys: array<u32, WORKGROUP>;
var<workgroup> ids: array<u32, WORKGROUP>;
// The ids that are penalised, and a bit for each of their hashes.
var<workgroup> ring: array<u32, 256>;
var<workgroup> filtered: array<atomic<u32>, FILTER>;
// Sums of 64 bits by key.
var<workgroup> bins_low: array<atomic<u32>, 256>;
var<workgroup> bins_high: array<atomic<u32>, 256>;
var<workgroup> found: array<u32, 4>;
var<workgroup> listed: atomic<u32>;
var<workgroup> list_words: array<u32, LISTED>;
var<workgroup> list_ids: array<u32, LISTED>;

// What is drawn from the row; the same in all invocations.
var<private> base: u32;
var<private> penalty: f32;
var<private> temperature: f32;
var<private> most: f32;

// Order-preserving image of an f32's bits; NaN goes to -infinity and -0 to 0.
fn key(word: u32) -> u32 {
    if (word & 0x7fffffffu) > 0x7f800000u {
        return MINUS_INFINITY;
    }
    if (word & 0x7fffffffu) == 0u {
        return 0x80000000u;
    }
    return select(word | 0x80000000u, ~word, (word >> 31u) == 1u);
}

// The bits of a logit, penalised if its id is in the ring.
fn after_penalty(word: u32, j: u32) -> u32 {
    if penalty == 1.0 || (atomicLoad(&filtered[j / 32u % FILTER]) >> (j % 32u) & 1u) == 0u {
        return word;
    }
    // Infinities and NaN stay.
    if (word & 0x7f800000u) == 0x7f800000u {
        return word;
    }
    for (var i = 0u; i < p.r; i++) {
        if ring[i] == j {
            let x = bitcast<f32>(word);
            return bitcast<u32>(clamp(select(x * penalty, x / penalty, x > 0.0), -LARGEST, LARGEST));
        }
    }
    return word;
}

fn logit(j: u32) -> u32 {
    return after_penalty(logits[base + j], j);
}

// Words first + i * WORKGROUP of the row, i < AHEAD, not penalised; -infinity past its end.
fn ahead(first: u32) -> array<u32, AHEAD> {
    var words: array<u32, AHEAD>;
    for (var i = 0u; i < AHEAD; i++) {
        let j = first + i * WORKGROUP;
        words[i] = select(0xff800000u, logits[base + min(j, p.v - 1u)], j < p.v);
    }
    return words;
}

fn scaled(word: u32) -> f32 {
    return max((bitcast<f32>(word) - most) / temperature, -1e30);
}

// A weight as a whole number.
fn weight(word: u32) -> u32 {
    return u32(min(exp(scaled(word)), 1.0) * 2147483648.0);
}

// Sums of 64 bits, low word first.
fn add_wide(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn wide(sum: vec2<u32>) -> f32 {
    return f32(sum.y) * 4294967296.0 + f32(sum.x);
}

// The largest key and its lowest index, the same for all invocations.
fn workgroup_best(lid: u32, k: u32, id: u32) -> vec2<u32> {
    keys[lid] = k;
    ids[lid] = id;
    for (var stride = WORKGROUP / 2u; stride > 0u; stride >>= 1u) {
        workgroupBarrier();
        if lid < stride {
            let other = keys[lid + stride];
            let other_id = ids[lid + stride];
            if other > keys[lid] || (other == keys[lid] && other_id < ids[lid]) {
                keys[lid] = other;
                ids[lid] = other_id;
            }
        }
    }
    return vec2<u32>(workgroupUniformLoad(&keys[0]), workgroupUniformLoad(&ids[0]));
}

fn workgroup_sum(lid: u32, sum: vec2<u32>) -> vec2<u32> {
    keys[lid] = sum.x;
    ids[lid] = sum.y;
    for (var stride = WORKGROUP / 2u; stride > 0u; stride >>= 1u) {
        workgroupBarrier();
        if lid < stride {
            let both = add_wide(vec2<u32>(keys[lid], ids[lid]), vec2<u32>(keys[lid + stride], ids[lid + stride]));
            keys[lid] = both.x;
            ids[lid] = both.y;
        }
    }
    return vec2<u32>(workgroupUniformLoad(&keys[0]), workgroupUniformLoad(&ids[0]));
}

// The n-th largest of one key of each invocation.
fn nth_of_workgroup(lid: u32, k: u32, n: u32) -> u32 {
    var least = 0u;
    for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
        let candidate = least | bit;
        let reached = workgroup_sum(lid, vec2<u32>(select(0u, 1u, k >= candidate), 0u)).x;
        if reached >= n {
            least = candidate;
        }
        if reached == n {
            break;
        }
    }
    return least;
}

fn drop_in(bin: u32, amount: u32) {
    let before = atomicAdd(&bins_low[bin], amount);
    if before + amount < before {
        atomicAdd(&bins_high[bin], 1u);
    }
}

// The largest key such that, of the keys from `first` on, those from it on are `n`, or if `weighted` have
// weights of `enough` together; 0 if there is none. Looks in the list or else in the row.
fn threshold(lid: u32, in_list: bool, count: u32, weighted: bool, first: u32, n: u32, enough: f32) -> u32 {
    var prefix = 0u;
    var above = vec2<u32>();
    let end = select(p.v, count, in_list);
    for (var shift = 24; shift >= 0; shift -= 8) {
        for (var bin = lid; bin < 256u; bin += WORKGROUP) {
            atomicStore(&bins_low[bin], 0u);
            atomicStore(&bins_high[bin], 0u);
        }
        workgroupBarrier();
        let amount_shift = u32(shift);
        // The upper bits that a key must have; none at first.
        let mask = select(0xffffffffu << ((amount_shift + 8u) & 31u), 0u, shift == 24);
        for (var j = lid; j < end; j += WORKGROUP) {
            var word = 0u;
            if in_list {
                word = list_words[j];
            } else {
                word = logit(j);
            }
            let k = key(word);
            if k >= first && (k & mask) == prefix {
                var amount = 1u;
                if weighted {
                    amount = weight(word);
                }
                drop_in((k >> amount_shift) & 255u, amount);
            }
        }
        workgroupBarrier();
        if lid == 0u {
            var sum = above;
            found[0] = 256u;
            for (var i = 0u; i < 256u; i++) {
                let bin = 255u - i;
                let more = add_wide(sum, vec2<u32>(atomicLoad(&bins_low[bin]), atomicLoad(&bins_high[bin])));
                if (weighted && wide(more) >= enough) || (!weighted && more.x >= n) {
                    found[0] = bin;
                    break;
                }
                sum = more;
            }
            found[1] = sum.x;
            found[2] = sum.y;
        }
        let bin = workgroupUniformLoad(&found[0]);
        above = vec2<u32>(workgroupUniformLoad(&found[1]), workgroupUniformLoad(&found[2]));
        if bin == 256u {
            return 0u;
        }
        prefix |= bin << amount_shift;
    }
    return prefix;
}

// The four-word PCG hash of Jarzynski and Olano (JCGT 9(3), 2020), first word.
fn hash(at: vec4<u32>) -> u32 {
    var s = at * 1664525u + 1013904223u;
    s.x += s.y * s.w;
    s.y += s.z * s.x;
    s.z += s.x * s.y;
    s.w += s.y * s.z;
    s ^= s >> vec4<u32>(16u);
    return s.x + s.y * s.w;
}

// -ln E with E = -ln(1 - w), w uniform in (0, 1); small E, the ones that win, by a series.
fn gumbel(bits: u32) -> f32 {
    let w = f32(bits) * 2.3283064365386963e-10 + 1.1641532182693481e-10;
    var e = w + w * w * (0.5 + w * (0.33333334 + w * (0.25 + w * 0.2)));
    if w >= 0.03125 {
        e = -log(1.0 - min(w, 0.99999994));
    }
    return -log(e);
}

// Key of the score of a logit that is at least `least` and likely enough; 0 for others.
fn score(row: u32, j: u32, word: u32, least: u32, min_p: f32) -> u32 {
    if key(word) < least {
        return 0u;
    }
    let x = scaled(word);
    if min_p > 0.0 && exp(x) < min_p && bitcast<f32>(word) < most {
        return 0u;
    }
    return key(bitcast<u32>(x + gumbel(hash(vec4<u32>(random[2u * row], random[2u * row + 1u], 0u, j)))));
}

fn load_ring(lid: u32, row: u32) {
    for (var i = lid; i < FILTER; i += WORKGROUP) {
        atomicStore(&filtered[i], 0u);
    }
    workgroupBarrier();
    for (var i = lid; i < p.r; i += WORKGROUP) {
        let id = recent[row * p.r + i];
        ring[i] = id;
        atomicOr(&filtered[id / 32u % FILTER], 1u << (id % 32u));
    }
    workgroupBarrier();
}

fn draw(lid: u32, row: u32, share: u32, greedy: vec2<u32>) -> u32 {
    let top_k = control[8u * row + 1u];
    let top_p = control[8u * row + 2u];
    let min_p = control[8u * row + 3u];
    var kept = 0u;
    if top_k >= 1.0 && top_k < f32(p.v) {
        kept = u32(top_k);
    }
    let nucleus = top_p > 0.0 && top_p < 1.0;
    var least = MINUS_INFINITY + 1u;

    var in_list = false;
    var count = 0u;
    if kept > 0u || nucleus {
        let wanted = select(BOUNDING, kept, kept > 0u);
        var bound = 0u;
        if wanted <= min(WORKGROUP, p.v) {
            bound = nth_of_workgroup(lid, share, wanted);
        }
        let listing = bound > 0u || p.v <= LISTED;
        bound = max(bound, least);
        if lid == 0u {
            atomicStore(&listed, 0u);
        }
        workgroupBarrier();
        let weighs = nucleus && kept == 0u;
        var sum = vec2<u32>();
        var inside = vec2<u32>();
        for (var first = lid; first < p.v; first += AHEAD * WORKGROUP) {
            let words = ahead(first);
            for (var i = 0u; i < AHEAD; i++) {
                let j = first + i * WORKGROUP;
                let word = after_penalty(words[i], j);
                let k = key(word);
                if k < least {
                    continue;
                }
                var amount = vec2<u32>();
                if weighs {
                    amount.x = weight(word);
                    sum = add_wide(sum, amount);
                }
                if listing && k >= bound {
                    inside = add_wide(inside, amount);
                    let at = atomicAdd(&listed, 1u);
                    if at < LISTED {
                        list_words[at] = word;
                        list_ids[at] = j;
                    }
                }
            }
        }
        workgroupBarrier();
        if lid == 0u {
            found[3] = atomicLoad(&listed);
        }
        count = workgroupUniformLoad(&found[3]);
        in_list = listing && count <= LISTED;
        if weighs {
            let all = wide(workgroup_sum(lid, sum));
            let enough = top_p * all;
            let held = wide(workgroup_sum(lid, inside));
            in_list = in_list && held >= enough;
            least = max(least, threshold(lid, in_list, count, true, least, 0u, enough));
        } else {
            least = max(least, threshold(lid, in_list, count, false, least, kept, 0.0));
            if nucleus {
                var sum = vec2<u32>();
                for (var j = lid; j < select(p.v, count, in_list); j += WORKGROUP) {
                    var word = 0u;
                    if in_list {
                        word = list_words[j];
                    } else {
                        word = logit(j);
                    }
                    if key(word) >= least {
                        sum = add_wide(sum, vec2<u32>(weight(word), 0u));
                    }
                }
                let enough = top_p * wide(workgroup_sum(lid, sum));
                least = max(least, threshold(lid, in_list, count, true, least, 0u, enough));
            }
        }
    }

    // Scores; the order of the list differs from run to run, the best of it does not.
    var best = 0u;
    var id = greedy.y;
    if in_list {
        for (var i = lid; i < count; i += WORKGROUP) {
            let j = list_ids[i];
            let other = score(row, j, list_words[i], least, min_p);
            if other > best || (other == best && j < id && best > 0u) {
                best = other;
                id = j;
            }
        }
    } else {
        for (var first = lid; first < p.v; first += AHEAD * WORKGROUP) {
            let words = ahead(first);
            for (var i = 0u; i < AHEAD; i++) {
                let j = first + i * WORKGROUP;
                let other = score(row, j, after_penalty(words[i], j), least, min_p);
                if other > best {
                    best = other;
                    id = j;
                }
            }
        }
    }
    return workgroup_best(lid, best, id).y;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let row = wid.y * groups.x + wid.x;
    if row >= p.m {
        return;
    }
    base = row * p.v;
    temperature = control[8u * row];
    penalty = select(1.0, control[8u * row + 4u], control[8u * row + 4u] > 0.0);
    if control[8u * row + 4u] > 0.0 {
        load_ring(lid, row);
    }

    var share = 0u;
    var id = 0u;
    for (var first = lid; first < p.v; first += AHEAD * WORKGROUP) {
        let words = ahead(first);
        for (var i = 0u; i < AHEAD; i++) {
            let j = first + i * WORKGROUP;
            let k = key(after_penalty(words[i], j));
            if k > share && j < p.v {
                share = k;
                id = j;
            }
        }
    }
    let greedy = workgroup_best(lid, share, id);
    var chosen = greedy.y;
    if control[8u * row] > 0.0 && greedy.x > MINUS_INFINITY && greedy.x < PLUS_INFINITY {
        most = bitcast<f32>(logit(greedy.y));
        chosen = draw(lid, row, share, greedy);
    }
    if lid == 0u {
        token[row] = chosen;
        recent[row * p.r + random[2u * row + 1u] % p.r] = chosen;
    }
}
