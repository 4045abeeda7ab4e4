//! A global allocator that counts what a thread holds, and refuses what no small input can need.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;

/// Counts by thread, so that tests side by side do not disturb each other.
pub struct Counting;

/// The memory that some code took on its thread, beyond what was held before it.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// The most bytes held at once.
    pub held: usize,
    /// The largest single allocation, in bytes.
    pub largest: usize,
}

/// What measured code cannot have beyond what was held before it: far more than any bound, and little enough for the
/// machine to live through.
const CEILING: isize = 1 << 30;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    static LIMIT: Cell<isize> = const { Cell::new(isize::MAX) };
    static WHAT: Cell<&'static str> = const { Cell::new("") };
    static INPUT: Cell<u64> = const { Cell::new(0) };
}

/// Whether `size` bytes more may be had.
fn may_have(size: usize) -> bool {
    // A thread that is ending has no counters any more, and nothing to measure.
    let fits = HELD.try_with(|held| {
        let wanted = held.get().saturating_add(isize::try_from(size).unwrap_or(isize::MAX));
        LIMIT.try_with(|limit| wanted <= limit.get()).unwrap_or(true)
    });
    let fits = fits.unwrap_or(true);
    if !fits {
        // Most code ends the process when memory is refused: this is what tells of which input.
        let (what, input) = (WHAT.try_with(Cell::get), INPUT.try_with(Cell::get));
        let (what, input) = (what.unwrap_or_default(), input.unwrap_or_default());
        let _ = writeln!(std::io::stderr(), "{what}, call {input}: {size} bytes at once are refused");
    }
    fits
}

fn count(more: usize, less: usize) {
    let _ = HELD.try_with(|held| {
        // Old and new may both be held while values move.
        let most = held.get() + more as isize;
        held.set(most - less as isize);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(most)));
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(more)));
    });
}

// SAFETY: every call goes to the system allocator unchanged or is refused with a null pointer, as the trait allows;
// counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !may_have(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        let at = unsafe { System.alloc(layout) };
        if !at.is_null() {
            count(layout.size(), 0);
        }
        at
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !may_have(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        let at = unsafe { System.alloc_zeroed(layout) };
        if !at.is_null() {
            count(layout.size(), 0);
        }
        at
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !may_have(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `realloc`.
        let new = unsafe { System.realloc(at, layout, size) };
        if !new.is_null() {
            count(size, layout.size());
        }
        new
    }
}

/// Runs `run`, which `what` names, and measures the memory that this thread takes meanwhile. Works where [`Counting`] is the
/// global allocator.
pub fn measure<T>(what: &'static str, run: impl FnOnce() -> T) -> (T, Memory) {
    let before = HELD.get();
    PEAK.set(before);
    LARGEST.set(0);
    WHAT.set(what);
    INPUT.set(INPUT.get() + 1);
    LIMIT.set(before.saturating_add(CEILING));
    let result = run();
    LIMIT.set(isize::MAX);
    let held = usize::try_from(PEAK.get() - before).unwrap_or(0);
    (result, Memory { held, largest: LARGEST.get() })
}
