//! Buffers that a thread keeps between calls: a fresh allocation of megabytes costs a page fault per 4 KiB.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// One cache line, so that tiles start on one.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line([f32; 16]);

impl Line {
    pub(crate) const ZERO: Self = Self([0.0; 16]);

    /// The values of whole lines.
    pub(crate) fn floats(lines: &[Self]) -> &[f32] {
        // SAFETY: `Line` is 16 f32 without padding.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 16) }
    }

    /// As [`floats`](Self::floats), to write.
    pub(crate) fn floats_mut(lines: &mut [Self]) -> &mut [f32] {
        // SAFETY: as above, and `lines` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
    }
}

/// The same 32 bits as integers: pairs of bf16 are kept in buffers of f32.
pub(crate) fn bits(values: &[f32]) -> &[u32] {
    // SAFETY: f32 and u32 have one size and alignment, and any bits are a value of either.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// As [`bits`], to write.
pub(crate) fn bits_mut(values: &mut [f32]) -> &mut [u32] {
    // SAFETY: as above, and `values` is borrowed mutably.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
}

/// At most this many buffers, and bytes in them, stay with a thread.
const KEEP: usize = 8;
const KEEP_BYTES: usize = 256 << 20;

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// `len` f32 values, aligned to 64 bytes, content unspecified; the memory goes back to the thread on drop.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    len: usize,
}

impl Scratch {
    pub(crate) fn new(len: usize) -> Self {
        let wanted = len.div_ceil(16);
        let mut lines = FREE.with_borrow_mut(|free| {
            // The smallest that is large enough, else the largest.
            let best = (0..free.len())
                .filter(|&i| free[i].capacity() >= wanted)
                .min_by_key(|&i| free[i].capacity())
                .or_else(|| (0..free.len()).max_by_key(|&i| free[i].capacity()));
            best.map(|i| free.swap_remove(i)).unwrap_or_default()
        });
        if lines.len() < wanted {
            lines.resize(wanted, Line::ZERO);
        }
        Self { lines, len }
    }

    pub(crate) fn zeroed(len: usize) -> Self {
        let mut scratch = Self::new(len);
        scratch.fill(0.0);
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // At thread exit the list may be gone already; then the buffer is simply freed.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            let held: usize = free.iter().map(|f| f.capacity() * 64).sum();
            if free.len() < KEEP && held + lines.capacity() * 64 <= KEEP_BYTES {
                free.push(lines);
            }
        });
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &Line::floats(&self.lines)[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut Line::floats_mut(&mut self.lines)[..self.len]
    }
}
