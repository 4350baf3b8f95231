//! Dense product with a transposed weight: `y[m,n] = x[m,k] · w[n,k]ᵀ`.
//!
//! A piece of a cut op binds rows `n0..n0+n` of the weight and writes columns `n0..n0+n` of `y`,
//! whose rows have `l` columns; recorded ops have `n0 = 0` and `l = n`.
//!
//! Weights may be kept in f16 or bf16 beside an `x` in f32: they are widened as they are read, and no
//! gradient flows through such a product. Both factors may be f16 as well, for weights kept in half precision and for values whose range is known:
//! above 65504 there is infinity. Every kernel sums in f32, the product is f32, and no gradient flows
//! through it.

mod cpu;
#[cfg(test)]
mod tests;

use crate::cpu::weights::{self, Stored, Target};
use crate::dtype::{DType, Spec};
use crate::error::Result;
use crate::gradient::GradCx;
use crate::graph::{Graph, Value};
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Piece, Size, Tolerance, Wgsl};
use crate::ops::cast::cast;
use crate::ops::matmul::cuda::{self, Tile};
use crate::ops::matmul::{FEW, Window, check_dtypes, shapes, tiles, wide_cases, windows};
use crate::ops::wgsl_teams::weights_variants;
use crate::ops::{matmul_nn, matmul_tn, widened};
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct MatmulNt {
    /// Rows of `x` and `y`.
    pub m: u32,
    /// Rows of `w` that are bound.
    pub n: u32,
    /// Columns of `x` and `w`.
    pub k: u32,
    /// First column of `y` that is written.
    pub n0: u32,
    /// Columns of `y`.
    pub l: u32,
}

impl MatmulNt {
    /// The product of whole `x[m,k]` and `w[n,k]`.
    pub fn whole(m: u32, n: u32, k: u32) -> Self {
        MatmulNt { m, n, k, n0: 0, l: n }
    }
}

/// Records `x · wᵀ` for `x[..,k]` (any shape, seen as `[m,k]`) and `w[n,k]`; gives `[m,n]`.
pub fn matmul_nt(g: &mut Graph, x: Value, w: Value) -> Result<Value> {
    let (m, k, n) = (g.spec(x).rows(), g.spec(x).cols(), g.spec(w).rows());
    let x = g.view(x, [m, k])?;
    let op = MatmulNt::whole(m as u32, n as u32, k as u32);
    if mixed(g.spec(x), g.spec(w)) {
        // A weight in bf16 makes no activation bf16.
        let y = g.activation([m, n], DType::F32);
        g.record(op, &[x, w, y])?;
        return Ok(y);
    }
    g.apply(op, &[x, w])
}

/// Weights alone are kept in 16 bits.
fn activations_in_f32(_: &MatmulNt, operands: &[Spec]) -> bool {
    operands[0].dtype == DType::F32
}

