// Gradient of the cross entropy with z-loss; a workgroup covers 1,024 elements of one row.
// logits[m,v], target[m], lse[m], dl[m], dlogits[m,v]
// dlogits = dl (exp(x - lse) (1 + 2 z lse) - [j = target]), or 0 where target >= v.

const THREADS = 256u;
const SPAN = 1024u;

struct Params {
    m: u32,
    v: u32,
    z: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> target_id: array<u32>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read> dl: array<f32>;
@group(0) @binding(4) var<storage, read_write> dlogits: array<f32>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lid: u32,
) {
    let group = wid.y * groups.x + wid.x;
    let spans = (p.v + SPAN - 1u) / SPAN;
    let row = group / spans;
    if row >= p.m {
        return;
    }
    let first = (group % spans) * SPAN;
    let end = min(first + SPAN, p.v);
    let picked = target_id[row];
    let counts = picked < p.v;
    let l = lse[row];
    let upstream = dl[row];
    let shrink = 1.0 + 2.0 * p.z * l;
    for (var j = first + lid; j < end; j += THREADS) {
        let index = row * p.v + j;
        var d = 0.0;
        if counts {
            d = upstream * (exp(logits[index] - l) * shrink - select(0.0, 1.0, j == picked));
        }
        dlogits[index] = d;
    }
}
