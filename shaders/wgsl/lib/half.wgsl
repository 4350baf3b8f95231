// The bits of an f32 to those of the nearest f16. Written out because WGSL leaves
// the rounding of pack2x16float open.
fn half_bits(v: u32) -> u32 {
    let sign = (v >> 16u) & 0x8000u;
    let a = v & 0x7fffffffu;
    if a > 0x7f800000u {
        return sign | 0x7e00u | ((a >> 13u) & 0x3ffu);
    }
    // From 65520 on the nearest is infinity.
    if a >= 0x477ff000u {
        return sign | 0x7c00u;
    }
    if a < 0x38800000u {
        // Below 2^-14: a multiple of 2^-24. At most 2^-25 rounds to zero.
        if a <= 0x33000000u {
            return sign;
        }
        let shift = 126u - (a >> 23u);
        let mantissa = (a & 0x7fffffu) | 0x800000u;
        let odd = (mantissa >> shift) & 1u;
        return sign | ((mantissa + (1u << (shift - 1u)) - 1u + odd) >> shift);
    }
    let odd = (a >> 13u) & 1u;
    return sign | ((a - 0x38000000u + 0xfffu + odd) >> 13u);
}
