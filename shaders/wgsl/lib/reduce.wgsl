// Reductions over one workgroup of WORKGROUP invocations in one row (x).
// WORKGROUP is a power of two, and lid is the local invocation index, 0..WORKGROUP.
// All invocations call together; all get the same value, which is uniform.
// The order is fixed (a tree, halves added pairwise), so the bits repeat. A call
// ends with a barrier, so another may follow at once.
// Costs 4 * WORKGROUP bytes of workgroup memory and log2(WORKGROUP) + 2 barriers.

override WORKGROUP: u32 = 256u;

var<workgroup> scratch: array<f32, WORKGROUP>;

fn workgroup_sum(lid: u32, v: f32) -> f32 {
    scratch[lid] = v;
    for (var stride = WORKGROUP / 2u; stride > 0u; stride >>= 1u) {
        workgroupBarrier();
        if lid < stride {
            scratch[lid] += scratch[lid + stride];
        }
    }
    // Has a barrier before and after the load.
    return workgroupUniformLoad(&scratch[0]);
}

// What max makes of a NaN is open in WGSL.
fn workgroup_max(lid: u32, v: f32) -> f32 {
    scratch[lid] = v;
    for (var stride = WORKGROUP / 2u; stride > 0u; stride >>= 1u) {
        workgroupBarrier();
        if lid < stride {
            scratch[lid] = max(scratch[lid], scratch[lid + stride]);
        }
    }
    return workgroupUniformLoad(&scratch[0]);
}
