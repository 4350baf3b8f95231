//! The tensors of a model on a device: descriptions first, memory when loaded.

mod describe;

use crate::config::Config;
use tritter_runtime::device::Runs;
use tritter_runtime::op::{Row, Size};
use tritter_runtime::ops::rope;
use tritter_runtime::{DType, Tensor};

/// What the weights are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Master weights in f32, ternarised in every forward pass.
    Train,
    /// Ternary weights packed to two bits.
    Run,
}

/// How a dense matrix is stored on a device: f32, f16 or bf16, or integers in groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseFormat {
    /// `F32`, `F16`, `Bf16`, `I8`, `I6` or `I4`.
    pub dtype: DType,
    /// Columns that share a scale; 0 for floats.
    pub group: usize,
}

impl DenseFormat {
    /// f32.
    pub const F32: DenseFormat = DenseFormat { dtype: DType::F32, group: 0 };

    /// Floats of a dtype.
    pub const fn floats(dtype: DType) -> DenseFormat {
        DenseFormat { dtype, group: 0 }
    }

    /// Integers of a dtype with a scale for `group` columns.
    pub const fn groups(dtype: DType, group: usize) -> DenseFormat {
        DenseFormat { dtype, group }
    }
}

/// How the matrices of a model in running form are stored on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    /// Ternary matrices: `T2`, `T1`, or on the CPU `T2x16`, `T1x16`.
    pub ternary: DType,
    /// Embedding, and head where it is not the embedding.
    pub table: DenseFormat,
    /// Dense projections.
    pub dense: DenseFormat,
    /// Whether decode steps go by fused rows ([`crate::fused`]).
    pub fused: bool,
}

impl Formats {
    /// Row-major codes in two bits, everything else in f32, one op after the other.
    pub const PLAIN: Formats =
        Formats { ternary: DType::T2, table: DenseFormat::F32, dense: DenseFormat::F32, fused: false };

    /// The same with ternary matrices in the layout that a device computes fastest with, and fused steps where it
    /// has kernels for them (an adapter with few bindings a shader has not).
    pub fn on(self, device: &tritter_runtime::Device) -> Formats {
        let cpu = device.caps().backend == "cpu";
        let ternary = match (self.ternary, cpu) {
            (DType::T2 | DType::T2x16, true) => DType::T2x16,
            (DType::T1 | DType::T1x16, true) => DType::T1x16,
            (DType::T1 | DType::T1x16, false) => DType::T1,
            _ => DType::T2,
        };
        let cases = Row::all().iter().filter(|row| row.name == "ternary_qkv").flat_map(|row| (row.cases)(Size::Small));
        let mut cases = cases.map(|case| case.dtype("w", ternary));
        let fused = cases.all(|case| matches!(device.runs(&case.op, &case.specs()), Runs::Native(_)));
        Formats { ternary, fused, ..self }
    }
}

/// A dense matrix on a device.
#[derive(Clone, Debug)]
pub struct Dense {
    /// Values, or codes, `[n, k]`.
    pub values: Tensor,
    /// Scales of groups of codes `[n, ⌈k/group⌉]`, in f16.
    pub scales: Option<Tensor>,
    /// Columns that share a scale; 0 for floats.
    pub group: usize,
}

impl Dense {
    fn new(name: String, shape: &[usize], format: DenseFormat) -> Dense {
        let columns = shape.last().copied().unwrap_or(1);
        let grouped = format.group > 0;
        let extents = [shape.iter().rev().skip(1).product(), columns.div_ceil(format.group.max(1))];
        let scales = grouped.then(|| Tensor::weight(format!("{name}_scales"), extents, DType::F16));
        Dense { values: Tensor::weight(name, shape.to_vec(), format.dtype), scales, group: format.group }
    }

    /// Its tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.values).chain(&self.scales)
    }
}

/// A ternary matrix on a device: rows of a tensor of codes and an element of a tensor of scales.
/// Projections of one input lie one below the other in one tensor, so that one kernel takes them all.
#[derive(Clone, Debug)]
pub struct Ternary {
    /// Name of the weight in a checkpoint.
    pub name: String,
    /// Codes `[rows of all, k]`.
    pub codes: Tensor,
    /// Its first row there.
    pub first: usize,
    /// Its rows.
    pub rows: usize,
    /// Scales that multiply codes, `[matrices]`.
    pub scales: Tensor,
    /// Which of them is its own.
    pub index: usize,
}

impl Ternary {
    /// Is the whole tensor this matrix?
    pub fn is_whole(&self) -> bool {
        self.scales.spec().elements() == 1
    }
}

