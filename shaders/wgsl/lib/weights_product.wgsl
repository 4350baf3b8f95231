// Operands of x[m,k] in f32 times weights kept in few bits, transposed: see weights.wgsl. y has rows of l
// columns, of which those from n0 on are written.
//!include "weights"

//!if GROUPED
struct Params {
    m: u32,
    n: u32,
    k: u32,
    group: u32,
    l: u32,
    n0: u32,
}
//!else
struct Params {
    m: u32,
    n: u32,
    k: u32,
    n0: u32,
    l: u32,
}
//!endif

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>; // [m, k]
@group(0) @binding(1) var<storage, read> w: array<u32>; // [n, k]
//!if GROUPED
@group(0) @binding(2) var<storage, read> s: array<u32>; // [n, g]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [m, l]
//!else
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [m, l]
//!endif
