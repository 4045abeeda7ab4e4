//! Parallel regions on candle's barrier pool.
//!
//! Its workers spin for a moment before they park, so a region costs about 0.3 us where one of rayon's costs 20 us or more
//! from outside its pool; sharing it with candle also means that two spinning pools never fight for the same cores.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::utils::barrier_pool;

thread_local! {
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
    static IN_REGION: Cell<bool> = const { Cell::new(false) };
}

/// The number of threads that a kernel called from this thread uses: candle's (`CANDLE_NUM_THREADS`, else the physical
/// cores), or fewer inside [`with_threads`].
pub fn threads() -> usize {
    let limit = LIMIT.get();
    if limit == 1 { 1 } else { limit.min(barrier_pool().n_workers() + 1) }
}

/// Runs `f` with kernels limited to `n` threads. Results have the same bits for every `n`.
pub fn with_threads<R>(n: usize, f: impl FnOnce() -> R) -> R {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            LIMIT.set(self.0);
        }
    }
    let _restore = Restore(LIMIT.replace(n.max(1)));
    f()
}

/// Calls `task(i)` once for each `i` in `0..n`, on several threads where `worth` says that it pays. Tasks are handed out
/// by a counter in ascending order; which thread runs a task must not matter to its result.
pub(crate) fn parallel(n: usize, worth: bool, task: impl Fn(usize) + Sync) {
    let limit = if worth && n > 1 && !IN_REGION.get() { threads() } else { 1 };
    if limit <= 1 {
        (0..n).for_each(task);
        return;
    }
    let next = AtomicUsize::new(0);
    let entered = AtomicUsize::new(0);
    barrier_pool().execute(|_| {
        if entered.fetch_add(1, Ordering::Relaxed) >= limit {
            return;
        }
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                IN_REGION.set(false);
            }
        }
        IN_REGION.set(true);
        let _leave = Leave;
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                break;
            }
            task(i);
        }
    });
}

/// A pointer that tasks share, each writing its own part.
#[derive(Clone, Copy)]
pub(crate) struct SendPtr<T>(*mut T);

// SAFETY: the pointer is only dereferenced through `slice`, whose caller promises disjoint ranges.
unsafe impl<T: Send> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// A pointer to element `start`.
    ///
    /// # Safety
    /// `start` lies inside the slice that `self` was made of, and that slice is alive.
    pub(crate) unsafe fn at(&self, start: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(start) }
    }

    /// The `len` elements from `start`.
    ///
    /// # Safety
    /// The range lies inside the slice that `self` was made of, that slice outlives the result, and no other live
    /// reference covers any part of the range.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for n_threads in [1, 2, 7] {
            with_threads(n_threads, || {
                let counts: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
                parallel(counts.len(), true, |i| {
                    // A nested region runs inline instead of waiting for the pool that it runs on.
                    parallel(2, true, |_| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 2));
            });
        }
    }
}