/// The matrix of a projection, `[n, k]`.
#[derive(Clone, Debug)]
pub enum Matrix {
    /// Used as it is.
    Dense(Dense),
    /// f32 master of a ternary matrix.
    Master(Tensor),
    /// Ternary codes and their scale.
    Ternary(Ternary),
}

/// A projection.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Its matrix.
    pub matrix: Matrix,
    /// Its bias `[n]`.
    pub bias: Option<Tensor>,
}

/// The tensors of one layer; the optional ones depend on the family.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Norm before attention.
    pub attn_norm: Tensor,
    /// Query projection.
    pub q: Linear,
    /// Key projection.
    pub k: Linear,
    /// Value projection.
    pub v: Linear,
    /// Output projection.
    pub o: Linear,
    /// Norm per query head.
    pub q_norm: Option<Tensor>,
    /// Norm per key head.
    pub k_norm: Option<Tensor>,
    /// Norm before the output projection.
    pub attn_sub_norm: Option<Tensor>,
    /// Norm before the feed-forward branch.
    pub ffn_norm: Tensor,
    /// Gate projection.
    pub gate: Linear,
    /// Up projection.
    pub up: Linear,
    /// Down projection.
    pub down: Linear,
    /// Norm before the down projection.
    pub ffn_sub_norm: Option<Tensor>,
    /// Norm on the feed-forward branch.
    pub ffn_post_norm: Option<Tensor>,
}

/// RoPE tables (see [`rope`]).
#[derive(Clone, Debug)]
pub struct RopeTables {
    /// Coarse table.
    pub coarse: Tensor,
    /// Fine table.
    pub fine: Tensor,
    /// Their values.
    pub values: std::sync::Arc<rope::Tables>,
}

/// A model: config and tensors.
#[derive(Clone, Debug)]
pub struct Model {
    /// Shapes and family.
    pub config: Config,
    /// What the weights are for.
    pub form: Form,
    /// How matrices are stored.
    pub formats: Formats,
    /// Token embedding `[V, D]`.
    pub embedding: Dense,
    /// Layers.
    pub layers: Vec<Layer>,
    /// Final norm.
    pub norm: Tensor,
    /// Output matrix `[V, D]` where it is not the embedding.
    pub head: Option<Dense>,
    /// RoPE tables for `positions` positions.
    pub rope: RopeTables,
    /// Positions that the tables serve.
    pub positions: usize,
}

impl Model {
    /// Float tensors of a checkpoint by their Hugging Face names, in its order: the parameters of
    /// a model in training form.
    pub fn parameters(&self) -> Vec<Tensor> {
        let all = self.tensors();
        let find = |name: &str| all.iter().find(|t| t.name() == name && t.spec().dtype == DType::F32).cloned();
        self.config.tensors().iter().filter_map(|spec| find(&spec.name)).collect()
    }

    /// Every weight, tables included.
    pub fn tensors(&self) -> Vec<Tensor> {
        let mut all: Vec<Tensor> = self.embedding.tensors().cloned().collect();
        for layer in &self.layers {
            all.extend(layer.tensors());
        }
        all.push(self.norm.clone());
        all.extend(self.head.iter().flat_map(Dense::tensors).cloned());
        all.extend([self.rope.coarse.clone(), self.rope.fine.clone()]);
        all
    }

    /// Bytes of all weights and tables on a device.
    pub fn bytes(&self) -> u64 {
        self.tensors().iter().map(|t| t.spec().bytes()).sum()
    }
}

impl Layer {
    /// All its projections.
    pub fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// Tensors that are not ternary: norms, biases, dense and master matrices.
    pub fn floats(&self) -> Vec<&Tensor> {
        let mut all = vec![&self.attn_norm, &self.ffn_norm];
        for linear in self.linears() {
            match &linear.matrix {
                Matrix::Dense(dense) => all.extend(dense.tensors()),
                Matrix::Master(master) => all.push(master),
                Matrix::Ternary(_) => {}
            }
            all.extend(&linear.bias);
        }
        let norms = [&self.q_norm, &self.k_norm, &self.attn_sub_norm, &self.ffn_sub_norm, &self.ffn_post_norm];
        all.extend(norms.into_iter().flatten());
        all
    }

    /// All its tensors, each once.
    pub fn tensors(&self) -> Vec<Tensor> {
        let mut all: Vec<Tensor> = self.floats().into_iter().cloned().collect();
        for linear in self.linears() {
            // Of matrices that share a tensor the first names it.
            if let Matrix::Ternary(part) = &linear.matrix
                && part.index == 0
            {
                all.extend([part.codes.clone(), part.scales.clone()]);
            }
        }
        all
    }
}
