// dw[ids[i] - row0] += dy[i] for ids in rows row0..row0+v, in the order of i.
// One workgroup of 256 a token. The first token with an id adds the gradients of all tokens
// with that id, one column an invocation, in order; the others leave. So no two workgroups
// write one row, and results repeat.

//!include "reduce"

struct Params {
    m: u32,
    d: u32,
    v: u32,
    row0: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> ids: array<u32>; // [m]
@group(0) @binding(1) var<storage, read> dy: array<f32>; // [m, d]
@group(0) @binding(2) var<storage, read_write> dw: array<f32>; // [v, d]

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_index) lid: u32,
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let token = wid.y * groups.x + wid.x;
    if token >= p.m {
        return;
    }
    let id = ids[token];
    var earlier = 0.0;
    for (var i = lid; i < token; i += WORKGROUP) {
        if ids[i] == id {
            earlier = 1.0;
        }
    }
    // Ids before the window wrap to large numbers.
    let row = id - p.row0;
    if workgroup_max(lid, earlier) > 0.0 || row >= p.v {
        return;
    }
    for (var i = token; i < p.m; i++) {
        if ids[i] != id {
            continue;
        }
        for (var j = lid; j < p.d; j += WORKGROUP) {
            dw[row * p.d + j] += dy[i * p.d + j];
        }
    }
}
