// y[i] = w[ids[i] - row0] in f32, w kept in few bits, where the id lies in the rows row0..row0+v that are
// bound; zeros for ids past all rows (total), written where row0 is 0. Other rows of y stay as they are.
// One invocation an element.
//!include "weights"

//!if GROUPED
struct Params {
    m: u32,
    v: u32,
    k: u32,
    group: u32,
    row0: u32,
    total: u32,
}
//!else
struct Params {
    m: u32,
    k: u32,
    v: u32,
    row0: u32,
    total: u32,
}
//!endif

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<u32>; // [v, k]
//!if GROUPED
@group(0) @binding(1) var<storage, read> s: array<u32>; // [v, g]
@group(0) @binding(2) var<storage, read> ids: array<u32>; // [m]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [m, k]
//!else
@group(0) @binding(1) var<storage, read> ids: array<u32>; // [m]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [m, k]
//!endif

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) lid: u32,
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let at = (wid.y * groups.x + wid.x) * 256u + lid;
    if at >= p.m * p.k {
        return;
    }
    let id = ids[at / p.k];
    // Ids before the window wrap to large numbers.
    let row = id - p.row0;
    if row < p.v {
        y[at] = value(row, at % p.k);
    } else if p.row0 == 0u && id >= p.total {
        y[at] = 0.0;
    }
}
