//! A launch's arguments as the driver wants them: one pointer for each.

use crate::driver::Launch;
use std::ffi::c_void;

/// Most bytes of a parameter struct, in words of 8.
const PARAMS: usize = 64;
/// Most operands.
const OPERANDS: usize = 40;

/// The arguments of one launch: the parameter struct, if it has any bytes, then the addresses.
pub(super) struct Arguments {
    /// In words of 8 bytes, so that a struct of any members is aligned.
    params: [u64; PARAMS],
    addresses: [u64; OPERANDS],
    with_params: bool,
    operands: usize,
}

impl Arguments {
    /// Of a launch. `sizes` are those that the kernel was compiled with, if the driver tells.
    pub(super) fn new(launch: &Launch, sizes: Option<&[usize]>) -> Result<Arguments, String> {
        let (bytes, operands) = (launch.params.len(), launch.operands.len());
        if bytes > PARAMS * 8 || operands > OPERANDS {
            return Err(format!("{bytes} bytes of parameters and {operands} operands are too many"));
        }
        let given = (bytes > 0).then_some(bytes).into_iter().chain(std::iter::repeat_n(8, operands));
        if let Some(sizes) = sizes
            && !given.clone().eq(sizes.iter().copied())
        {
            let given: Vec<usize> = given.collect();
            return Err(format!("it takes arguments of {sizes:?} bytes and was given {given:?}"));
        }
        let mut arguments =
            Arguments { params: [0; PARAMS], addresses: [0; OPERANDS], with_params: bytes > 0, operands };
        for (word, bytes) in arguments.params.iter_mut().zip(launch.params.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        for (to, operand) in arguments.addresses.iter_mut().zip(&launch.operands) {
            *to = operand.address;
        }
        Ok(arguments)
    }

    /// Calls with an array of pointers to the arguments, which the driver copies before it returns.
    pub(super) fn with<T>(&mut self, call: impl FnOnce(*mut *mut c_void) -> T) -> T {
        let mut pointers = [std::ptr::null_mut::<c_void>(); OPERANDS + 1];
        let mut rest = pointers.iter_mut();
        if self.with_params
            && let Some(first) = rest.next()
        {
            *first = self.params.as_mut_ptr().cast();
        }
        for (pointer, address) in rest.zip(&mut self.addresses[..self.operands]) {
            *pointer = (&raw mut *address).cast();
        }
        call(pointers.as_mut_ptr())
    }
}

#[cfg(test)]
#[allow(unsafe_code, clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::driver::{Kernel, Operand};

    fn launch(params: &[u8], addresses: &[u64]) -> Launch {
        let operand = |&address: &u64| Operand { address, bytes: 4, reads: true, writes: true };
        Launch {
            kernel: Kernel(0),
            grid: [1; 3],
            block: 32,
            shared: 0,
            params: params.to_vec(),
            operands: addresses.iter().map(operand).collect(),
        }
    }

    /// What a driver would copy of arguments of these sizes.
    fn copied(launch: &Launch, sizes: &[usize]) -> Vec<Vec<u8>> {
        let mut arguments = Arguments::new(launch, Some(sizes)).unwrap();
        arguments.with(|pointers| {
            let one = |(i, &size): (usize, &usize)| {
                // SAFETY: there are as many pointers as arguments, each to an argument of its size.
                unsafe { std::slice::from_raw_parts((*pointers.add(i)).cast::<u8>(), size).to_vec() }
            };
            sizes.iter().enumerate().map(one).collect()
        })
    }

    #[test]
    fn parameters_come_first_and_then_the_addresses() {
        let params: Vec<u8> = (1..=12).collect();
        let addresses = [0x7f00_1234_5678_9a00, 0x7f00_0000_0100];
        let found = copied(&launch(&params, &addresses), &[12, 8, 8]);
        assert_eq!(found, [params, addresses[0].to_ne_bytes().into(), addresses[1].to_ne_bytes().into()]);
        assert_eq!(copied(&launch(&[], &[7]), &[8]), [7u64.to_ne_bytes().to_vec()]);
        assert_eq!(copied(&launch(&[1; 512], &[]), &[512]), [vec![1; 512]]);
    }

    #[test]
    fn parameters_are_aligned_as_any_struct_wants() {
        let mut arguments = Arguments::new(&launch(&[1; 5], &[0]), None).unwrap();
        // SAFETY: two arguments, so two pointers.
        let aligned = arguments.with(|p| unsafe { [*p, *p.add(1)] }.iter().all(|p| p.addr().is_multiple_of(8)));
        assert!(aligned);
    }

    #[test]
    fn arguments_that_the_kernel_does_not_take_are_refused() {
        let refused = |launch: &Launch, sizes: &[usize]| Arguments::new(launch, Some(sizes)).err().unwrap();
        let why = refused(&launch(&[0; 12], &[1, 2]), &[12, 8, 8, 8]);
        assert_eq!(why, "it takes arguments of [12, 8, 8, 8] bytes and was given [12, 8, 8]");
        assert!(refused(&launch(&[0; 8], &[1]), &[12, 8]).contains("given [8, 8]"));
        assert!(Arguments::new(&launch(&[0; 513], &[]), None).is_err());
        assert!(Arguments::new(&launch(&[], &[0; 41]), None).is_err());
    }
}
