//! Threads for CPU kernels: rayon where there is one, one thread in a browser.
//!
//! Work is cut by rows of the output, and every output element is computed by one
//! thread in a fixed order, so results do not depend on the number of threads.

/// Elements below which a kernel stays on one thread: waking another costs a few microseconds.
pub const WORTH: usize = 16 * 1024;

/// Threads that share the work of a kernel.
pub fn threads() -> usize {
    #[cfg(not(target_arch = "wasm32"))]
    return rayon::current_num_threads();
    #[cfg(target_arch = "wasm32")]
    1
}

/// Runs `f` on one of the threads that share work. Called from any other thread, each kernel would be handed
/// over and waited for by itself; and a thread of the pool that waits helps, where any other sleeps.
pub fn inside<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    #[cfg(not(target_arch = "wasm32"))]
    if rayon::current_num_threads() > 1 {
        return rayon::scope(|_| f());
    }
    f()
}

/// Calls `f(i, row)` for every `width` elements of `y`; `work` is the cost of one row in
/// elements touched.
pub fn rows<T: Send>(y: &mut [T], width: usize, work: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    let width = width.max(1);
    #[cfg(not(target_arch = "wasm32"))]
    if y.len() / width * work >= WORTH && y.len() > width && rayon::current_num_threads() > 1 {
        use rayon::prelude::*;
        let least = (WORTH / 4 / work.max(1)).max(1);
        y.par_chunks_mut(width).with_min_len(least).enumerate().for_each(|(i, row)| f(i, row));
        return;
    }
    let _ = work;
    y.chunks_mut(width).enumerate().for_each(|(i, row)| f(i, row));
}

/// As [`rows`] over two outputs with rows of their own widths.
pub fn rows2<A: Send, B: Send>(
    a: &mut [A],
    wa: usize,
    b: &mut [B],
    wb: usize,
    work: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync + Send,
) {
    let (wa, wb) = (wa.max(1), wb.max(1));
    #[cfg(not(target_arch = "wasm32"))]
    if a.len() / wa * work >= WORTH && a.len() > wa && rayon::current_num_threads() > 1 {
        use rayon::prelude::*;
        let least = (WORTH / 4 / work.max(1)).max(1);
        let pairs = a.par_chunks_mut(wa).zip(b.par_chunks_mut(wb));
        pairs.with_min_len(least).enumerate().for_each(|(i, (a, b))| f(i, a, b));
        return;
    }
    let _ = work;
    a.chunks_mut(wa).zip(b.chunks_mut(wb)).enumerate().for_each(|(i, (a, b))| f(i, a, b));
}

/// Sum of `f(i)` in a fixed order, in sixteen lanes so that it vectorises.
pub fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    let whole = n / 16 * 16;
    for first in (0..whole).step_by(16) {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += f(first + lane);
        }
    }
    for i in whole..n {
        lanes[i - whole] += f(i);
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}
