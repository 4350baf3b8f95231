//! What the kernels of attention need of vector instructions, once for every instruction set.
//!
//! A [`Task`] is written once over [`Simd`] and runs inside a function that has the instructions enabled. All that it
//! calls is therefore `#[inline(always)]` and no closure: a closure is a function of its own, without them.

/// A proof that the CPU has an instruction set, and what it does. Slices hold at least [`Simd::LANES`]
/// elements where not said otherwise.
pub(super) trait Simd: Copy {
    /// Elements of a vector, 8 or 16.
    const LANES: usize;
    /// Query heads that fit the registers together.
    const HEADS: usize;
    /// A vector of floats.
    type F: Copy;
    /// A vector of words.
    type W: Copy;

    /// Runs a task with the instructions enabled.
    fn run<T: Task>(self, task: T) -> T::Out;
    /// All lanes the same.
    fn splat(self, x: f32) -> Self::F;
    /// The first elements of a slice.
    fn load(self, from: &[f32]) -> Self::F;
    /// The first f16 values of a slice.
    fn halves(self, from: &[u16]) -> Self::F;
    /// To the first elements of a slice.
    fn store(self, x: Self::F, to: &mut [f32]);
    /// `a · b + c`.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The first words of a slice.
    fn words(self, from: &[u32]) -> Self::W;
    /// The words at these places of a slice that is not empty; a place past its end is its last.
    fn gather(self, from: &[u32], places: Self::W) -> Self::W;
    /// The lowest `BITS` bits as a float; `BITS` is 2, 4 or 8.
    fn code<const BITS: usize>(self, x: Self::W) -> Self::F;
    /// Shifts to the next code of `BITS` bits.
    fn next<const BITS: usize>(self, x: Self::W) -> Self::W;
    /// Shifts down.
    fn down(self, x: Self::W, bits: usize) -> Self::W;
    /// The f16 values in the low and in the high halves.
    fn pair(self, x: Self::W) -> (Self::F, Self::F);
    /// Words as the floats they are.
    fn floats(self, x: Self::W) -> Self::F;
    /// Lane `l` is lane `lanes[l]` of `x`.
    fn pick(self, x: Self::F, lanes: Self::W) -> Self::F;
    /// Sums of four lanes each: element `[q][j]` is that of lanes `4q..4q + 4` of `x[j]`, for the quarters there are.
    fn quarters(self, x: [Self::F; 4]) -> [[f32; 4]; 4];
    /// Sums of all lanes.
    fn totals(self, x: [Self::F; 4]) -> [f32; 4];
    /// Brings a line closer: to the first cache if it is `soon` wanted, else to the second. Any address will do.
    fn fetch(self, line: *const u8, soon: bool);
}

/// Work for one instruction set.
pub(super) trait Task {
    /// Result.
    type Out;
    /// The work; `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Elements of a cache that is not quantised.
pub(super) trait Element: Copy + Default + Sync {
    /// The first elements as floats.
    fn load<S: Simd>(s: S, from: &[Self]) -> S::F;
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self]) -> S::F {
        s.load(from)
    }
}

/// f16 as bits.
impl Element for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self]) -> S::F {
        s.halves(from)
    }
}

/// Plain Rust: eight lanes, which compilers turn into whatever vectors there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain;

impl Simd for Plain {
    const LANES: usize = 8;
    const HEADS: usize = 2;
    type F = [f32; 8];
    type W = [u32; 8];

    fn run<T: Task>(self, task: T) -> T::Out {
        task.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> [f32; 8] {
        let mut x = [0.0; 8];
        x.copy_from_slice(&from[..8]);
        x
    }

    #[inline(always)]
    fn halves(self, from: &[u16]) -> [f32; 8] {
        let mut x = [0.0; 8];
        for (x, &bits) in x.iter_mut().zip(&from[..8]) {
            *x = half::f16::from_bits(bits).to_f32();
        }
        x
    }

    #[inline(always)]
    fn store(self, x: [f32; 8], to: &mut [f32]) {
        to[..8].copy_from_slice(&x);
    }

    #[inline(always)]
    fn fma(self, a: [f32; 8], b: [f32; 8], mut c: [f32; 8]) -> [f32; 8] {
        for l in 0..8 {
            c[l] += a[l] * b[l];
        }
        c
    }

    #[inline(always)]
    fn words(self, from: &[u32]) -> [u32; 8] {
        let mut x = [0; 8];
        x.copy_from_slice(&from[..8]);
        x
    }

    #[inline(always)]
    fn gather(self, from: &[u32], places: [u32; 8]) -> [u32; 8] {
        places.map(|place| from[(place as usize).min(from.len() - 1)])
    }

    #[inline(always)]
    fn code<const BITS: usize>(self, x: [u32; 8]) -> [f32; 8] {
        x.map(|x| (x & ((1 << BITS) - 1)) as f32)
    }

    #[inline(always)]
    fn next<const BITS: usize>(self, x: [u32; 8]) -> [u32; 8] {
        x.map(|x| x >> BITS)
    }

    #[inline(always)]
    fn down(self, x: [u32; 8], bits: usize) -> [u32; 8] {
        x.map(|x| x >> bits)
    }

    #[inline(always)]
    fn pair(self, x: [u32; 8]) -> ([f32; 8], [f32; 8]) {
        let half = |bits: u32| half::f16::from_bits(bits as u16).to_f32();
        (x.map(half), x.map(|x| half(x >> 16)))
    }

    #[inline(always)]
    fn floats(self, x: [u32; 8]) -> [f32; 8] {
        x.map(f32::from_bits)
    }

    #[inline(always)]
    fn pick(self, x: [f32; 8], lanes: [u32; 8]) -> [f32; 8] {
        lanes.map(|l| x[l as usize % 8])
    }

    #[inline(always)]
    fn quarters(self, x: [[f32; 8]; 4]) -> [[f32; 4]; 4] {
        let mut sums = [[0.0; 4]; 4];
        for (q, sums) in sums[..2].iter_mut().enumerate() {
            for (sum, x) in sums.iter_mut().zip(&x) {
                *sum = (x[4 * q] + x[4 * q + 2]) + (x[4 * q + 1] + x[4 * q + 3]);
            }
        }
        sums
    }

    #[inline(always)]
    fn totals(self, x: [[f32; 8]; 4]) -> [f32; 4] {
        let [a, b, ..] = self.quarters(x);
        [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
    }

    #[inline(always)]
    fn fetch(self, _: *const u8, _: bool) {}
}
