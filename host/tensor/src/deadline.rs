//! Until when an operation may run.
//!
//! Whoever runs a plugin must be able to end a kernel that would take minutes. The moment is set around a call, not passed
//! through every signature: operations have results that do not depend on it, so it is no argument of theirs.

use std::{cell::Cell, time::Instant};

thread_local! {
    static UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Puts back what was set before, also when the work unwinds.
struct Restore(Option<Instant>);

impl Drop for Restore {
    fn drop(&mut self) {
        UNTIL.set(self.0);
    }
}

/// Runs `work`, in which this thread's tensor operations must end at `until`; one that is still running then is given up
/// with [`Error::Interrupted`](crate::Error::Interrupted), a few milliseconds late. Kernel programs and conversions heed
/// it. Other operations run to their end.
pub fn within<R>(until: Instant, work: impl FnOnce() -> R) -> R {
    let _restore = Restore(UNTIL.replace(Some(until)));
    work()
}

/// Until when operations called by this thread may run, if that was set.
pub(crate) fn until() -> Option<Instant> {
    UNTIL.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moment_is_put_back() {
        let (outer, inner) = (Instant::now(), Instant::now());
        within(outer, || {
            within(inner, || assert_eq!(until(), Some(inner)));
            assert_eq!(until(), Some(outer));
            let unwound = std::panic::catch_unwind(|| within(inner, || panic!("in a kernel")));
            assert!(unwound.is_err());
            assert_eq!(until(), Some(outer));
        });
        assert_eq!(until(), None);
    }
}
