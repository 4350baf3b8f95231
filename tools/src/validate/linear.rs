//! One ternary projection of layer 0 alone: quantisation, codes, product.

use super::golden::Golden;
use super::report::Report;
use super::{bounds, compare};
use anyhow::{Result, bail};
use tritter_model::weights::{Layer, Linear, Matrix, Model};
use tritter_runtime::ops::quantize_int8::QuantizeInt8;
use tritter_runtime::ops::ternary_matmul::TernaryMatmul;
use tritter_runtime::{DType, Device, Graph, Tensor, reference};

/// Checks every projection of which `lin0.<name>.{x,act_scale,codes,y}` are there.
pub(super) fn check(model: &Model, device: &Device, golden: &Golden, report: &mut Report) -> Result<()> {
    let Some(layer) = model.layers.first() else {
        return Ok(());
    };
    for (name, linear) in named(layer) {
        let [x, scale, codes, y] = ["x", "act_scale", "codes", "y"].map(|part| format!("lin0.{name}.{part}"));
        if !golden.has(&[&x, &scale, &codes, &y]) {
            continue;
        }
        let shape = golden.shape(&x)?;
        let Some((&k, rows)) = shape.split_last() else { bail!("{}: `{x}` is a scalar", golden.path().display()) };
        let with = |last: usize| [rows, &[last]].concat();
        let input = golden.floats(&x, &shape)?;
        let Some(alone) = run(device, linear, &input, k)? else {
            continue;
        };
        let n = alone.y.len() / alone.scales.len().max(1);
        let golden_scales = golden.floats(&scale, &with(1))?;
        // Ours multiplies codes, the golden one divides them.
        let scales: Vec<f32> = alone.scales.iter().map(|s| 1.0 / s).collect();
        let equal = compare::differing(&alone.codes, golden.codes(&codes, &shape)?);
        report.golden(codes, equal, bounds::EQUAL);
        let error = compare::relative_to_largest(&scales, &golden_scales);
        report.golden(format!("{scale} (relative to the largest)"), error, bounds::LINEAR_RELATIVE);
        let error = compare::relative_to_largest(&alone.y, &golden.floats(&y, &with(n))?);
        report.golden(format!("{y} (relative to the largest)"), error, bounds::LINEAR_RELATIVE);
    }
    Ok(())
}

fn named(layer: &Layer) -> [(&'static str, &Linear); 7] {
    let Layer { q, k, v, o, gate, up, down, .. } = layer;
    [
        ("q_proj", q),
        ("k_proj", k),
        ("v_proj", v),
        ("o_proj", o),
        ("gate_proj", gate),
        ("up_proj", up),
        ("down_proj", down),
    ]
}

struct Alone {
    codes: Vec<i8>,
    scales: Vec<f32>,
    y: Vec<f32>,
}

/// Runs a projection on rows of `k` elements; `None` if it is not ternary.
fn run(device: &Device, linear: &Linear, input: &[f32], k: usize) -> Result<Option<Alone>> {
    let Matrix::Ternary(part) = &linear.matrix else {
        return Ok(None);
    };
    let (n, width) = (part.rows, part.codes.spec().cols());
    if k != width || input.is_empty() {
        bail!("the golden input of `{}` has rows of {k} elements, expected {width}", part.name);
    }
    let m = input.len() / k;
    let x = Tensor::input("x", [m, k], DType::F32);
    let q = Tensor::state("codes", [m, k], DType::I8);
    let s = Tensor::state("scales", [m], DType::F32);
    let y = Tensor::state("y", [m, n], DType::F32);
    let mut g = Graph::new("one projection");
    let [w, ws, xv, qv, sv, yv] = [&part.codes, &part.scales, &x, &q, &s, &y].map(|tensor| g.bind(tensor));
    g.record(QuantizeInt8 { m: m as u32, k: k as u32 }, &[xv, qv, sv])?;
    let w = g.rows(w, part.first, part.rows)?;
    let (scales, scale) = (part.scales.spec().elements() as u32, part.index as u32);
    let op = TernaryMatmul { scales, scale, ..TernaryMatmul::whole(m as u32, n as u32, k as u32) };
    g.record(op, &[w, ws, qv, sv, yv])?;
    let program = device.prepare(&g)?;
    device.write(&x, input)?;
    program.submit()?;
    let mut product: Vec<f32> = device.read(&y)?;
    if let Some(bias) = &linear.bias {
        let bias: Vec<f32> = device.read(bias)?;
        product.iter_mut().zip(bias.iter().cycle()).for_each(|(y, b)| *y += b);
    }
    let words: Vec<u32> = device.read(&q)?;
    let found = reference::decode(q.spec(), &words).into_iter().map(|code| code as i8).collect();
    Ok(Some(Alone { codes: found, scales: device.read(&s)?, y: product }))
}
