//! Finding adapters and opening one with all that it offers.

use super::Options;
use super::context::Context;
use super::trusted;
use crate::device::Caps;
use wgpu::{Adapter, Backend, CooperativeScalarType, DeviceType, Features};

/// Bytes of parameters that a row may have.
const PARAMS: u32 = 64;

#[cfg(not(target_arch = "wasm32"))]
const BACKENDS: wgpu::Backends = wgpu::Backends::VULKAN.union(wgpu::Backends::METAL).union(wgpu::Backends::DX12);
#[cfg(target_arch = "wasm32")]
const BACKENDS: wgpu::Backends = wgpu::Backends::BROWSER_WEBGPU;

/// All adapters: discrete, integrated, other, software last; within a kind in the system's order,
/// Vulkan before Direct3D 12.
pub(super) async fn enumerate() -> Vec<Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = BACKENDS;
    let instance = wgpu::Instance::new(descriptor);
    let mut found = instance.enumerate_adapters(BACKENDS).await;
    found.sort_by_key(|a| {
        let info = a.get_info();
        (rank(info.device_type), info.backend == Backend::Dx12)
    });
    found
}

fn rank(kind: DeviceType) -> u8 {
    match kind {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu | DeviceType::Other => 2,
        DeviceType::Cpu => 3,
    }
}

/// What an adapter can do.
pub(super) fn caps(index: usize, adapter: &Adapter) -> Caps {
    let (info, features, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
    let software = info.device_type == DeviceType::Cpu;
    let subgroups = features.contains(Features::SUBGROUP);
    let driver = [info.backend.to_string(), info.driver, info.driver_info];
    Caps {
        backend: "wgpu",
        id: format!("wgpu:{index}"),
        name: info.name,
        driver: driver.join(" ").trim().to_string(),
        software,
        discrete: info.device_type == DeviceType::DiscreteGpu,
        f16: features.contains(Features::SHADER_F16),
        subgroups: if subgroups { (info.subgroup_min_size, info.subgroup_max_size) } else { (0, 0) },
        matrices: matrices(adapter),
        max_binding: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) / 4 * 4,
        memory: if software { system_memory() } else { None },
        threads: 0,
        timestamps: features.contains(Features::TIMESTAMP_QUERY),
        ..Caps::default()
    }
}

/// Sides of the matrices that WGSL can name and the adapter multiplies, f16 operands with f32 sums.
///
/// Kernels that use them have workgroups of 128 and more, which must be whole subgroups, and up to 32 KiB of
/// workgroup memory. With subgroups of 4, Mesa's llvmpipe lists shapes although the feature itself is off; wgpu looks
/// at the list alone and would panic when such a device is opened. With subgroups of 16 it crashes in these kernels.
fn matrices(adapter: &Adapter) -> Vec<u32> {
    let (info, features) = (adapter.get_info(), adapter.features());
    let wanted = Features::EXPERIMENTAL_COOPERATIVE_MATRIX | Features::SHADER_F16 | Features::SUBGROUP;
    if !features.contains(wanted)
        || info.subgroup_min_size < 8
        || (info.device_type == DeviceType::Cpu && info.subgroup_max_size != 8)
        || info.subgroup_max_size > 128
        || adapter.limits().max_compute_workgroup_storage_size < 32 << 10
    {
        return Vec::new();
    }
    let shapes = adapter.cooperative_matrix_properties();
    let has = |side: u32| {
        shapes.iter().any(|shape| {
            [shape.m_size, shape.n_size, shape.k_size] == [side; 3]
                && shape.ab_type == CooperativeScalarType::F16
                && shape.cr_type == CooperativeScalarType::F32
        })
    };
    [8, 16].into_iter().filter(|&side| has(side)).collect()
}

/// A software adapter computes in the system's memory.
#[cfg(not(target_arch = "wasm32"))]
fn system_memory() -> Option<u64> {
    use sysinfo::{MemoryRefreshKind, RefreshKind, System};
    let wanted = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    Some(System::new_with_specifics(wanted).available_memory()).filter(|&bytes| bytes > 0)
}

#[cfg(target_arch = "wasm32")]
fn system_memory() -> Option<u64> {
    None
}

/// Opens an adapter; the error is the reason why there is none, a sentence.
pub(super) async fn open(options: Options) -> Result<Context, String> {
    let mut found = enumerate().await;
    if found.is_empty() {
        return Err(NO_ADAPTER.into());
    }
    let index = options.index.unwrap_or(0);
    if index >= found.len() {
        let names: Vec<String> = found.iter().map(|a| a.get_info().name).collect();
        return Err(format!("there is no adapter {index}; there are {}: {}", found.len(), names.join(", ")));
    }
    let adapter = found.swap_remove(index);
    let mut caps = caps(index, &adapter);
    if caps.software && !options.allow_software {
        return Err(format!("adapter {index}, {}, is software, which is slower than the CPU backend", caps.name));
    }
    let limits = adapter.limits();
    let mut wanted = Features::TIMESTAMP_QUERY | Features::SHADER_F16 | Features::SUBGROUP | Features::PIPELINE_CACHE;
    if !options.uniform_params && limits.max_immediate_size >= PARAMS {
        wanted |= Features::IMMEDIATES;
    }
    if !caps.matrices.is_empty() {
        wanted |= Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    }
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("tritter"),
        required_features: adapter.features() & wanted,
        required_limits: limits,
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        experimental_features: trusted::experimental(!caps.matrices.is_empty()),
        ..Default::default()
    };
    let (device, queue) =
        adapter.request_device(&descriptor).await.map_err(|e| format!("{} does not open: {e}", caps.name))?;
    caps.max_binding = caps.max_binding.min(options.max_binding.unwrap_or(u64::MAX) / 4 * 4);
    Ok(Context::new(device, queue, caps, adapter.get_info(), options))
}

#[cfg(not(target_arch = "wasm32"))]
const NO_ADAPTER: &str = "no Vulkan, Metal or Direct3D 12 adapter was found (is a graphics driver installed?)";
#[cfg(target_arch = "wasm32")]
const NO_ADAPTER: &str = "the browser offers no WebGPU adapter";
