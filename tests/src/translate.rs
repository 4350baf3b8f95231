//! Translates WGSL as wgpu does on Vulkan, Metal and Direct3D 12, without a device.
//!
//! Text is parsed, validated and its `override`s are set; then each back end
//! validates once more against what it supports itself, because naga's writers do
//! not refuse all that they cannot do. A translation is not yet proof: naga knows
//! nothing of what a driver's own compiler makes of it.

use naga::back::{hlsl, msl, pipeline_constants::process_overrides, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, StorageAccess};

/// SPIR-V version of Vulkan 1.1.
pub const SPIRV_FLOOR: (u8, u8) = (1, 3);
/// Metal version that knows every feature used here, 8×8 matrices among them.
pub const MSL_FLOOR: (u8, u8) = (2, 3);
/// Shader model that every Direct3D 12 device of wgpu's has.
pub const HLSL_FLOOR: hlsl::ShaderModel = hlsl::ShaderModel::V6_0;

/// One shader for each back end.
#[derive(Debug)]
pub struct Translated {
    /// SPIR-V 1.3.
    pub spirv_words: Vec<u32>,
    /// Metal Shading Language 2.3.
    pub msl: String,
    /// HLSL for shader model 6.0.
    pub hlsl: String,
}

/// Translates `text` for all three back ends at their floors.
///
/// # Errors
/// The stage or back end that refuses, with the compiler's message and the lines of
/// `text` that it blames.
pub fn translate_everywhere(text: &str, overrides: &[(&str, f64)], caps: Capabilities) -> Result<Translated, String> {
    let shader = Shader::new(text, overrides, caps)?;
    Ok(Translated {
        spirv_words: shader.spirv(SPIRV_FLOOR, true)?,
        msl: shader.msl(MSL_FLOOR)?,
        hlsl: shader.hlsl(HLSL_FLOOR)?,
    })
}

/// Translates `text`, which uses cooperative matrices of a side, for the back ends that have them: Vulkan, and Metal
/// where they are of 8 × 8. Gives the SPIR-V words.
///
/// # Errors
/// As [`translate_everywhere`].
pub fn translate_matrix(
    text: &str,
    overrides: &[(&str, f64)],
    caps: Capabilities,
    side: u32,
) -> Result<Vec<u32>, String> {
    let shader = Shader::new(text, overrides, caps)?;
    if side == 8 {
        shader.msl(MSL_FLOOR)?;
    }
    shader.spirv(SPIRV_FLOOR, true)
}

/// A valid shader whose overrides are set.
#[derive(Debug)]
pub struct Shader {
    text: String,
    module: Module,
    caps: Capabilities,
}

impl Shader {
    /// Parses and validates `text` with `caps`, and sets `overrides` by name.
    ///
    /// # Errors
    /// The stage that refuses: an override that `text` does not declare, or one
    /// that has neither a value nor a default, is refused too.
    pub fn new(text: &str, overrides: &[(&str, f64)], caps: Capabilities) -> Result<Self, String> {
        let module =
            naga::front::wgsl::parse_str(text).map_err(|error| format!("parsing: {}", error.emit_to_string(text)))?;
        let info = validate(&module, caps, text).map_err(|e| format!("validating: {e}"))?;
        let mut constants = naga::back::PipelineConstants::default();
        for &(name, value) in overrides {
            constants.insert(name.to_owned(), value);
        }
        let (module, _) = process_overrides(&module, &info, None, &constants)
            .map_err(|error| format!("setting overrides: {error}"))?;
        Ok(Self { text: text.to_owned(), module: module.into_owned(), caps })
    }

    /// SPIR-V words. Without `native_dot`, the device lacks the integer dot product.
    ///
    /// # Errors
    /// A feature beyond the back end, or the writer's message.
    pub fn spirv(&self, version: (u8, u8), native_dot: bool) -> Result<Vec<u32>, String> {
        let info = self.check("SPIR-V", spv::supported_capabilities())?;
        let options =
            spv::Options { lang_version: version, capabilities: (!native_dot).then(without_dot), ..Default::default() };
        spv::write_vec(&self.module, &info, &options, None).map_err(|e| format!("SPIR-V: {e}"))
    }

