// Draws one token a row, one workgroup a row.
// logits[m,v] (bits of f32), control[4] = [temperature, top_k, 0, 0], random[2] = [seed, step], token[m]
// Temperature 0: the largest logit, lowest index among equals. Otherwise the top_k largest (0: all, and
// all that equal the k-th), then the argmax of logit / temperature + Gumbel noise.
// Logits are compared as integers that keep their order, so NaN, infinities, subnormals and zeros
// of both signs do what the contract says whatever the compiler assumes of floats.

override WORKGROUP: u32 = 256u;

struct Params {
    m: u32,
    v: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<u32>;
@group(0) @binding(1) var<storage, read> control: array<f32>;
@group(0) @binding(2) var<storage, read> random: array<u32>;
@group(0) @binding(3) var<storage, read_write> token: array<u32>;

const MINUS_INFINITY = 0x007fffffu; // as keys
const PLUS_INFINITY = 0xff800000u;

var<workgroup> keys: array<u32, WORKGROUP>;
var<workgroup> ids: array<u32, WORKGROUP>;

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

fn workgroup_count(lid: u32, n: u32) -> u32 {
    keys[lid] = n;
    for (var stride = WORKGROUP / 2u; stride > 0u; stride >>= 1u) {
        workgroupBarrier();
        if lid < stride {
            keys[lid] += keys[lid + stride];
        }
    }
    return workgroupUniformLoad(&keys[0]);
}

// The largest key that at least `count` keys of the row reach, or any key that exactly
// `count` reach, bit by bit.
fn nth_key(lid: u32, base: u32, count: u32) -> u32 {
    var least = 0u;
    for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
        let candidate = least | bit;
        var n = 0u;
        for (var j = lid; j < p.v; j += WORKGROUP) {
            n += select(0u, 1u, key(logits[base + j]) >= candidate);
        }
        let reached = workgroup_count(lid, n);
        if reached >= count {
            least = candidate;
        }
        if reached == count {
            break;
        }
    }
    return least;
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
    let base = row * p.v;

    var k = 0u;
    var id = 0u;
    for (var j = lid; j < p.v; j += WORKGROUP) {
        let other = key(logits[base + j]);
        if other > k {
            k = other;
            id = j;
        }
    }
    let greedy = workgroup_best(lid, k, id);
    var chosen = greedy.y;

    let temperature = control[0];
    let finite = greedy.x > MINUS_INFINITY && greedy.x < PLUS_INFINITY;
    if temperature > 0.0 && finite {
        let top_k = control[1];
        var least = 0u;
        if top_k >= 1.0 && top_k < f32(p.v) {
            least = nth_key(lid, base, u32(top_k));
        }
        least = max(least, MINUS_INFINITY + 1u);

        let most = bitcast<f32>(logits[base + greedy.y]);
        k = 0u;
        id = greedy.y;
        for (var j = lid; j < p.v; j += WORKGROUP) {
            let word = logits[base + j];
            if key(word) >= least {
                let scaled = max((bitcast<f32>(word) - most) / temperature, -1e30);
                let score = scaled + gumbel(hash(vec4<u32>(random[0], random[1], row, j)));
                let other = key(bitcast<u32>(score));
                if other > k {
                    k = other;
                    id = j;
                }
            }
        }
        chosen = workgroup_best(lid, k, id).y;
    }
    if lid == 0u {
        token[row] = chosen;
    }
}
