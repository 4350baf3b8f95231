//! CPU kernel of the ternary product: order of activations, threads, choice of instruction set.
//!
//! A byte of weights holds codes `4b..4b+4`, so shifting a vector of bytes by `2r` and masking
//! gives the codes `4b + r` of all its bytes at once. The activations are therefore brought into
//! that order, once a row and call: blocks of `4 · lanes`, in each the elements `≡ r (mod 4)` for
//! `r` = 0, 1, 2, 3 one after the other. Codes 0..2 go into the products as they are and the sum of
//! the activations is subtracted at the end. Sums are integers: any order gives the same bits.

use super::TernaryMatmul;
use crate::cpu::parallel;
use crate::dtype::DType;
use std::sync::LazyLock;

/// Rows of `x` that share one pass over the weights in the branch for many rows.
const BLOCK: usize = 32;

/// Rows of `w` that a kernel takes at a time.
pub(super) const HEIGHT: usize = 4;
/// Most rows of `x` that a kernel takes at a time.
pub(super) const WIDTH: usize = 4;

/// Integer sums of `HEIGHT` rows of `w` with up to `WIDTH` rows of `x`.
pub(super) type Tile = [[i32; WIDTH]; HEIGHT];

/// Operands as stored: bytes of packed codes, words of four activations.
pub(super) struct Inputs<'a> {
    pub(super) w: &'a [u8],
    pub(super) ws: f32,
    pub(super) x: &'a [u32],
    pub(super) xs: &'a [f32],
}

/// An instruction set. A value other than `Portable` exists only where the CPU has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// 64 bytes of codes at a time, `vpdpbusd`.
    #[cfg(target_arch = "x86_64")]
    Avx512(super::x86::Avx512),
    /// 32 bytes of codes at a time, `vpmaddubsw`.
    #[cfg(target_arch = "x86_64")]
    Avx2(super::x86::Avx2),
    /// 16 bytes of codes at a time, `smlal`.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Plain loops.
    Portable,
}

impl Path {
    /// All that this machine has, best first.
    pub(super) fn available() -> Vec<Path> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            found.extend(super::x86::Avx512::detect().map(Path::Avx512));
            found.extend(super::x86::Avx2::detect().map(Path::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        found.push(Path::Neon);
        found.push(Path::Portable);
        found
    }

    pub(super) fn best() -> Path {
        static BEST: LazyLock<Path> = LazyLock::new(|| Path::available()[0]);
        *BEST
    }

    /// Bytes of codes that a kernel takes at a time.
    fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(_) => 64,
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(_) => 32,
            _ => 16,
        }
    }

    /// Sums of codes times activations for `HEIGHT` rows of `w` and the first rows of `x` (rows of
    /// `stride`); gives how many rows of `x` it took.
    fn tile(self, w: [&[u8]; HEIGHT], x: &[i8], stride: usize, out: &mut Tile) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(path) => path.tile(w, x, stride, out),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(path) => path.tile(w, x, stride, out),
            #[cfg(target_arch = "aarch64")]
            Path::Neon => super::arm::tile(w, x, stride, out),
            Path::Portable => portable(w, x, stride, out),
        }
    }
}

/// The plain loop: 16-bit sums, which hold `31 · 4 · 2 · 128` before they are added up.
fn portable(w: [&[u8]; HEIGHT], x: &[i8], stride: usize, out: &mut Tile) -> usize {
    for (w, out) in w.into_iter().zip(out) {
        out[0] = 0;
        for (w, x) in w.chunks(31 * 16).zip(x[..stride].chunks(31 * 64)) {
            let mut sums = [0i16; 16];
            for (w, x) in w.chunks(16).zip(x.as_chunks::<64>().0) {
                let mut codes = [0u8; 16];
                codes[..w.len()].copy_from_slice(w);
                for (r, x) in x.as_chunks::<16>().0.iter().enumerate() {
                    for ((sum, code), x) in sums.iter_mut().zip(codes).zip(x) {
                        *sum += i16::from(code >> (2 * r) & 3) * i16::from(*x);
                    }
                }
            }
            out[0] += sums.into_iter().map(i32::from).sum::<i32>();
        }
    }
    1
}

/// A cache line, so that no vector load crosses one.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// Rows of activations in the order of the kernels, padded with zeros to whole blocks.
struct Activations {
    lines: Vec<Line>,
    stride: usize,
    sums: Vec<i32>,
}

