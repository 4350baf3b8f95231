// Attention forward for few tokens: a workgroup takes one query row and splits the
// keys. Operands as in attention.wgsl. 256 keys at a time: every invocation computes
// one score; then 256 / COLUMNS parts of the keys are summed by COLUMNS invocations
// each, an element an invocation, and the parts are added at the end.

struct Params {
    m: u32,
    h: u32,
    d: u32,
    t: u32,
    g: u32,
    scale: f32,
}

var<immediate> p: Params;

// A power of two that is at least d and at most 256.
override COLUMNS: u32 = 256u;

@group(0) @binding(0) var<storage, read> q: array<f32>;
//!if HALF
@group(0) @binding(1) var<storage, read> k: array<u32>;
@group(0) @binding(2) var<storage, read> v: array<u32>;
//!else
@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
//!endif
@group(0) @binding(3) var<storage, read> span: array<u32>;
@group(0) @binding(4) var<storage, read_write> o: array<f32>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

//!include "reduce"

const NOTHING = -1e30;

var<workgroup> query: array<f32, 256>;
var<workgroup> weights: array<f32, 256>;
var<workgroup> parts: array<f32, 256>;

fn score(base: u32) -> f32 {
    var s = 0.0;
//!if HALF
    for (var i = 0u; i < p.d / 2u; i++) {
        let pair = unpack2x16float(k[base / 2u + i]);
        s += query[2u * i] * pair.x + query[2u * i + 1u] * pair.y;
    }
//!else
    for (var i = 0u; i < p.d; i++) {
        s += query[i] * k[base + i];
    }
//!endif
    return s * p.scale;
}

fn value_at(i: u32) -> f32 {
//!if HALF
    return unpack2x16float(v[i / 2u])[i % 2u];
//!else
    return v[i];
//!endif
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let row = wid.y * groups.x + wid.x;
    if row >= p.m * p.h {
        return;
    }
    let token = row / p.h;
    let kv = (row % p.h) / (p.h / p.g);
    let first = span[2u * token];
    let end = min(span[2u * token + 1u], p.t - 1u) + 1u;
    if lid < p.d {
        query[lid] = q[row * p.d + lid];
    }
    workgroupBarrier();

    let column = lid % COLUMNS;
    let part = lid / COLUMNS;
    let stride = 256u / COLUMNS;
    var highest = NOTHING;
    var total = 0.0;
    var sum = 0.0;
    for (var tile = first; tile < end; tile += 256u) {
        let key = tile + lid;
        var s = NOTHING;
        if key < end {
            s = score((key * p.g + kv) * p.d);
        }
        let fresh = max(highest, workgroup_max(lid, s));
        var weight = 0.0;
        if key < end {
            weight = exp(s - fresh);
        }
        weights[lid] = weight;
        let shrink = exp(highest - fresh);
        // Its barriers also publish the weights.
        total = total * shrink + workgroup_sum(lid, weight);
        sum *= shrink;
        highest = fresh;
        if column < p.d {
            let count = min(256u, end - tile);
            for (var i = part; i < count; i += stride) {
                sum += weights[i] * value_at(((tile + i) * p.g + kv) * p.d + column);
            }
        }
        workgroupBarrier();
    }
    parts[lid] = sum;
    workgroupBarrier();
    if lid < p.d {
        var out = 0.0;
        for (var i = 0u; i < stride; i++) {
            out += parts[i * COLUMNS + lid];
        }
        o[row * p.d + lid] = select(0.0, out / max(total, 1e-30), total > 0.0);
    }
    if lid == 0u {
        lse[row] = select(NOTHING, highest + log(max(total, 1e-30)), total > 0.0);
    }
}
