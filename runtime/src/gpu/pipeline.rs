//! Pipelines, built once for each (file, defines, overrides, operand access, parameter size).

use super::Options;
use super::context::{Context, message};
use super::trusted;
use crate::error::{Error, Result};
use crate::op::{Choice, Op};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use wgpu::{BindGroupLayoutEntry, BindingType, BufferBindingType, BufferSize, ShaderStages};

/// Bytes of the uniform that stands in for immediates: the most that a row's parameters take.
pub(super) const UNIFORM_BYTES: u64 = 64;

/// A pipeline with the layout of its operands.
pub(super) struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) operands: wgpu::BindGroupLayout,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ModuleKey {
    file: &'static str,
    defines: &'static [(&'static str, i64)],
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    module: ModuleKey,
    /// Values as bits.
    overrides: Vec<(&'static str, u64)>,
    writes: Vec<bool>,
    params: u32,
}

/// All pipelines of a device.
pub(super) struct Pipelines {
    modules: Mutex<HashMap<ModuleKey, wgpu::ShaderModule>>,
    built: Mutex<HashMap<Key, Arc<Pipeline>>>,
    /// Layout of the parameter uniform.
    pub(super) params: wgpu::BindGroupLayout,
    #[cfg(not(target_arch = "wasm32"))]
    file: Option<super::pipeline_file::PipelineFile>,
}

impl Pipelines {
    pub(super) fn new(device: &wgpu::Device, info: &wgpu::AdapterInfo, options: &Options) -> Pipelines {
        #[cfg(target_arch = "wasm32")]
        let _ = (info, options);
        let entry = BindGroupLayoutEntry {
            binding: 0,
            visibility: ShaderStages::COMPUTE,
            ty: BindingType::Buffer {
                ty: BufferBindingType::Uniform,
                has_dynamic_offset: true,
                min_binding_size: BufferSize::new(UNIFORM_BYTES),
            },
            count: None,
        };
        Pipelines {
            modules: Mutex::default(),
            built: Mutex::default(),
            params: device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some("params"),
                entries: &[entry],
            }),
            #[cfg(not(target_arch = "wasm32"))]
            file: super::pipeline_file::PipelineFile::open(device, info, options),
        }
    }

    /// Pipelines built so far.
    pub(super) fn count(&self) -> usize {
        self.built.lock().len()
    }

    /// Drops shader modules and the pipelines that no program holds; gives their number.
    pub(super) fn clear(&self) -> usize {
        let modules = std::mem::take(&mut *self.modules.lock()).len();
        let mut built = self.built.lock();
        let before = built.len();
        built.retain(|_, pipeline| Arc::strong_count(pipeline) > 1);
        modules + before - built.len()
    }

    /// Keeps what was compiled for the next start of the program.
    pub(super) fn save(&self) {
        #[cfg(not(target_arch = "wasm32"))]
        if let Some(file) = &self.file {
            file.save(self.count());
        }
    }

    /// The pipeline of a variant.
    pub(super) fn get(&self, context: &Context, op: &Op, choice: &Choice) -> Result<Arc<Pipeline>> {
        let operands = &op.row().signature.operands;
        let key = Key {
            module: ModuleKey { file: choice.file, defines: choice.defines },
            overrides: choice.launch.overrides.iter().map(|(n, v)| (*n, v.to_bits())).collect(),
            writes: operands.iter().map(|o| o.access.writes()).collect(),
            params: op.params().len() as u32,
        };
        let mut built = self.built.lock();
        if let Some(pipeline) = built.get(&key) {
            return Ok(pipeline.clone());
        }
        let module = self.module(context, &key.module)?;
        let pipeline = Arc::new(self.build(context, &module, &key, &choice.launch.overrides)?);
        built.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn module(&self, context: &Context, key: &ModuleKey) -> Result<wgpu::ShaderModule> {
        let mut modules = self.modules.lock();
        if let Some(module) = modules.get(key) {
            return Ok(module.clone());
        }
        let mut defines = vec![(tritter_shaders::UNIFORM_PARAMS, i64::from(!context.immediates))];
        defines.extend(key.defines);
        let composed = tritter_shaders::compose(key.file, &defines).map_err(|e| context.error(e.to_string()))?;
        let create = || trusted::shader_module(&context.device, key.file, &composed.text);
        let (module, error) = context.scoped(create);
        if let Some(error) = error {
            return Err(shader_error(context, key.file, &module, &composed, &error));
        }
        modules.insert(key.clone(), module.clone());
        Ok(module)
    }

    fn build(
        &self,
        context: &Context,
        module: &wgpu::ShaderModule,
        key: &Key,
        overrides: &[(&'static str, f64)],
    ) -> Result<Pipeline> {
        let entries: Vec<BindGroupLayoutEntry> = key.writes.iter().enumerate().map(|(i, &w)| storage(i, w)).collect();
        let label = Some(key.module.file);
        let create = || {
            let device = &context.device;
            let operands =
                device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
            let groups = [Some(&operands), Some(&self.params)];
            let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label,
                bind_group_layouts: if context.immediates { &groups[..1] } else { &groups },
                immediate_size: if context.immediates { key.params } else { 0 },
            });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label,
                layout: Some(&layout),
                module,
                entry_point: None,
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: overrides,
                    // Rows write workgroup memory before they read it.
                    zero_initialize_workgroup_memory: false,
                },
                cache: self.cache(),
            });
            Pipeline { pipeline, operands }
        };
        let (pipeline, error) = context.scoped(create);
        match error {
            None => Ok(pipeline),
            Some(error) => {
                let message = message(&error);
                Err(context.error(format!("wgsl/{}.wgsl with {overrides:?}: {message}", key.module.file)))
            }
        }
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn cache(&self) -> Option<&wgpu::PipelineCache> {
        self.file.as_ref().map(|f| f.cache())
    }

    #[cfg(target_arch = "wasm32")]
    fn cache(&self) -> Option<&wgpu::PipelineCache> {
        None
    }
}

fn storage(binding: usize, writes: bool) -> BindGroupLayoutEntry {
    BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: ShaderStages::COMPUTE,
        ty: BindingType::Buffer {
            ty: BufferBindingType::Storage { read_only: !writes },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }
}

/// The compiler's complaints at the lines where they were written.
#[cfg(not(target_arch = "wasm32"))]
fn shader_error(
    context: &Context,
    file: &str,
    module: &wgpu::ShaderModule,
    composed: &tritter_shaders::Composed,
    error: &wgpu::Error,
) -> Error {
    let info = pollster::block_on(module.get_compilation_info());
    let lines = info.messages.iter().map(|m| match m.location {
        Some(location) => composed.explain(&m.message, location.line_number as usize),
        None => m.message.clone(),
    });
    let lines = lines.collect::<Vec<_>>().join("\n");
    let lines = if lines.is_empty() { message(error) } else { lines };
    context.error(format!("shader wgsl/{file}.wgsl does not compile: {lines}"))
}

#[cfg(target_arch = "wasm32")]
fn shader_error(
    context: &Context,
    file: &str,
    _: &wgpu::ShaderModule,
    _: &tritter_shaders::Composed,
    error: &wgpu::Error,
) -> Error {
    context.error(format!("shader wgsl/{file}.wgsl does not compile: {}", message(error)))
}