impl Activations {
    /// `words` holds rows of `row` words.
    fn new(words: &[u32], row: usize, lanes: usize) -> Self {
        let stride = row.div_ceil(lanes) * 4 * lanes;
        let rows = words.len() / row;
        let mut lines = vec![Line([0; 16]); rows * stride / 64];
        let ordered: &mut [u8] = bytemuck::cast_slice_mut(&mut lines);
        for (x, ordered) in words.chunks_exact(row).zip(ordered.chunks_exact_mut(stride)) {
            for (x, block) in x.chunks(lanes).zip(ordered.chunks_exact_mut(4 * lanes)) {
                for (r, part) in block.chunks_exact_mut(lanes).enumerate() {
                    part.iter_mut().zip(x).for_each(|(byte, word)| *byte = (word >> (8 * r)) as u8);
                }
            }
        }
        let sum = |x: &[u32]| bytemuck::cast_slice::<u32, i8>(x).iter().map(|&v| i32::from(v)).sum();
        let sums = words.chunks_exact(row).map(sum).collect();
        Activations { lines, stride, sums }
    }

    fn rows_from(&self, i: usize) -> &[i8] {
        &bytemuck::cast_slice(&self.lines)[i * self.stride..]
    }
}

/// The product; `y` has rows of `op.l`, of which `op.n` columns from `op.n0` on are written.
pub(super) fn matmul(path: Path, op: &TernaryMatmul, t: &Inputs<'_>, y: &mut [f32]) {
    let (m, n, k, l, n0) = (op.m as usize, op.n as usize, op.k as usize, op.l as usize, op.n0 as usize);
    let row = DType::I8.row_bytes(k) / 4;
    if m >= BLOCK * threads() {
        // Each thread takes rows of y, so the packed weights are read once a block.
        parallel::rows(y, BLOCK * l, BLOCK * n * k / 16, |block, y| {
            let first = block * BLOCK;
            let rows = y.len() / l;
            let x = Activations::new(&t.x[first * row..(first + rows) * row], row, path.lanes());
            for j in (0..n).step_by(HEIGHT) {
                column_tile(path, op, t, &x, j, |i, column, sum| {
                    y[i * l + n0 + column] = sum as f32 * (t.xs[first + i] * t.ws);
                });
            }
        });
        return;
    }
    let x = Activations::new(t.x, row, path.lanes());
    let columns = |width: usize, y: &mut [f32]| {
        parallel::rows(y, width * m, width * m * k / 16, |chunk, y| {
            for j in (0..y.len() / m).step_by(HEIGHT) {
                let first = chunk * width;
                column_tile(path, op, t, &x, first + j, |i, column, sum| {
                    if let Some(y) = y.get_mut((column - first) * m + i) {
                        *y = sum as f32 * (t.xs[i] * t.ws);
                    }
                });
            }
        });
    };
    if m == 1 {
        columns(16 * HEIGHT, &mut y[n0..n0 + n]);
        return;
    }
    // Each thread takes rows of w, that is columns of y: written transposed, then put in place.
    let mut transposed = vec![0.0; n * m];
    columns(4 * HEIGHT, &mut transposed);
    for (i, y) in y.chunks_exact_mut(l).enumerate() {
        let column = transposed[i..].iter().step_by(m);
        y[n0..n0 + n].iter_mut().zip(column).for_each(|(y, &v)| *y = v);
    }
}

/// Calls `put(i, column, sum)` for all rows of `x` and up to `HEIGHT` rows of `w` from `j` on.
fn column_tile(
    path: Path,
    op: &TernaryMatmul,
    t: &Inputs<'_>,
    x: &Activations,
    j: usize,
    mut put: impl FnMut(usize, usize, i32),
) {
    let (n, bytes) = (op.n as usize, DType::T2.row_bytes(op.k as usize));
    let height = HEIGHT.min(n - j);
    // Past the last row the last one again.
    let w = std::array::from_fn(|r| {
        let row = j + r.min(height - 1);
        &t.w[row * bytes..(row + 1) * bytes]
    });
    let mut sums = Tile::default();
    let mut first = 0;
    while first < x.sums.len() {
        let taken = path.tile(w, x.rows_from(first), x.stride, &mut sums);
        for (c, i) in (first..first + taken).enumerate() {
            for (r, sums) in sums.iter().enumerate().take(height) {
                put(i, j + r, sums[c] - x.sums[i]);
            }
        }
        first += taken;
    }
}

fn threads() -> usize {
    #[cfg(not(target_arch = "wasm32"))]
    return rayon::current_num_threads();
    #[cfg(target_arch = "wasm32")]
    1
}
