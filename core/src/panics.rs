//! The place of a panic that was caught. The code that catches a panic reports it as an error, so
//! the hook prints nothing.

use std::cell::RefCell;

thread_local! {
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From here on a panic of this program, or of this plugin, is kept for [`take_place`] and for the
/// log.
pub fn keep_quiet() {
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

/// `file:line` of this thread's last panic, once; `None` where [`keep_quiet`] was not called.
pub fn take_place() -> Option<String> {
    PLACE.with_borrow_mut(Option::take)
}
