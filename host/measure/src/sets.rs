//! Sets of windows that quantities are named after: `even8`, `first20`, `last4`.

use crate::windows::{Sample, sample};
use std::str::FromStr;

/// Some of the windows, preview before final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowSet {
    /// Which ones.
    pub policy: Sample,
    /// How many.
    pub count: usize,
}

impl WindowSet {
    /// Which of `windows` windows they are, ascending: all of them where there are no more than asked for.
    #[must_use]
    pub fn windows(self, windows: usize) -> Vec<usize> {
        sample(windows, self.count, self.policy)
    }
}

impl FromStr for WindowSet {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let policies = [
            ("even", Sample::EvenlySpaced),
            ("first", Sample::First),
            ("last", Sample::Last),
        ];
        let found = policies.into_iter().find_map(|(prefix, policy)| {
            let digits = name.strip_prefix(prefix)?;
            let count = digits.parse().ok()?;
            (count > 0 && !digits.starts_with(['0', '+'])).then_some(Self { policy, count })
        });
        found.ok_or_else(|| {
            format!("but `{name}` is no set of windows; sets are evenK, firstK and lastK with a K from 1 on")
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sets_name_windows() {
        let windows = |name: &str, count| name.parse::<WindowSet>().unwrap().windows(count);
        assert_eq!(windows("even8", 64), [0, 9, 18, 27, 36, 45, 54, 63]);
        // 2.5 goes to 2 and 7.5 to 8.
        assert_eq!(windows("even5", 11), [0, 2, 5, 8, 10]);
        assert_eq!(windows("even1", 5), [0]);
        assert_eq!(windows("first3", 5), [0, 1, 2]);
        assert_eq!(windows("last2", 5), [3, 4]);
        for name in ["even8", "first9", "last8"] {
            assert_eq!(windows(name, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
            assert_eq!(windows(name, 0), Vec::<usize>::new());
        }
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "", "even", "even0", "even08", "even+8", "evens", "first-1", "all", "8",
        ] {
            let error = name.parse::<WindowSet>().unwrap_err();
            assert!(error.contains(&format!("`{name}` is no set")), "{error}");
        }
    }
}
