//! Lending a borrowed object to a store for the length of one call.
//!
//! A store's data must be `'static`, while a device or a draft is borrowed from the caller. A [`Loan`] bridges the two: it
//! looks `'static`, and it is emptied before the call returns, whatever happens to the store.

use std::sync::{Arc, Mutex, PoisonError};

use packhost_tensor::Device;

use crate::Draft;

/// Access to a lent object until it is called back.
pub(crate) struct Loan<R>(Arc<Mutex<Option<R>>>);

impl Loan<&'static dyn Device> {
    /// Runs `work` on the device, or returns `None` when it has been called back. The closure must serve any lifetime, so
    /// it cannot keep the reference.
    pub(crate) fn device<O>(&self, work: impl FnOnce(&dyn Device) -> O) -> Option<O> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(|device| work(*device))
    }
}

impl Loan<&'static mut dyn Draft> {
    /// Runs `work` on the draft, or returns `None` when it has been called back. As above, the reference cannot be kept.
    pub(crate) fn draft<O>(&self, work: impl FnOnce(&mut dyn Draft) -> O) -> Option<O> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .map(|draft| work(*draft))
    }
}

/// Empties the slot when dropped, so also when the call unwinds.
struct CallBack<R>(Arc<Mutex<Option<R>>>);

impl<R> Drop for CallBack<R> {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn lend<R, O>(object: R, call: impl FnOnce(Loan<R>) -> O) -> O {
    let slot = Arc::new(Mutex::new(Some(object)));
    let _call_back = CallBack(slot.clone());
    call(Loan(slot))
}

/// Lends `device` to `call`.
pub(crate) fn lend_device<O>(
    device: &dyn Device,
    call: impl FnOnce(Loan<&'static dyn Device>) -> O,
) -> O {
    // SAFETY: only the lifetime changes. The reference lives in the slot of `lend` alone: `Loan::device` hands it out for
    // the length of a closure that must serve any lifetime and so cannot keep it, under the slot's lock; `CallBack` takes
    // the lock and empties the slot before `lend` returns or unwinds, while `device` is still borrowed. A loan that
    // outlives the call finds the slot empty.
    let device = unsafe { std::mem::transmute::<&dyn Device, &'static dyn Device>(device) };
    lend(device, call)
}

/// Lends `draft` to `call`.
pub(crate) fn lend_draft<O>(
    draft: &mut dyn Draft,
    call: impl FnOnce(Loan<&'static mut dyn Draft>) -> O,
) -> O {
    // SAFETY: as for `lend_device`; unique, because `draft` stays mutably borrowed while `lend` runs.
    let draft = unsafe { std::mem::transmute::<&mut dyn Draft, &'static mut dyn Draft>(draft) };
    lend(draft, call)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_loan_that_outlives_the_call_is_empty() {
        let kept = lend(7, |loan| {
            assert_eq!(loan.0.lock().unwrap().as_ref(), Some(&7));
            loan
        });
        assert_eq!(*kept.0.lock().unwrap(), None);
    }

    #[test]
    fn a_loan_is_called_back_when_the_call_unwinds() {
        let kept = Mutex::new(None);
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            lend(7, |loan| {
                *kept.lock().unwrap() = Some(loan);
                panic!("the kernel failed");
            })
        }));
        assert!(unwound.is_err());
        let kept = kept.into_inner().unwrap().unwrap();
        assert_eq!(*kept.0.lock().unwrap(), None);
    }
}
