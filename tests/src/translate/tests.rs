//! What naga's three back ends make of the features that kernels use.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use tritter_shaders::{ComposeError, UNIFORM_PARAMS, compose, compose_with, names, source};

/// What every shader may ask for; a variant that needs more is tested by its op.
fn common() -> Capabilities {
    Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP
}

const RMS_NORM: &str = r#"
//!include "reduce"
struct Params { rows: u32, width: u32, eps: f32, pad: u32 }
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn rms_norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let base = group.x * params.width;
    var square = 0.0;
    var largest = 0.0;
    for (var i = lid; i < params.width; i += WORKGROUP) {
        square += x[base + i] * x[base + i];
        largest = max(largest, abs(x[base + i]));
    }
    let mean = workgroup_sum(lid, square) / f32(params.width);
    let absmax = workgroup_max(lid, largest);
    let scale = inverseSqrt(mean + params.eps);
    for (var i = lid; i < params.width; i += WORKGROUP) {
        y[base + i] = x[base + i] * scale / absmax;
    }
}
"#;

fn rms_norm(defines: &[(&str, i64)]) -> String {
    let files = |name: &str| {
        if name == "rms_norm" { Some(RMS_NORM) } else { source(name) }
    };
    compose_with(&files, "rms_norm", defines).unwrap().text
}

/// A shader of one entry point with `body`, an input `a` and an output `o` of `u32`.
fn small(head: &str, body: &str) -> String {
    format!(
        "{head}\n@group(0) @binding(0) var<storage, read> a: array<u32>;\n\
         @group(0) @binding(1) var<storage, read_write> o: array<u32>;\n\
         @compute @workgroup_size(64)\nfn main(@builtin(local_invocation_index) i: u32) {{\n{body}\n}}\n"
    )
}

/// Whether SPIR-V `words` hold an instruction with this opcode.
fn has_opcode(words: &[u32], opcode: u32) -> bool {
    let mut at = 5; // after the header
    while let Some(&word) = words.get(at) {
        if word & 0xffff == opcode {
            return true;
        }
        at += (word >> 16).max(1) as usize;
    }
    false
}

