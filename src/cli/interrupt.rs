//! Ctrl-C in commands that leave at once.

use std::sync::atomic::{AtomicBool, Ordering};

use super::INTERRUPTED;

/// The program is about to end because of Ctrl-C.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C ends the program after `clean` has removed what is unfinished.
pub(super) fn leave_after(mut clean: impl FnMut() + Send + 'static) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || {
        LEAVING.store(true, Ordering::SeqCst);
        clean();
        std::process::exit(INTERRUPTED);
    })
}

/// Does not return once Ctrl-C was pressed: the rest of the program goes on while the handler removes its files and fails for the
/// lack of them, which must neither be told nor decide the exit code.
pub(super) fn leave_if_interrupted() {
    while LEAVING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}
