//! An operand between sentinels: rows before and after it that nobody may touch.

use super::Placement;
use crate::device::Device;
use crate::dtype::Spec;
use crate::error::Result;
use crate::graph::{Graph, Value};
use crate::plan::ALIGN;
use crate::reference::encode;
use crate::tensor::Tensor;

const SENTINEL: u32 = 0x5EA1_ED00;
/// A quiet NaN as f32, NaN pairs as f16, and no code that a quantiser writes.
const POISON: u32 = 0x7FFE_FFFE;

/// An operand with guards.
pub(super) struct Guarded {
    pub(super) tensor: Tensor,
    spec: Spec,
    guard_rows: usize,
}

/// What was read back.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    /// Words of the operand.
    pub(super) words: Vec<u32>,
    /// Guards are intact.
    pub(super) intact: bool,
}

impl Guarded {
    pub(super) fn new(index: usize, spec: &Spec, placement: Placement) -> Self {
        let guard_rows = match placement {
            Placement::Aligned => (ALIGN / gcd(spec.row_bytes(), ALIGN)) as usize,
            Placement::Sliced => 1,
        };
        let group = spec.dtype.row_group();
        let guard_rows = guard_rows.next_multiple_of(group);
        let shape = [spec.rows().next_multiple_of(group) + 2 * guard_rows, spec.cols()];
        Guarded { tensor: Tensor::state(format!("operand {index}"), shape, spec.dtype), spec: spec.clone(), guard_rows }
    }

    pub(super) fn bind(&self, graph: &mut Graph) -> Result<Value> {
        let whole = graph.bind(&self.tensor);
        let rows = graph.rows(whole, self.guard_rows, self.spec.rows())?;
        graph.view(rows, self.spec.shape.clone())
    }

    /// Writes guards and values, or poison where there are none.
    pub(super) fn write(&self, device: &Device, values: Option<&[f64]>) -> Result<()> {
        let guard = vec![SENTINEL; self.guard_words()];
        let content = match values {
            Some(values) => encode(&self.spec, values),
            None => vec![POISON; self.spec.bytes() as usize / 4],
        };
        device.write(&self.tensor, &[guard.as_slice(), &content, &guard].concat())
    }

    pub(super) fn read(&self, device: &Device) -> Result<Stored> {
        let words: Vec<u32> = device.read(&self.tensor)?;
        let guard = self.guard_words();
        let intact = words[..guard].iter().chain(&words[words.len() - guard..]).all(|&w| w == SENTINEL);
        Ok(Stored { words: words[guard..words.len() - guard].to_vec(), intact })
    }

    fn guard_words(&self) -> usize {
        self.guard_rows * self.spec.row_bytes() as usize / 4
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
