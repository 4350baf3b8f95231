// Sums over teams: LANES invocations, a power of two, of a workgroup of up to 256. The order is fixed (a tree).
// FLOAT: sums are f32, else i32. SUBGROUPS: subgroups of any size add first, and workgroup memory sees what
// they leave; lid is then subgroup_id * subgroup_size + subgroup_invocation_id, which puts a team's
// invocations side by side however the device numbers them.

override LANES: u32 = 32u;

//!if FLOAT
alias Sum = vec4<f32>;
//!else
alias Sum = vec4<i32>;
//!endif

var<workgroup> partial: array<Sum, 256>;

// The sum over the team, for its first invocation; size is the subgroup size, or 1 without SUBGROUPS. All
// invocations of the workgroup call together.
fn team_sum(lid: u32, size: u32, v: Sum) -> Sum {
    var sum = v;
//!if SUBGROUPS
    for (var stride = min(LANES, size) / 2u; stride > 0u; stride >>= 1u) {
        sum += subgroupShuffleXor(sum, stride);
    }
//!endif
    if LANES > size {
        // Others may still read what an earlier call left.
        workgroupBarrier();
        partial[lid] = sum;
        for (var stride = LANES / 2u; stride >= size; stride >>= 1u) {
            workgroupBarrier();
            if lid % LANES < stride {
                partial[lid] += partial[lid + stride];
            }
        }
        sum = partial[lid];
    }
    return sum;
}
