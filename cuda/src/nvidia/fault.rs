//! What the driver's error codes mean for us.

use crate::driver::Fault;
use cudarc::driver::sys::CUresult;

/// Errors after which the device or its context answers nothing else any more ("sticky" ones), or
/// after which nothing is known to work.
const LOST: &[CUresult] = &[
    CUresult::CUDA_ERROR_DEINITIALIZED,
    CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE,
    CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
    CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE,
    CUresult::CUDA_ERROR_CONTAINED,
    CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
    CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
    CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
    CUresult::CUDA_ERROR_ASSERT,
    CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
    CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
    CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
    CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE,
    CUresult::CUDA_ERROR_INVALID_PC,
    CUresult::CUDA_ERROR_LAUNCH_FAILED,
    CUresult::CUDA_ERROR_TENSOR_MEMORY_LEAK,
    CUresult::CUDA_ERROR_MPS_RPC_FAILURE,
    CUresult::CUDA_ERROR_MPS_CLIENT_TERMINATED,
    CUresult::CUDA_ERROR_EXTERNAL_DEVICE,
    CUresult::CUDA_ERROR_UNKNOWN,
];

/// The fault of a code that `function` answered with, in the driver's words where it has some.
pub(super) fn of(code: u32, function: &str, words: Option<&str>, name: Option<&str>) -> Fault {
    // Loading and launching can run out of memory as well; there the function's name says more.
    let allocates = function.starts_with("cuMemAlloc") || function == "cuMemHostAlloc";
    if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32 && allocates {
        return Fault::OutOfMemory;
    }
    let name = name.map_or_else(|| format!("error {code}"), str::to_string);
    let message = match words {
        Some(words) => format!("{words} ({name} in {function})"),
        None => format!("{name} in {function}"),
    };
    if LOST.iter().any(|&lost| lost as u32 == code) { Fault::Lost(message) } else { Fault::Failed(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: u32) -> &'static str {
        match of(code, "cuStreamSynchronize", None, None) {
            Fault::OutOfMemory => "memory",
            Fault::Lost(_) => "lost",
            Fault::Failed(_) => "failed",
        }
    }

    #[test]
    fn codes_are_told_apart() {
        assert_eq!(of(2, "cuMemAllocFromPoolAsync", None, None), Fault::OutOfMemory);
        assert_eq!(kind(2), "failed");
        // Illegal address, launch failure, ECC, illegal instruction, misaligned address, unknown.
        for code in [700, 719, 214, 715, 716, 999] {
            assert_eq!(kind(code), "lost", "{code}");
        }
        // Invalid value, no binary for the device, not found, out of resources; one nobody knows.
        for code in [1, 209, 500, 701, 54_321] {
            assert_eq!(kind(code), "failed", "{code}");
        }
    }

    #[test]
    fn the_message_is_the_drivers() {
        let words = Some("an illegal memory access was encountered");
        let fault = of(700, "cuStreamSynchronize", words, Some("CUDA_ERROR_ILLEGAL_ADDRESS"));
        let message = "an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS in cuStreamSynchronize)";
        assert_eq!(fault, Fault::Lost(message.into()));
        assert_eq!(of(54_321, "cuInit", None, None), Fault::Failed("error 54321 in cuInit".into()));
    }
}