impl Kernel for MatmulNt {
    const NAME: &'static str = "matmul_nt";
    const SIGNATURE: &'static str = "x[m,k]:f32|bf16|f16 w[n,k]:f32|bf16|f16 -> y[m,l]:f32|bf16";
    const GRADIENT: Gradient = Gradient::Rule;
    const WGSL: &'static [Wgsl<Self>] = weights_variants!(0, activations_in_f32, [
        Wgsl {
            name: "gemv",
            file: "matmul_nt_gemv",
            needs: Needs::NONE,
            defines: &[],
            when: |op, operands| operands[1].dtype == DType::F32 && op.m as usize <= FEW,
            launch: |op, _| Launch::groups((op.n as usize).div_ceil(8)),
        },
        Wgsl {
            name: "tiled",
            file: "matmul_nt",
            needs: Needs::NONE,
            defines: &[("PAIRS", 0), ("BF16", 0), ("Y_BF16", 0)],
            when: |_, operands| operands[1].dtype == DType::F32,
            launch: |op, _| tiles(op.m, op.n),
        },
        Wgsl {
            name: "tiled_f16",
            file: "matmul_nt",
            needs: Needs::NONE,
            defines: &[("PAIRS", 1), ("BF16", 0), ("Y_BF16", 0)],
            when: |_, operands| operands[0].dtype == DType::F16,
            launch: |op, _| tiles(op.m, op.n),
        },
    ], ("f16w", 1, DType::F16));
    const WGSL_BF16: &'static [Wgsl<Self>] = weights_variants!(0, activations_in_f32, [
        Wgsl {
            name: "tiled_bf16",
            file: "matmul_nt",
            needs: Needs::NONE,
            defines: &[("PAIRS", 1), ("BF16", 1), ("Y_BF16", 1)],
            // Pieces must not share a word of y.
            when: |op, operands| {
                let whole_words = op.n % 2 == 0 || op.n0 + op.n == op.l;
                operands[2].dtype == DType::Bf16 && op.n0 % 2 == 0 && whole_words
            },
            launch: |op, _| tiles(op.m, op.n),
        },
        Wgsl {
            name: "tiled_bf16_to_f32",
            file: "matmul_nt",
            needs: Needs::NONE,
            defines: &[("PAIRS", 1), ("BF16", 1), ("Y_BF16", 0)],
            when: |_, operands| operands[0].dtype == DType::Bf16 && operands[2].dtype == DType::F32,
            launch: |op, _| tiles(op.m, op.n),
        },
    ], ("bf16w", 2, DType::Bf16));

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "mixed_gemv",
            entries: &[
                "matmul_nt_f32_f16_gemv1",
                "matmul_nt_f32_f16_gemv4",
                "matmul_nt_f32_f16_gemv8",
                "matmul_nt_f32_bf16_gemv1",
                "matmul_nt_f32_bf16_gemv4",
                "matmul_nt_f32_bf16_gemv8",
            ],
            hot: true,
            align: 16,
            when: |op, s| mixed(&s[0], &s[1]) && widened::takes_few(op.m, op.k, &s[1]),
            launch: |op, s, caps| {
                let entries = match s[1].dtype {
                    DType::F16 => ["matmul_nt_f32_f16_gemv1", "matmul_nt_f32_f16_gemv4", "matmul_nt_f32_f16_gemv8"],
                    _ => ["matmul_nt_f32_bf16_gemv1", "matmul_nt_f32_bf16_gemv4", "matmul_nt_f32_bf16_gemv8"],
                };
                widened::few(op.m, op.n, op.k, &s[1], entries, caps).into()
            },
        },
        Cuda {
            name: "mixed_tiled",
            entries: &["matmul_nt_f32_f16_tiled", "matmul_nt_f32_bf16_tiled"],
            hot: true,
            align: 4,
            when: |_, s| mixed(&s[0], &s[1]),
            launch: |op, s, _| {
                let f16 = s[1].dtype == DType::F16;
                let entry = if f16 { "matmul_nt_f32_f16_tiled" } else { "matmul_nt_f32_bf16_tiled" };
                widened::tiles(op.m, op.n, entry).into()
            },
        },
        Cuda {
            name: "few",
            entries: &[
                "matmul_nt_f32_few1",
                "matmul_nt_f32_few4",
                "matmul_nt_bf16_few",
                "matmul_nt_bf16_f32_few",
                "matmul_nt_f16_few",
            ],
            hot: true,
            align: 4,
            when: |op, s| !mixed(&s[0], &s[1]) && op.m <= if s[0].dtype == DType::F32 { FEW as u32 } else { cuda::FEW_16BIT },
            launch: |op, s, _| cuda::few(entry_few(op.m, s), op.n),
        },
        Cuda {
            name: "tiled",
            entries: &[
                "matmul_nt_f32_128",
                "matmul_nt_f32_64",
                "matmul_nt_f32_sum",
                "matmul_nt_bf16_256",
                "matmul_nt_bf16_128",
                "matmul_nt_bf16_64",
                "matmul_nt_bf16_sum",
                "matmul_nt_bf16_f32_256",
                "matmul_nt_bf16_f32_128",
                "matmul_nt_f16_128",
            ],
            hot: true,
            align: 16,
            when: |_, s| !mixed(&s[0], &s[1]) && cuda::vectors(&s[0], 0) && cuda::vectors(&s[1], 0),
            launch: |op, s, caps| cuda::launch(extents(op), tiles_cuda(s), sum(s), caps),
        },
        Cuda {
            name: "ragged",
            entries: &[
                "matmul_nt_f32_ragged",
                "matmul_nt_f32_sum",
                "matmul_nt_bf16_ragged",
                "matmul_nt_bf16_sum",
                "matmul_nt_bf16_f32_ragged",
                "matmul_nt_f16_ragged",
            ],
            hot: true,
            align: 4,
            when: |_, s| !mixed(&s[0], &s[1]),
            launch: |op, s, caps| cuda::launch(extents(op), tiles_ragged(s), sum(s), caps),
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        [("m", self.m), ("n", self.n), ("k", self.k), ("l", self.l)].map(|(name, d)| (name, d as usize)).to_vec()
    }

    fn check(&self) -> std::result::Result<(), String> {
        let whole = self.n0 == 0 && self.l == self.n;
        whole.then_some(()).ok_or_else(|| "a recorded product writes all columns: n0 = 0 and l = n".into())
    }

    fn check_dtypes(operands: &[Spec]) -> std::result::Result<(), String> {
        check_dtypes(operands)
    }

    fn differentiable(operands: &[Spec]) -> bool {
        operands[0].dtype == operands[1].dtype && operands[0].dtype != DType::F16
    }

    fn cpu_takes(operands: &[Spec]) -> bool {
        mixed(&operands[0], &operands[1]) || operands.iter().all(|s| s.dtype != DType::Bf16)
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [x, w, y] = t else { return };
        for i in 0..self.m as usize {
            for j in 0..self.n as usize {
                let dot: f64 = x.row(i).iter().zip(w.row(j)).map(|(x, w)| x * w).sum();
                y.data[i * self.l as usize + self.n0 as usize + j] = dot;
            }
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let y = args.write::<f32>(2);
        if mixed(args.spec(0), args.spec(1)) {
            let (m, n, n0, l) = (self.m as usize, self.n as usize, self.n0 as usize, self.l as usize);
            let w = Stored::floats(args.spec(1), args.read(1));
            return weights::product(&w, args.read(0), Target { m, n, n0, l }, y);
        }
        match args.spec(0).dtype {
            DType::F16 => cpu::product_f16(self, args.read(0), args.read(1), y),
            _ => cpu::product(self, args.read(0), args.read(1), y),
        }
    }

    fn operations(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.n) * u64::from(self.k)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Sum { max: 1e-5, why: "a sum of k products in f32, in lanes or in order" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let op = |(m, n, k)| MatmulNt { m, n, k, n0: 0, l: n };
        let case = |s: (u32, u32, u32)| Case::new(format!("{}x{}x{}", s.0, s.1, s.2), op(s));
        let mut cases = wide_cases(shapes(size).into_iter().map(case).collect(), size);
        if size == Size::Ragged {
            // Rows padded to words; few rows, rows that are and are not whole 16 bytes, a long sum.
            let half = [
                (1, 1, 1),
                (1, 131, 777),
                (4, 67, 35),
                (16, 37, 40),
                (64, 64, 64),
                (67, 129, 71),
                (33, 517, 66),
                (72, 80, 1056),
            ];
            cases.extend(half.map(|s| {
                let mut case = case(s).dtype("x", DType::F16).dtype("w", DType::F16);
                case.label += " f16";
                case
            }));
            cases.extend(half.into_iter().chain([(1, 1000, 272), (1, 9, 264), (3, 37, 128), (8, 35, 320), (9, 70, 264)]).flat_map(|s| {
                [DType::F16, DType::Bf16].map(|dtype| {
                    let mut case = case(s).dtype("w", dtype);
                    case.label += &format!(" with {dtype} weights");
                    case
                })
            }));
        }
        if size == Size::Bench {
            cases.extend([DType::F16, DType::Bf16].map(|dtype| {
                let mut case = case((1, 128_256, 2560)).dtype("w", dtype);
                case.label += &format!(" with {dtype} weights");
                case
            }));
        }
        cases
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
        let Some(dy) = cx.upstream(2) else { return Ok(()) };
        if !cx.wanted(0) && !cx.wanted(1) {
            return Ok(());
        }
        let (x, w) = (cx.operand(0), cx.operand(1));
        let dtype = cx.graph.spec(x).dtype;
        // Of bf16 factors whose product stayed in f32.
        let dy = cast(cx.graph, dy, dtype)?;
        if cx.wanted(0) {
            let dx = matmul_nn::matmul_nn(cx.graph, dy, w)?;
            cx.give(0, dx);
        }
        if cx.wanted(1) {
            let dw = cx.accumulator(1)?;
            matmul_tn::matmul_tn_add(cx.graph, dy, x, dw)?;
        }
        Ok(())
    }

    fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Self>>> {
        let windows = windows(operands, [0, 2], 1, limit)?;
        let piece = |w: &Window| Piece {
            op: MatmulNt { m: w.m as u32, n: w.n as u32, n0: w.n0 as u32, ..*self },
            rows: vec![w.batch(), w.weight(), w.batch()],
        };
        Some(windows.iter().map(piece).collect())
    }
}

