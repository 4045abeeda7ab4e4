//! What goes through banks of experts: evidence that the sparse layers of all models are one code.

use std::cell::RefCell;

/// One call of [`ExpertBank::forward`](super::ExpertBank::forward).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BankPass {
    /// Experts, those without a network among them.
    pub experts: usize,
    /// Tokens of the call, padding among them.
    pub tokens: usize,
    /// Routes that they took.
    pub routes: usize,
    /// By the fused kernel rather than by the stages that have gradients.
    pub fused: bool,
}

thread_local! {
    static SEEN: RefCell<Option<Vec<BankPass>>> = const { RefCell::new(None) };
}

/// Runs something, and tells what it sent through banks of experts on this thread. Where one is inside another, the inner one has its
/// passes for itself.
pub fn watch<T>(run: impl FnOnce() -> T) -> (T, Vec<BankPass>) {
    let before = SEEN.with(|seen| seen.borrow_mut().replace(Vec::new()));
    let made = run();
    let seen = SEEN.with(|seen| seen.replace(before));
    (made, seen.unwrap_or_default())
}

/// To be called by a bank for each pass.
pub(super) fn note(pass: BankPass) {
    SEEN.with(|seen| {
        if let Some(seen) = seen.borrow_mut().as_mut() {
            seen.push(pass);
        }
    });
}
