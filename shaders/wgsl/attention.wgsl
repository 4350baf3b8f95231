// Attention forward: q[m,h,d], k[t,g,d], v[t,g,d], span[m,2] -> o[m,h,d], lse[m,h].
// Online softmax (Dao 2023). A workgroup takes 16 rows of queries of one key-value head
// and goes over the tiles of 32 keys that any of them sees: scores by staging 32
// elements of q and k at a time, then every invocation sums o for one row and every
// 16th element.

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
@group(0) @binding(4) var<storage, read_write> o: array<f32>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

//!include "attention_rows"

// Elements of a head that are staged at a time.
const DEPTH = 32u;

const NOTHING = -1e30;

// Rows of 33 spread over the banks.
var<workgroup> staged_q: array<f32, 528>;
var<workgroup> staged_k: array<f32, 1056>;
var<workgroup> scores: array<f32, 528>;
var<workgroup> highest: array<f32, 16>;
var<workgroup> total: array<f32, 16>;
var<workgroup> shrink: array<f32, 16>;

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
    if lid < 16u {
        highest[lid] = NOTHING;
        total[lid] = 0.0;
    }
    var sums: array<f32, 16>;
    for (var i = 0u; i < 16u; i++) {
        sums[i] = 0.0;
    }

    for (var tile = first_tile(all); tile < all.window.y; tile = next_tile(all, tile)) {
        var s = vec2(0.0);
        for (var depth = 0u; depth < p.d; depth += DEPTH) {
            workgroupBarrier();
            for (var i = lid; i < 1536u; i += 256u) {
                let element = depth + i % 32u;
                let line = i / 32u;
                var value = 0.0;
                if line < 16u {
                    let source = min(first_row + line, rows - 1u);
                    if element < p.d {
                        value = q[row_index(source, kv) * p.d + element];
                    }
                    staged_q[line * 33u + i % 32u] = value;
                } else {
                    let key = tile + line - 16u;
                    if element < p.d && key < all.window.y {
                        value = k[(key * p.g + kv) * p.d + element];
                    }
                    staged_k[(line - 16u) * 33u + i % 32u] = value;
                }
            }
            workgroupBarrier();
            for (var i = 0u; i < DEPTH; i++) {
                let a = staged_q[r * 33u + i];
                s += a * vec2(staged_k[lane * 33u + i], staged_k[(lane + 16u) * 33u + i]);
            }
        }
        for (var i = 0u; i < 2u; i++) {
            let key = tile + lane + 16u * i;
            let visible = sees(mine, key);
            scores[r * 33u + lane + 16u * i] = select(NOTHING, s[i] * p.scale, visible);
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
            let key = tile + lane + 16u * i;
            let at = r * 33u + lane + 16u * i;
            let visible = sees(mine, key);
            scores[at] = select(0.0, exp(scores[at] - highest[r]), visible);
        }
        workgroupBarrier();
        if lid < 16u {
            var sum = total[lid] * shrink[lid];
            for (var i = 0u; i < 32u; i++) {
                sum += scores[lid * 33u + i];
            }
            total[lid] = sum;
        }
        for (var i = 0u; i < 16u; i++) {
            sums[i] *= shrink[r];
        }
        // Only what is seen is touched: other rows of a cache may hold NaN.
        let end = min(tile + 32u, mine.window.y);
        for (var key = tile; key < end; key++) {
            if !sees(mine, key) {
                continue;
            }
            let weight = scores[r * 33u + key - tile];
            let base = (key * p.g + kv) * p.d;
            for (var i = 0u; i < 16u; i++) {
                let element = lane + 16u * i;
                if element < p.d {
                    sums[i] += weight * v[base + element];
                }
            }
        }
    }
    workgroupBarrier();
    if first_row + r >= rows {
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
