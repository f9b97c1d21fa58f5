//! What the reference does when drawn windows repeat each other: draw again with fewer per arm.

use crate::tiers::Profile;
use crate::{Error, Result};

/// One step of the reduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reduction {
    /// Repeated windows that were found.
    pub deficit: usize,
    /// Windows per arm that were tried next.
    pub per_arm: usize,
}

/// Shrink the arms by `max(5, deficit)` windows until nothing repeats; `repeats(per_arm)` counts the repeated windows of
/// a draw. The floor is 200 in profile release, else half of what was asked for, at least 10.
pub fn reduce_duplicates(
    requested: usize,
    profile: Profile,
    repeats: impl Fn(usize) -> usize,
) -> Result<Vec<Reduction>> {
    let floor = match profile {
        Profile::Release => 200,
        _ => (requested / 2).max(10),
    };
    let mut per_arm = requested;
    let mut steps = Vec::new();
    loop {
        let deficit = repeats(per_arm);
        if deficit == 0 {
            return Ok(steps);
        }
        per_arm = per_arm.saturating_sub(deficit.max(5));
        if per_arm < floor {
            return Err(Error::BelowWindowFloor {
                requested,
                left: per_arm,
                floor,
                profile: profile.name(),
            });
        }
        steps.push(Reduction { deficit, per_arm });
    }
}
