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
    stages(worth && n > 1, &[Stage { count: n, task: &task }]);
}

/// Calls `f(i, chunk)` for each chunk of `size` values (the last may be shorter), on several threads where `worth` says that
/// it pays. A `size` of 0 is taken as 1.
pub fn chunks<T: Send>(data: &mut [T], size: usize, worth: bool, f: impl Fn(usize, &mut [T]) + Sync) {
    let (len, size) = (data.len(), size.max(1));
    let shared = SendPtr::new(data);
    parallel(len.div_ceil(size), worth, |i| {
        // SAFETY: each chunk belongs to one task and lies inside the data.
        f(i, unsafe { shared.slice(i * size, size.min(len - i * size)) });
    });
}

/// A part of a region: `count` tasks.
pub(crate) struct Stage<'a> {
    pub count: usize,
    pub task: &'a (dyn Fn(usize) + Sync),
}

/// Tasks that a thread takes at once, at most.
const RUN: usize = 16;
/// Times that a thread comes for tasks, at least, so that threads end together.
const RUNS: usize = 8;

/// Stages that one region holds at most.
const STAGES: usize = 6;

/// On a cache line of its own: two cores write these all the time.
#[repr(align(64))]
#[derive(Default)]
struct Counter(AtomicUsize);

/// Runs the tasks of each stage as [`parallel`] does, one stage after the other in a single parallel region: what a stage
/// wrote, all tasks of later stages see. Between stages threads wait for each other by spinning, which costs a fraction of
/// what leaving and entering a region does.
pub(crate) fn stages(worth: bool, stages: &[Stage<'_>]) {
    assert!(stages.len() <= STAGES, "{} stages in a region that holds {STAGES}", stages.len());
    let participants = if worth && !IN_REGION.get() { threads() } else { 1 };
    if participants <= 1 {
        stages.iter().for_each(|stage| (0..stage.count).for_each(stage.task));
        return;
    }
    let entered = AtomicUsize::new(0);
    let next: [Counter; STAGES] = Default::default();
    let left: [Counter; STAGES] = Default::default();
    barrier_pool().execute(|_| {
        if entered.fetch_add(1, Ordering::Relaxed) >= participants {
            return;
        }
        IN_REGION.set(true);
        let mut leave = Leave { left: &left[..stages.len()] };
        for (i, stage) in stages.iter().enumerate() {
            // A few tasks at once where there are many: neighbours read on where the last one ended.
            let run = (stage.count / (participants * RUNS)).clamp(1, RUN);
            loop {
                let first = next[i].0.fetch_add(run, Ordering::Relaxed);
                if first >= stage.count {
                    break;
                }
                (first..stage.count.min(first + run)).for_each(stage.task);
            }
            leave.stage();
            // The end of the region is the last barrier.
            if i + 1 < stages.len() {
                wait(&left[i].0, participants);
            }
        }
    });
}

/// Waits until `count` threads have left a stage. A thread that the system has put aside gets the core after a while.
fn wait(left: &AtomicUsize, count: usize) {
    let mut spins = 0u32;
    while left.load(Ordering::Acquire) < count {
        spins += 1;
        if spins.is_multiple_of(1 << 14) { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
}

/// Leaves all remaining stages when a task panics, so that no other thread waits forever.
struct Leave<'a> {
    left: &'a [Counter],
}

impl Leave<'_> {
    fn stage(&mut self) {
        if let Some((first, rest)) = self.left.split_first() {
            // Release: what this thread wrote in the stage is seen by whoever passes the barrier.
            first.0.fetch_add(1, Ordering::Release);
            self.left = rest;
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        while !self.left.is_empty() {
            self.stage();
        }
        IN_REGION.set(false);
    }
}

/// A pointer that tasks share, each writing its own part.
#[derive(Clone, Copy)]
pub(crate) struct SendPtr<T>(*mut T);

// SAFETY: the pointer is only dereferenced through `slice` and `shared`, whose callers promise ranges without conflict.
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

    /// The `len` elements from `start`, to read.
    ///
    /// # Safety
    /// The range lies inside the slice that `self` was made of, that slice outlives the result, and nobody writes the range
    /// meanwhile.
    pub(crate) unsafe fn shared(&self, start: usize, len: usize) -> &[T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.0.add(start), len) }
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
    fn a_stage_sees_all_that_the_one_before_wrote() {
        let (a, b): (Vec<_>, Vec<_>) = (0..257).map(|_| (AtomicUsize::new(0), AtomicUsize::new(0))).unzip();
        for round in 1..200 {
            let write = |i: usize| a[i].store(round * i, Ordering::Relaxed);
            let copy = |i: usize| b[i].store(a[256 - i].load(Ordering::Relaxed), Ordering::Relaxed);
            let check = |i: usize| assert_eq!(b[256 - i].load(Ordering::Relaxed), round * i);
            let stage = |task| Stage { count: 257, task };
            stages(true, &[stage(&write), Stage { count: 0, task: &check }, stage(&copy), stage(&check)]);
        }
    }

    #[test]
    fn a_thread_that_panics_leaves_all_stages() {
        let left: [Counter; 3] = Default::default();
        let result = std::panic::catch_unwind(|| {
            let mut leave = Leave { left: &left };
            leave.stage();
            std::panic::resume_unwind(Box::new("as wanted"));
        });
        assert!(result.is_err());
        left.iter().for_each(|counter| wait(&counter.0, 1));
    }

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
