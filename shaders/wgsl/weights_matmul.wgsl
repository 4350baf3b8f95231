// y[m, n0 + j] = sum over k of x[m, k] * w[j, k], w kept in few bits. One workgroup of 256 a tile of 64x64;
// weights become f32 once a tile.
//!include "dense_tile"
//!include "weights_product"

const A_BY_DEPTH: bool = true;
const B_BY_DEPTH: bool = true;

fn load_a(i: u32, d: u32) -> f32 {
    if i < p.m && d < p.k {
        return x[i * p.k + d];
    }
    return 0.0;
}

fn load_b(d: u32, j: u32) -> f32 {
    if d < p.k && j < p.n {
        return value(j, d);
    }
    return 0.0;
}

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) lid: u32,
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let group = wid.y * groups.x + wid.x;
    let across = (p.n + TILE - 1u) / TILE;
    let first_row = group / across * TILE;
    let first_column = group % across * TILE;
    if first_row >= p.m {
        return;
    }
    var sum = dense_tile(lid, first_row, first_column, p.k);
    for (var r = 0u; r < 4u; r++) {
        let i = first_row + tile_row(lid) + r;
        for (var c = 0u; c < 4u; c++) {
            let j = first_column + tile_column(lid, c);
            if i < p.m && j < p.n {
                y[i * p.l + p.n0 + j] = sum[r][c];
            }
        }
    }
}
