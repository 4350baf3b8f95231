//! What the gradients of attention need of a row: `(lse, Σ_d do·o)`.
//!
//! The second is the inner product of the weights with their gradients (Dao 2023, algorithm 2).

use crate::cpu::parallel;
use crate::op::{Args, Case, Cuda, Gradient, Kernel, Launch, Needs, Size, Tolerance, Wgsl};
use crate::ops::cuda_rows;
use crate::reference::RefTensor;

/// Parameters.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct AttentionStats {
    /// Query tokens.
    pub m: u32,
    /// Query heads.
    pub h: u32,
    /// Elements of a head.
    pub d: u32,
}

impl Kernel for AttentionStats {
    const NAME: &'static str = "attention_stats";
    const SIGNATURE: &'static str = "o[m,h,d]:f32|bf16 do[m,h,d]:f32|bf16 lse[m,h]:f32 -> stats[m,h,2]:f32";
    const GRADIENT: Gradient = Gradient::None("it is a part of a gradient");
    const WGSL: &'static [Wgsl<Self>] = &[Wgsl {
        name: "plain",
        file: "attention_stats",
        needs: Needs::NONE,
        defines: &[],
        when: |_, _| true,
        launch: |op, _| Launch::groups((op.m as usize * op.h as usize).div_ceil(64)),
    }];

    const CUDA: &'static [Cuda<Self>] = &[
        Cuda {
            name: "vector",
            entries: &["attention_stats_vector_f32", "attention_stats_vector_bf16"],
            hot: true,
            align: 16,
            when: |op, t| cuda_rows::whole_packs(t[0].dtype, op.d),
            launch: |op, t, _| {
                let entry = cuda_rows::entry(t[0].dtype, ["attention_stats_vector_f32", "attention_stats_vector_bf16"]);
                cuda_rows::rows(entry, op.m as usize * op.h as usize, op.d, t[0].dtype)
            },
        },
        Cuda {
            name: "plain",
            entries: &["attention_stats_f32", "attention_stats_bf16"],
            hot: true,
            align: 4,
            when: |_, _| true,
            launch: |op, t, _| {
                let entry = cuda_rows::entry(t[0].dtype, ["attention_stats_f32", "attention_stats_bf16"]);
                cuda_rows::rows(entry, op.m as usize * op.h as usize, op.d, t[0].dtype)
            },
        },
    ];

    fn dims(&self) -> Vec<(&'static str, usize)> {
        vec![("m", self.m as usize), ("h", self.h as usize), ("d", self.d as usize)]
    }

    fn reference(&self, t: &mut [RefTensor]) {
        let [o, d_o, lse, stats] = t else { return };
        for (i, lse) in lse.data.iter().enumerate() {
            stats.data[2 * i] = *lse;
            stats.data[2 * i + 1] = o.row(i).iter().zip(d_o.row(i)).map(|(a, b)| a * b).sum();
        }
    }

    fn cpu(&self, mut args: Args<'_>) {
        let d = self.d as usize;
        let (o, d_o, lse) = (args.read::<f32>(0), args.read::<f32>(1), args.read::<f32>(2));
        parallel::rows(args.write::<f32>(3), 2, 2 * d, |i, stats| {
            let (o, d_o) = (&o[i * d..(i + 1) * d], &d_o[i * d..(i + 1) * d]);
            stats[0] = lse[i];
            stats[1] = parallel::sum(d, |l| o[l] * d_o[l]);
        });
    }

    fn operations(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.h) * u64::from(self.d)
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::Float { max: 4e-6, why: "a sum of d products in f32, of terms larger than the sum" }
    }

    fn cases(size: Size) -> Vec<Case> {
        let sizes: &[[u32; 3]] = match size {
            Size::Small => &[[2, 2, 4]],
            Size::Ragged => &[[1, 1, 2], [5, 3, 24], [67, 5, 256], [3, 2, 64], [2, 2, 520]],
            Size::Bench => &[[512, 12, 64]],
        };
        let case = |&[m, h, d]: &[u32; 3]| Case::new(format!("{m} tokens, {h} heads of {d}"), AttentionStats { m, h, d });
        sizes.iter().map(case).collect()
    }
}
