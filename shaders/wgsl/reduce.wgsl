// y[first + b] = max(scale * sum of f(x), floor) over the flat elements b c .. min((b + 1) c, m k)
// of x, for b < blocks; f by kind: 0 the value, 1 its magnitude, 2 its square.
// One workgroup a block, in a fixed order.

//!include "reduce"

struct Params {
    m: u32,
    k: u32,
    p: u32,
    c: u32,
    first: u32,
    blocks: u32,
    kind: u32,
    scale: f32,
    floor: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>; // [m, k]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [p]

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_index) lid: u32,
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let block = wid.y * groups.x + wid.x;
    if block >= p.blocks {
        return;
    }
    // block * c is below m k, so neither the product nor the difference wraps.
    let first = block * p.c;
    let count = min(p.c, p.m * p.k - first);
    var sum = 0.0;
    for (var i = lid; i < count; i += WORKGROUP) {
        let v = x[first + i];
        if p.kind == 0u {
            sum += v;
        } else if p.kind == 1u {
            sum += abs(v);
        } else {
            sum += v * v;
        }
    }
    let total = workgroup_sum(lid, sum);
    if lid == 0u {
        // Unlike max, this keeps a NaN.
        let value = p.scale * total;
        y[p.first + block] = select(value, p.floor, value < p.floor);
    }
}