#[test]
fn every_shader_without_variants_translates() {
    for name in names() {
        match compose(name, &[]) {
            Ok(shader) => {
                if let Err(error) = translate_everywhere(&shader.text, &[], common()) {
                    panic!("{name}: {error}\n{}", shader.text);
                }
            }
            // Its op's rows name its variants and drive them.
            Err(ComposeError::UndefinedName { .. }) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn an_override_sizes_the_workgroup_and_its_array_in_every_back_end() {
    for size in [64_u32, 256] {
        let overrides = [("WORKGROUP", f64::from(size))];
        let all = translate_everywhere(&rms_norm(&[]), &overrides, common()).unwrap();
        assert!(all.hlsl.contains(&format!("groupshared float scratch[{size}]")), "{}", all.hlsl);
        assert!(all.hlsl.contains(&format!("[numthreads({size}, 1, 1)]")), "{}", all.hlsl);
        assert!(all.msl.contains("threadgroup"), "{}", all.msl);
        assert!(all.msl.contains(&format!("inner[{size}]")), "{}", all.msl);
        // OpExecutionMode LocalSize size 1 1; OpTypeArray exists.
        assert!(all.spirv_words.windows(4).any(|w| w == [17, size, 1, 1]));
        assert!(has_opcode(&all.spirv_words, 28));
    }
}

#[test]
fn overrides_without_value_or_declaration_are_refused() {
    let text = small("override N: u32;", "o[i] = N;");
    let error = translate_everywhere(&text, &[], common()).unwrap_err();
    assert!(error.contains("Missing value") && error.contains("'N'"), "{error}");
    let error = translate_everywhere(&text, &[("N", 1.0), ("M", 1.0)], common()).unwrap_err();
    assert!(error.contains("'M' not found"), "{error}");
    translate_everywhere(&text, &[("N", 1.0)], common()).unwrap();
}

#[test]
fn parameters_translate_as_immediates_and_as_a_uniform() {
    let immediate = translate_everywhere(&rms_norm(&[]), &[], common()).unwrap();
    assert!(immediate.hlsl.contains("ConstantBuffer<Params> params: register(b0, space8)"), "{}", immediate.hlsl);
    assert!(immediate.msl.contains("constant Params& params [[buffer(2)]]"), "{}", immediate.msl);
    // OpTypePointer to storage class PushConstant (9).
    let has_class = |words: &[u32], class| words.windows(3).any(|w| w[0] == (4 << 16 | 32) && w[2] == class);
    assert!(has_class(&immediate.spirv_words, 9));

    let text = rms_norm(&[(UNIFORM_PARAMS, 1)]);
    let uniform = translate_everywhere(&text, &[], Capabilities::empty()).unwrap();
    assert!(uniform.hlsl.contains("cbuffer params : register(b0, space1)"), "{}", uniform.hlsl);
    assert!(!has_class(&uniform.spirv_words, 9));

    let error = translate_everywhere(&rms_norm(&[]), &[], Capabilities::empty()).unwrap_err();
    assert!(error.starts_with("validating"), "{error}");
}

#[test]
fn the_packed_dot_product_is_native_where_the_target_has_it() {
    let head = "requires packed_4x8_integer_dot_product;";
    let text = small(head, "o[i] = u32(dot4I8Packed(a[i], a[i + 1u]));");
    let shader = Shader::new(&text, &[], common()).unwrap();
    // OpSDotKHR is 4450; without the capability naga multiplies lane by lane.
    assert!(has_opcode(&shader.spirv((1, 3), true).unwrap(), 4450));
    assert!(!has_opcode(&shader.spirv((1, 3), false).unwrap(), 4450));
    assert!(shader.hlsl(hlsl::ShaderModel::V6_4).unwrap().contains("dot4add_i8packed"));
    assert!(!shader.hlsl(HLSL_FLOOR).unwrap().contains("dot4add"));
    shader.msl(MSL_FLOOR).unwrap();
}

#[test]
fn f16_needs_its_enable_line_and_its_capability() {
    let body = "o[i] = u32(f32(f16(a[i]) * 0.5h));";
    let enabled = small("enable f16;", body);
    let all = translate_everywhere(&enabled, &[], common()).unwrap();
    assert!(all.msl.contains("static_cast<half>"), "{}", all.msl);
    assert!(all.hlsl.contains("half("), "{}", all.hlsl);
    let error = translate_everywhere(&small("", body), &[], common()).unwrap_err();
    assert!(error.starts_with("parsing"), "{error}");
    let error = translate_everywhere(&enabled, &[], Capabilities::IMMEDIATES).unwrap_err();
    assert!(error.starts_with("validating"), "{error}");
}

#[test]
fn subgroup_operations_work_and_their_enable_line_does_not() {
    let body =
        "o[i] = subgroupAdd(a[i]) + subgroupMax(a[i]) + subgroupShuffleXor(a[i], 1u) + subgroupBroadcastFirst(a[i]);";
    let all = translate_everywhere(&small("", body), &[], common()).unwrap();
    assert!(all.msl.contains("simd_sum"), "{}", all.msl);
    assert!(all.hlsl.contains("WaveActiveSum"), "{}", all.hlsl);
    assert!(has_opcode(&all.spirv_words, 349), "OpGroupNonUniformIAdd");

    // Browsers want the line, so a shader guards it with an //!if for them.
    let error = translate_everywhere(&small("enable subgroups;", body), &[], common()).unwrap_err();
    assert!(error.starts_with("parsing"), "{error}");
    let error = translate_everywhere(&small("", body), &[], Capabilities::IMMEDIATES).unwrap_err();
    assert!(error.starts_with("validating"), "{error}");
}

#[test]
fn a_subgroup_barrier_has_no_hlsl() {
    let caps = common() | Capabilities::SUBGROUP_BARRIER;
    let shader = Shader::new(&small("", "subgroupBarrier();"), &[], caps).unwrap();
    shader.spirv(SPIRV_FLOOR, true).unwrap();
    shader.msl(MSL_FLOOR).unwrap();
    let error = shader.hlsl(HLSL_FLOOR).unwrap_err();
    assert!(error.starts_with("HLSL"), "{error}");
}

const MATRICES: &str = r#"
enable f16;
enable wgpu_cooperative_matrix;
@group(0) @binding(0) var<storage, read> a: array<f16>;
@group(0) @binding(1) var<storage, read> b: array<f16>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
@compute @workgroup_size(32)
fn main() {
    let left = coopLoadT<coop_mat8x8<f16, A>>(&a[0], 8u);
    let right = coopLoad<coop_mat8x8<f16, B>>(&b[0], 8u);
    let sum = coopLoadT<coop_mat8x8<f32, C>>(&c[0], 8u);
    coopStoreT(coopMultiplyAdd(left, right, sum), &c[0], 8u);
}
"#;

#[test]
fn cooperative_matrices_have_spirv_and_metal_but_no_hlsl() {
    let caps = common() | Capabilities::COOPERATIVE_MATRIX;
    let shader = Shader::new(MATRICES, &[], caps).unwrap();
    // OpCooperativeMatrixMulAddKHR
    assert!(has_opcode(&shader.spirv((1, 6), true).unwrap(), 4459));
    assert!(shader.msl(MSL_FLOOR).unwrap().contains("simdgroup_half8x8"));
    assert!(shader.msl((2, 2)).is_err());
    let error = shader.hlsl(hlsl::ShaderModel::V6_8).unwrap_err();
    assert!(error.starts_with("HLSL"), "{error}");
}