/// Weights kept in 16 bits beside an `x` in f32?
fn mixed(x: &Spec, w: &Spec) -> bool {
    x.dtype == DType::F32 && w.dtype != DType::F32
}

fn extents(op: &MatmulNt) -> cuda::Extents {
    cuda::Extents { rows: op.m, cols: op.n, depth: op.k }
}

/// CUDA entry for few rows.
fn entry_few(m: u32, operands: &[Spec]) -> &'static str {
    match cuda::dtypes(operands) {
        (DType::F32, _) if m == 1 => "matmul_nt_f32_few1",
        (DType::F32, _) => "matmul_nt_f32_few4",
        (DType::F16, _) => "matmul_nt_f16_few",
        (_, DType::F32) => "matmul_nt_bf16_f32_few",
        _ => "matmul_nt_bf16_few",
    }
}

/// CUDA entries for rows of multiples of 16 bytes.
fn tiles_cuda(operands: &[Spec]) -> &'static [Tile] {
    match cuda::dtypes(operands) {
        (DType::F32, _) => &const { [Tile::simt128("matmul_nt_f32_128", 2), Tile::simt64("matmul_nt_f32_64", 2)] },
        (DType::F16, _) => &const { [Tile::mma128("matmul_nt_f16_128")] },
        (_, DType::F32) => &const { [Tile::mma256("matmul_nt_bf16_f32_256"), Tile::mma128("matmul_nt_bf16_f32_128")] },
        _ => {
            &const {
                [
                    Tile::mma256("matmul_nt_bf16_256"),
                    Tile::mma128("matmul_nt_bf16_128"),
                    Tile::mma64("matmul_nt_bf16_64"),
                ]
            }
        }
    }
}

/// CUDA entries for any rows.
fn tiles_ragged(operands: &[Spec]) -> &'static [Tile] {
    match cuda::dtypes(operands) {
        (DType::F32, _) => &const { [Tile::simt64("matmul_nt_f32_ragged", 2)] },
        (DType::F16, _) => &const { [Tile::mma128("matmul_nt_f16_ragged")] },
        (_, DType::F32) => &const { [Tile::mma128("matmul_nt_bf16_f32_ragged")] },
        _ => &const { [Tile::mma128("matmul_nt_bf16_ragged")] },
    }
}

/// CUDA entry that adds the sums of a depth that was cut.
fn sum(operands: &[Spec]) -> &'static str {
    if operands[2].dtype == DType::F32 { "matmul_nt_f32_sum" } else { "matmul_nt_bf16_sum" }
}
