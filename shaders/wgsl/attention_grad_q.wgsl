// Gradient of attention with respect to q: q[m,h,d], k[t,g,d], v[t,g,d], span[m,2],
// stats[m,h,2] = (lse, delta), do[m,h,d] -> dq[m,h,d]. With p = exp(scale q.k - lse):
// dq = scale * sum over keys of p * (do.v - delta) * k. Tiles as in attention.wgsl.

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
@group(0) @binding(6) var<storage, read_write> dq: array<f32>;

//!include "attention_rows"

// Elements of a head that are staged at a time.
const DEPTH = 32u;

// Rows of 33 spread over the banks.
var<workgroup> staged_q: array<f32, 528>;
var<workgroup> staged_u: array<f32, 528>;
var<workgroup> staged_k: array<f32, 1056>;
var<workgroup> staged_v: array<f32, 1056>;
var<workgroup> slopes: array<f32, 528>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let rows = row_count();
    let tiles = (rows + 15u) / 16u;
    let group = wid.y * groups.x + wid.x;
    if group >= tiles * p.g {
        return;
    }
    let kv = group / tiles;
    let first_row = (group % tiles) * 16u;
    let end_row = min(first_row + 16u, rows);
    let all = keys_of_all(first_row / shared_heads(), (end_row - 1u) / shared_heads() + 1u);

    let r = lid / 16u;
    let lane = lid % 16u;
    // A row past the end computes the last one again and writes nothing.
    let row = min(first_row + r, rows - 1u);
    let mine = keys_of(row / shared_heads());
    let index = row_index(row, kv);
    let lse = stats[2u * index];
    let delta = stats[2u * index + 1u];
    var sums: array<f32, 16>;
    for (var i = 0u; i < 16u; i++) {
        sums[i] = 0.0;
    }

    for (var tile = first_tile(all); tile < all.window.y; tile = next_tile(all, tile)) {
        var s = vec2(0.0);
        var slope = vec2(0.0);
        for (var depth = 0u; depth < p.d; depth += DEPTH) {
            workgroupBarrier();
            for (var i = lid; i < 1536u; i += 256u) {
                let element = depth + i % 32u;
                let line = i / 32u;
                var pair = vec2(0.0);
                if line < 16u {
                    if element < p.d {
                        let source = row_index(min(first_row + line, rows - 1u), kv) * p.d + element;
                        pair = vec2(q[source], upstream[source]);
                    }
                    staged_q[line * 33u + i % 32u] = pair.x;
                    staged_u[line * 33u + i % 32u] = pair.y;
                } else {
                    let key = tile + line - 16u;
                    if element < p.d && key < all.window.y {
                        let source = (key * p.g + kv) * p.d + element;
                        pair = vec2(k[source], v[source]);
                    }
                    staged_k[(line - 16u) * 33u + i % 32u] = pair.x;
                    staged_v[(line - 16u) * 33u + i % 32u] = pair.y;
                }
            }
            workgroupBarrier();
            for (var i = 0u; i < DEPTH; i++) {
                let a = lane * 33u + i;
                let b = (lane + 16u) * 33u + i;
                s += staged_q[r * 33u + i] * vec2(staged_k[a], staged_k[b]);
                slope += staged_u[r * 33u + i] * vec2(staged_v[a], staged_v[b]);
            }
        }
        for (var i = 0u; i < 2u; i++) {
            let key = tile + lane + 16u * i;
            let visible = sees(mine, key);
            let gradient = p.scale * exp(s[i] * p.scale - lse) * (slope[i] - delta);
            slopes[r * 33u + lane + 16u * i] = select(0.0, gradient, visible);
        }
        workgroupBarrier();
        let end = min(tile + 32u, mine.window.y);
        for (var key = tile; key < end; key++) {
            if !sees(mine, key) {
                continue;
            }
            let weight = slopes[r * 33u + key - tile];
            let base = (key * p.g + kv) * p.d;
            for (var i = 0u; i < 16u; i++) {
                let element = lane + 16u * i;
                if element < p.d {
                    sums[i] += weight * k[base + element];
                }
            }
        }
    }
    if first_row + r >= rows {
        return;
    }
    for (var i = 0u; i < 16u; i++) {
        let element = lane + 16u * i;
        if element < p.d {
            dq[index * p.d + element] = sums[i];
        }
    }
}
