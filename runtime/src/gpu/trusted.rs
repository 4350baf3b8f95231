//! The three wgpu calls that trust their caller.
#![allow(unsafe_code)]

/// Creates a shader module, without run-time checks in release builds: bounding every loop and
/// index alone has cost a factor of 100 on some drivers.
pub(super) fn shader_module(device: &wgpu::Device, label: &str, text: &str) -> wgpu::ShaderModule {
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(label), source: wgpu::ShaderSource::Wgsl(text.into()) };
    if cfg!(debug_assertions) {
        return device.create_shader_module(descriptor);
    }
    // SAFETY: the text is composed from the files embedded in `tritter-shaders`, never from a
    // user's file. Their loops are bounded by parameters and overrides, divisors are extents that
    // `Spec::check` keeps above zero, and indices stay inside operands whose sizes recording has
    // checked against those parameters. Tests run every variant of every row with checks on.
    unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
}

/// Leave to use features that wgpu calls experimental, if any is wanted: cooperative matrices.
pub(super) fn experimental(wanted: bool) -> wgpu::ExperimentalFeatures {
    if !wanted {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: wgpu asks its user to accept that what lies behind such features is young. Cooperative matrices
    // are used by shaders of `tritter-shaders` alone, on shapes that the adapter lists, by whole subgroups, and
    // only read and write workgroup memory inside arrays of fixed size. Nothing else is experimental here.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// Creates a pipeline cache from what [`wgpu::PipelineCache::get_data`] gave earlier.
#[cfg(not(target_arch = "wasm32"))]
pub(super) fn pipeline_cache(device: &wgpu::Device, data: Option<&[u8]>) -> wgpu::PipelineCache {
    let descriptor = wgpu::PipelineCacheDescriptor { label: Some("tritter"), data, fallback: true };
    // SAFETY: `data` was written by this program under the adapter's key into the user's own cache
    // folder and is used only if its checksum holds; wgpu and the driver check the header and
    // start empty if another driver wrote it.
    unsafe { device.create_pipeline_cache(&descriptor) }
}
