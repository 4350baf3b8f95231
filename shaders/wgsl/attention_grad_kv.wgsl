// Gradients of attention with respect to k and v; operands as in attention_grad_q.wgsl,
// -> dk[t,g,d], dv[t,g,d]. A workgroup takes 16 keys of one head and goes over the rows
// (token, head) that see any of them, 32 at a time and in order, so that the sums repeat.
// The tokens are found by bisection, because both columns of span do not fall: those whose
// window reaches the keys, then those later ones whose sinks do.

struct Params {
    m: u32,
    h: u32,
    d: u32,
    t: u32,
    g: u32,
    scale: f32,
    window: u32,
    sinks: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read> span: array<u32>;
@group(0) @binding(4) var<storage, read> stats: array<f32>;
@group(0) @binding(5) var<storage, read> upstream: array<f32>;
@group(0) @binding(6) var<storage, read_write> dk: array<f32>;
@group(0) @binding(7) var<storage, read_write> dv: array<f32>;

//!include "attention_rows"

// Elements of a head that are staged at a time.
const DEPTH = 16u;

// Rows of 17 and 33 spread over the banks.
var<workgroup> staged_k: array<f32, 272>;
var<workgroup> staged_v: array<f32, 272>;
var<workgroup> staged_q: array<f32, 544>;
var<workgroup> staged_u: array<f32, 544>;
var<workgroup> weights: array<f32, 528>;
var<workgroup> slopes: array<f32, 528>;

// First token whose entry in a column of span is at least `key`; m if there is none.
fn first_token(column: u32, key: u32) -> u32 {
    var low = 0u;
    var high = p.m;
    while low < high {
        let middle = (low + high) / 2u;
        if span[2u * middle + column] >= key {
            high = middle;
        } else {
            low = middle + 1u;
        }
    }
    return low;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let tiles = (p.t + 15u) / 16u;
    let group = wid.y * groups.x + wid.x;
    if group >= tiles * p.g {
        return;
    }
    let kv = group / tiles;
    let first_key = (group % tiles) * 16u;
    let end_key = min(first_key + 16u, p.t);
    // Tokens whose spans hold any of the keys, and of these the end of those whose windows do.
    let begin = first_token(1u, first_key);
    let end = max(begin, first_token(0u, end_key));
    var window_end = end;
    if p.window < p.t - (end_key - 1u) {
        window_end = clamp(first_token(1u, end_key - 1u + p.window), begin, end);
    }
    var sink_begin = end;
    if p.sinks > 0u {
        sink_begin = window_end;
        if p.sinks <= first_key {
            sink_begin = clamp(first_token(0u, first_key - p.sinks + 1u), window_end, end);
        }
    }
    let ranges = shared_heads() * vec4(begin, window_end, sink_begin, end);

    let r = lid / 16u;
    let lane = lid % 16u;
    let key = first_key + r;
    var sums_k: array<f32, 16>;
    var sums_v: array<f32, 16>;
    for (var i = 0u; i < 16u; i++) {
        sums_k[i] = 0.0;
        sums_v[i] = 0.0;
    }

    var end_row = ranges.y;
    for (var tile = ranges.x;; tile += 32u) {
        if tile >= end_row {
            // On to those who see a key as a sink.
            tile = ranges.z;
            if end_row == ranges.w || tile >= ranges.w {
                break;
            }
            end_row = ranges.w;
        }
        var s = vec2(0.0);
        var slope = vec2(0.0);
        for (var depth = 0u; depth < p.d; depth += DEPTH) {
            workgroupBarrier();
            for (var i = lid; i < 768u; i += 256u) {
                let element = depth + i % 16u;
                let line = i / 16u;
                var pair = vec2(0.0);
                if line < 16u {
                    if element < p.d && first_key + line < end_key {
                        let source = ((first_key + line) * p.g + kv) * p.d + element;
                        pair = vec2(k[source], v[source]);
                    }
                    staged_k[line * 17u + i % 16u] = pair.x;
                    staged_v[line * 17u + i % 16u] = pair.y;
                } else {
                    let row = tile + line - 16u;
                    if element < p.d && row < end_row {
                        let source = row_index(row, kv) * p.d + element;
                        pair = vec2(q[source], upstream[source]);
                    }
                    staged_q[(line - 16u) * 17u + i % 16u] = pair.x;
                    staged_u[(line - 16u) * 17u + i % 16u] = pair.y;
                }
            }
            workgroupBarrier();
            for (var i = 0u; i < DEPTH; i++) {
                let a = lane * 17u + i;
                let b = (lane + 16u) * 17u + i;
                s += staged_k[r * 17u + i] * vec2(staged_q[a], staged_q[b]);
                slope += staged_v[r * 17u + i] * vec2(staged_u[a], staged_u[b]);
            }
        }
        for (var i = 0u; i < 2u; i++) {
            let row = tile + lane + 16u * i;
            let at = r * 33u + lane + 16u * i;
            var weight = 0.0;
            var gradient = 0.0;
            if row < end_row {
                let seen = keys_of(row / shared_heads());
                if sees(seen, key) {
                    let index = 2u * row_index(row, kv);
                    weight = exp(s[i] * p.scale - stats[index]);
                    gradient = p.scale * weight * (slope[i] - stats[index + 1u]);
                }
            }
            weights[at] = weight;
            slopes[at] = gradient;
        }
        workgroupBarrier();
        let count = min(32u, end_row - tile);
        for (var j = 0u; j < count; j++) {
            let weight = weights[r * 33u + j];
            let gradient = slopes[r * 33u + j];
            let base = row_index(tile + j, kv) * p.d;
            for (var i = 0u; i < 16u; i++) {
                let element = lane + 16u * i;
                if element < p.d {
                    sums_v[i] += weight * upstream[base + element];
                    sums_k[i] += gradient * q[base + element];
                }
            }
        }
    }
    if key >= end_key {
        return;
    }
    for (var i = 0u; i < 16u; i++) {
        let element = lane + 16u * i;
        if element < p.d {
            dk[(key * p.g + kv) * p.d + element] = sums_k[i];
            dv[(key * p.g + kv) * p.d + element] = sums_v[i];
        }
    }
}