    /// Metal text. Buffers take slots in the order of (group, binding), then the
    /// immediates, then the buffer of run-time array sizes.
    ///
    /// # Errors
    /// A feature beyond the back end, or the writer's message.
    pub fn msl(&self, version: (u8, u8)) -> Result<String, String> {
        let info = self.check("MSL", msl::supported_capabilities())?;
        let slots = self.metal_slots()?;
        let options = msl::Options {
            lang_version: version,
            per_entry_point_map: self
                .module
                .entry_points
                .iter()
                .map(|entry| (entry.name.clone(), slots.clone()))
                .collect(),
            fake_missing_bindings: false,
            ..Default::default()
        };
        let pipeline = msl::PipelineOptions::default();
        let (text, translation) =
            msl::write_string(&self.module, &info, &options, &pipeline).map_err(|error| format!("MSL: {error}"))?;
        for entry in translation.entry_point_names {
            entry.map_err(|error| format!("MSL: {error}"))?;
        }
        Ok(text)
    }

    /// HLSL text; the immediates stand at b0 in a space after all groups.
    ///
    /// # Errors
    /// A feature beyond the back end, or the writer's message.
    pub fn hlsl(&self, model: hlsl::ShaderModel) -> Result<String, String> {
        let info = self.check("HLSL", hlsl::supported_capabilities())?;
        let options = hlsl::Options {
            shader_model: model,
            immediates_target: Some(hlsl::BindTarget { space: 8, ..Default::default() }),
            ..Default::default()
        };
        let pipeline = hlsl::PipelineOptions::default();
        let mut text = String::new();
        let written = hlsl::Writer::new(&mut text, &options, &pipeline)
            .write(&self.module, &info, None)
            .map_err(|error| format!("HLSL: {error}"))?;
        for entry in written.entry_point_names {
            entry.map_err(|error| format!("HLSL: {error}"))?;
        }
        Ok(text)
    }

    fn check(&self, target: &str, supported: Capabilities) -> Result<ModuleInfo, String> {
        validate(&self.module, self.caps & supported, &self.text).map_err(|error| format!("{target}: {error}"))
    }

    fn metal_slots(&self) -> Result<msl::EntryPointResources, String> {
        let mut resources = msl::EntryPointResources::default();
        for (_, global) in self.module.global_variables.iter() {
            let Some(binding) = global.binding else {
                continue;
            };
            let mutable = matches!(global.space,
                AddressSpace::Storage { access } if access.contains(StorageAccess::STORE));
            let target = msl::BindTarget { mutable, ..Default::default() };
            resources.resources.insert(binding, target);
        }
        let mut slots = 0..31_u8; // Metal's buffer argument table
        let mut next = || slots.next().ok_or("MSL: more than 31 buffers");
        for target in resources.resources.values_mut() {
            target.buffer = Some(next()?);
        }
        resources.immediates_buffer = Some(next()?);
        resources.sizes_buffer = Some(next()?);
        Ok(resources)
    }
}

fn validate(module: &Module, caps: Capabilities, text: &str) -> Result<ModuleInfo, String> {
    Validator::new(ValidationFlags::all(), caps).validate(module).map_err(|error| error.emit_to_string(text))
}

/// SPIR-V capabilities of a device with subgroups and f16 but no integer dot product.
fn without_dot<S: FromIterator<naga::back::spv::Capability>>() -> S {
    use naga::back::spv::Capability as C;
    [
        C::Shader,
        C::Float16,
        C::StorageBuffer16BitAccess,
        C::UniformAndStorageBuffer16BitAccess,
        C::GroupNonUniform,
        C::GroupNonUniformVote,
        C::GroupNonUniformBallot,
        C::GroupNonUniformArithmetic,
        C::GroupNonUniformShuffle,
        C::GroupNonUniformShuffleRelative,
        C::GroupNonUniformQuad,
    ]
    .into_iter()
    .collect()
}

#[cfg(test)]
mod tests;
