//! The list of rows. Adding an op is its folder, its `.wgsl` and one line here.

use crate::device::Caps;
use crate::dtype::{DType, Spec};
use crate::error::{Error, Result};
use crate::gradient::GradCx;
use crate::op::{Args, Choice, CudaChoice, Kernel, Packed, Piece, Row, Tolerance};
use crate::reference::RefTensor;
use std::sync::LazyLock;

mod cuda_rows;
pub(crate) mod dense_gemm;
mod elementwise;
mod matmul;
pub mod paged;
#[cfg(test)]
mod pieces;
mod split;
mod ternary_few;
mod ternary_row;
mod wgsl_teams;
mod widened;

macro_rules! rows {
    ($($module:ident :: $name:ident),* $(,)?) => {
        $(pub mod $module;)*

        /// Every op, as a closed set.
        #[derive(Clone, Copy, Debug)]
        pub enum Op {
            $(#[doc = concat!("See [`", stringify!($module), "`].")] $name($module::$name),)*
        }

        $(impl From<$module::$name> for Op {
            fn from(op: $module::$name) -> Op {
                Op::$name(op)
            }
        })*

        #[repr(usize)]
        enum Index { $($name),* }

        static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| vec![$(Row::new::<$module::$name>()),*]);

        impl Op {
            /// Position of the op's row in [`Row::all`].
            pub fn index(&self) -> usize {
                match self { $(Op::$name(_) => Index::$name as usize),* }
            }

            /// Extents of the signature's dimension names.
            pub fn dims(&self) -> Vec<(&'static str, usize)> {
                match self { $(Op::$name(op) => op.dims()),* }
            }

            /// Conditions beyond the signature.
            pub fn check(&self) -> std::result::Result<(), String> {
                match self { $(Op::$name(op) => op.check()),* }
            }

            /// Parameters as every backend sees them.
            pub fn params(&self) -> &[u8] {
                match self { $(Op::$name(op) => bytemuck::bytes_of(op)),* }
            }

            /// The f64 definition.
            pub fn reference(&self, t: &mut [RefTensor]) {
                match self { $(Op::$name(op) => op.reference(t)),* }
            }

            /// The differentiable stand-in.
            pub fn surrogate(&self, t: &mut [RefTensor]) {
                match self { $(Op::$name(op) => op.surrogate(t)),* }
            }

            /// The CPU kernel.
            pub fn cpu(&self, args: Args<'_>) {
                match self { $(Op::$name(op) => op.cpu(args)),* }
            }

            /// Arithmetic operations.
            pub fn operations(&self) -> u64 {
                match self { $(Op::$name(op) => op.operations()),* }
            }

            /// Bytes that must be read and written.
            pub fn traffic(&self, operands: &[Spec]) -> (u64, u64) {
                match self { $(Op::$name(op) => op.traffic(operands)),* }
            }

            /// Allowed distance from the reference.
            pub fn tolerance(&self) -> Tolerance {
                match self { $(Op::$name(op) => op.tolerance()),* }
            }

            pub(crate) fn packed(&self, operand: usize, words: &[u32], inputs: &[Vec<f64>]) -> Option<Packed> {
                match self { $(Op::$name(op) => op.packed(operand, words, inputs)),* }
            }

            /// Records the gradient. Operands in formats of inference have none.
            pub fn gradient(&self, cx: &mut GradCx<'_>) -> Result<()> {
                let row = self.row();
                let operands = 0..row.signature.operands.len();
                let specs: Vec<Spec> = operands.clone().map(|i| cx.graph.spec(cx.operand(i)).clone()).collect();
                if operands.into_iter().any(|i| cx.wanted(i)) && !(row.differentiable)(&specs) {
                    let kept = specs.iter().map(Spec::to_string).collect::<Vec<_>>().join(", ");
                    let message = format!("{}: no gradient flows through weights in a format of inference ({kept})", row.name);
                    return Err(Error::Record { graph: cx.graph.name().into(), message });
                }
                match self { $(Op::$name(op) => op.gradient(cx)),* }
            }

            /// WGSL variants that take these operands, best first. This is the one place that keeps bf16
            /// operands away from shaders that read f32, and layouts of the CPU away from all of them.
            pub fn wgsl(&self, operands: &[Spec]) -> Vec<Choice> {
                let bf16 = operands.iter().any(|s| s.dtype == DType::Bf16);
                if operands.iter().any(|s| s.dtype.only_cpu()) {
                    return Vec::new();
                }
                match self {
                    $(Op::$name(op) => {
                        let variants = if bf16 { $module::$name::WGSL_BF16 } else { $module::$name::WGSL };
                        variants.iter().filter_map(|v| v.choose(op, operands)).collect()
                    }),*
                }
            }

            /// CUDA variants that take these operands on a device, best first.
            pub fn cuda(&self, operands: &[Spec], caps: &Caps) -> Vec<CudaChoice> {
                if operands.iter().any(|s| s.dtype.only_cpu()) {
                    return Vec::new();
                }
                match self {
                    $(Op::$name(op) => {
                        $module::$name::CUDA.iter().filter_map(|v| v.choose(op, operands, caps)).collect()
                    }),*
                }
            }

            /// Cuts the op so that no operand binds more than `limit` bytes.
            pub fn shard(&self, operands: &[Spec], limit: u64) -> Option<Vec<Piece<Op>>> {
                match self {
                    $(Op::$name(op) => op.shard(operands, limit).map(|pieces| {
                        pieces.into_iter().map(|p| Piece { op: Op::$name(p.op), rows: p.rows }).collect()
                    })),*
                }
            }
        }
    };
}

rows! {
    fill::Fill,
    copy::Copy,
    cast::Cast,
    add::Add,
    accumulate::Accumulate,
    reduce::Reduce,
    norm::Norm,
    rms_norm::RmsNorm,
    rms_norm_grad::RmsNormGrad,
    rms_norm_weight_grad::RmsNormWeightGrad,
    quantize_int8::QuantizeInt8,
    ternarize::Ternarize,
    dequantize_int8::DequantizeInt8,
    dequantize_ternary::DequantizeTernary,
    ternary_matmul::TernaryMatmul,
    ternary_qkv::TernaryQkv,
    ternary_add::TernaryAdd,
    ternary_gate::TernaryGate,
    matmul_nt::MatmulNt,
    quantized_matmul::QuantizedMatmul,
    matmul_nn::MatmulNn,
    matmul_tn::MatmulTn,
    add_bias::AddBias,
    column_sum::ColumnSum,
    gather::Gather,
    quantized_gather::QuantizedGather,
    gather_grad::GatherGrad,
    rope::Rope,
    attention::Attention,
    attention_stats::AttentionStats,
    attention_grad_q::AttentionGradQ,
    attention_grad_kv::AttentionGradKv,
    paged_attention::PagedAttention,
    quantized_attention::QuantizedAttention,
    attention_join::AttentionJoin,
    cache_append::CacheAppend,
    cache_quantize::CacheQuantize,
    gate::Gate,
    gate_grad::GateGrad,
    mean_square::MeanSquare,
    mean_square_grad::MeanSquareGrad,
    cross_entropy::CrossEntropy,
    cross_entropy_grad::CrossEntropyGrad,
    adamw::Adamw,
    sample::Sample,
}

/// All rows, in the order of the list.
pub(crate) fn rows() -> &'static [Row] {
    &ROWS
}
