// One 64x64 tile of a product A * B, by 256 invocations with 4x4 elements each.
// The including file gives
//     fn load_a(i: u32, d: u32) -> f32   element (i, d) of A, 0 outside
//     fn load_b(d: u32, j: u32) -> f32   element (d, j) of B, 0 outside
//     const A_BY_DEPTH: bool             neighbours along d are neighbours in memory
//     const B_BY_DEPTH: bool
// Slices of 16 in depth go through workgroup memory (8,320 bytes). Element [r][c] of
// the result is row tile_row(lid) + r and column tile_column(lid, c) of the tile, so
// neighbouring invocations write neighbouring columns, or with BF16 neighbouring words
// of two columns, which elements 0 and 1, and 2 and 3, make up. The sum over the depth
// runs in order. All invocations call together.

const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
// One more than the tile, so that stores along the depth meet different banks.
const PITCH: u32 = 65u;

var<workgroup> slice_a: array<f32, 1040>;
var<workgroup> slice_b: array<f32, 1040>;

fn tile_row(lid: u32) -> u32 {
    return lid / 16u * 4u;
}

fn tile_column(lid: u32, c: u32) -> u32 {
//!if BF16
    return lid % 16u * 2u + c % 2u + c / 2u * 32u;
//!else
    return lid % 16u + c * 16u;
//!endif
}

fn dense_tile(lid: u32, first_row: u32, first_column: u32, depth: u32) -> mat4x4<f32> {
    // Column r of the matrix holds row r of the invocation's elements.
    var sum = mat4x4<f32>();
    for (var first = 0u; first < depth; first += DEPTH) {
        for (var e = lid; e < TILE * DEPTH; e += 256u) {
            let along = vec2<u32>(e % DEPTH, e / DEPTH);
            let across = vec2<u32>(e / TILE, e % TILE);
            let a = select(across, along, A_BY_DEPTH);
            let b = select(across, along, B_BY_DEPTH);
            slice_a[a.x * PITCH + a.y] = load_a(first_row + a.y, first + a.x);
            slice_b[b.x * PITCH + b.y] = load_b(first + b.x, first_column + b.y);
        }
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d++) {
            let at_a = d * PITCH + tile_row(lid);
            let at_b = d * PITCH + tile_column(lid, 0u);
//!if BF16
            let b = vec4<f32>(slice_b[at_b], slice_b[at_b + 1u], slice_b[at_b + 32u], slice_b[at_b + 33u]);
//!else
            let b = vec4<f32>(slice_b[at_b], slice_b[at_b + 16u], slice_b[at_b + 32u], slice_b[at_b + 48u]);
//!endif
            sum[0] += slice_a[at_a] * b;
            sum[1] += slice_a[at_a + 1u] * b;
            sum[2] += slice_a[at_a + 2u] * b;
            sum[3] += slice_a[at_a + 3u] * b;
        }
        workgroupBarrier();
    }
    return sum;
}
