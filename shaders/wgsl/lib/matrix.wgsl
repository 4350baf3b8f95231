// Cooperative matrices of SIDE x SIDE, 8 or 16: f16 operands, f32 sums. A whole subgroup makes a product together.
// Which invocation holds which element is open, so operands and sums go through workgroup memory.
//
// Rows there are whole multiples of 16 bytes, as loads want them. naga refuses matrix operations under a condition
// that may differ between invocations, even where it is one for a subgroup; to a loop that turns once or never it has
// no objection.
enable f16;
enable wgpu_cooperative_matrix;

//!if SIDE == 8
const SIDE = 8u;
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sums = coop_mat8x8<f32, C>;
//!else
const SIDE = 16u;
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;
//!endif

// What sums begin with.
var<workgroup> zeros: array<f32, SIDE * SIDE>;

// All of a workgroup of so many invocations call together, with a barrier after it.
fn clear_zeros(lid: u32, workers: u32) {
    for (var i = lid; i < SIDE * SIDE; i += workers) {
        zeros[i] = 0.0;
    }
}
