//! Every shader in every variant that a row can choose is valid for Vulkan, Metal and D3D12, those on
//! cooperative matrices for the first two. Needs no GPU.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use tritter_runtime::op::{Choice, Row, Size};
use tritter_tests::translate::{translate_everywhere, translate_matrix};

fn capabilities(choice: &Choice) -> naga::valid::Capabilities {
    use naga::valid::Capabilities;
    let mut capabilities = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SHADER_FLOAT16, choice.needs.f16);
    capabilities.set(Capabilities::SUBGROUP, choice.needs.subgroups);
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, choice.needs.matrix != 0);
    capabilities
}

/// All different specialisations that the rows' cases of every size lead to.
fn choices() -> BTreeMap<String, Choice> {
    let mut all = BTreeMap::new();
    for row in Row::all() {
        for size in [Size::Small, Size::Ragged, Size::Bench] {
            for case in (row.cases)(size) {
                for choice in case.op.wgsl(&case.specs()) {
                    let key =
                        format!("{} {} {:?} {:?}", row.name, choice.file, choice.defines, choice.launch.overrides);
                    all.insert(key, choice);
                }
            }
        }
    }
    all
}

#[test]
fn every_variant_translates_for_vulkan_metal_and_d3d12() {
    let all = choices();
    assert!(all.len() > Row::all().len());
    for (key, choice) in &all {
        for uniform in [0, 1] {
            let mut defines = choice.defines.to_vec();
            defines.push((tritter_shaders::UNIFORM_PARAMS, uniform));
            let composed = tritter_shaders::compose(choice.file, &defines).unwrap_or_else(|e| panic!("{key}: {e}"));
            let (overrides, matrix) = (&choice.launch.overrides, choice.needs.matrix);
            if matrix != 0 {
                let words = translate_matrix(&composed.text, overrides, capabilities(choice), matrix);
                assert!(!words.unwrap_or_else(|e| panic!("{key}: {e}")).is_empty(), "{key}");
                continue;
            }
            let made = translate_everywhere(&composed.text, overrides, capabilities(choice));
            let made = made.unwrap_or_else(|e| panic!("{key}: {e}"));
            assert!(!made.spirv_words.is_empty() && !made.msl.is_empty() && !made.hlsl.is_empty(), "{key}");
        }
    }
}

#[test]
fn every_shader_file_belongs_to_a_row() {
    let used: BTreeSet<&str> = choices().values().map(|choice| choice.file).collect();
    let files: BTreeSet<&str> = tritter_shaders::names().collect();
    assert_eq!(files, used);
}

#[test]
fn launches_stay_within_what_every_device_has() {
    for (key, choice) in choices() {
        assert!(choice.launch.groups.iter().all(|&g| (1..=65_535).contains(&g)), "{key}: {:?}", choice.launch.groups);
        for (name, value) in &choice.launch.overrides {
            assert!(*name != "WORKGROUP" || *value <= 256.0, "{key}");
        }
    }
}
