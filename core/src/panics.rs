//! A panic hook that logs panics and stores their source location. It prints nothing, because the
//! code that catches a panic reports it as an error.

use std::cell::RefCell;

thread_local! {
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Installs the panic hook in this program or plugin library. Afterwards, [`take_location`] returns
/// the location of a panic.
pub fn install_hook() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map(|l| format!("{}:{}", l.file(), l.line()));
        tracing::debug!(
            "panic: {text} ({})\n{}",
            place.as_deref().unwrap_or("unknown place"),
            std::backtrace::Backtrace::force_capture()
        );
        PLACE.with_borrow_mut(|last| *last = place);
    }));
}

/// Takes the source location, `file:line`, of this thread's last panic. Returns `None` if it has
/// already been taken, or if [`install_hook`] was not called.
pub fn take_location() -> Option<String> {
    PLACE.with_borrow_mut(Option::take)
}
