//! Hybrid timestamps.

use std::fmt;

use crate::short::Base36;

const LOGICAL_BITS: u32 = 18;

/// Place of a message in the order of its pchannel: milliseconds since the Unix epoch in the upper 46 bits, a counter in
/// the lower 18. Unique within a pchannel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeTick(pub u64);

impl TimeTick {
    /// Smaller than every tick that is ever given out.
    pub const ZERO: Self = Self(0);
    /// Largest value of [`logical`](Self::logical).
    pub const MAX_LOGICAL: u64 = (1 << LOGICAL_BITS) - 1;

    /// Joins both parts; what does not fit into a part is cut off.
    #[must_use]
    pub fn new(physical_ms: u64, logical: u64) -> Self {
        Self((physical_ms << LOGICAL_BITS) | (logical & Self::MAX_LOGICAL))
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn physical_ms(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The counter within the millisecond.
    #[must_use]
    pub fn logical(self) -> u64 {
        self.0 & Self::MAX_LOGICAL
    }

    /// The same counter `ms` milliseconds later; stops at the largest tick.
    #[must_use]
    pub fn saturating_add_ms(self, ms: u64) -> Self {
        let physical = self.physical_ms().saturating_add(ms);
        if physical > u64::MAX >> LOGICAL_BITS { Self(u64::MAX) } else { Self::new(physical, self.logical()) }
    }

    /// The form used in message properties: base 36 in lower case.
    #[must_use]
    pub fn to_base36(self) -> String {
        Base36::new(self.0).as_ref().to_owned()
    }

    /// Reads [`to_base36`](Self::to_base36), upper case too; `None` for anything else.
    #[must_use]
    pub fn from_base36(text: &str) -> Option<Self> {
        from_base36(text).map(Self)
    }
}

impl fmt::Display for TimeTick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u64> for TimeTick {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

impl From<TimeTick> for u64 {
    fn from(value: TimeTick) -> Self {
        value.0
    }
}

pub(crate) fn from_base36(text: &str) -> Option<u64> {
    // The standard parser would take a sign.
    if text.starts_with('+') {
        return None;
    }
    u64::from_str_radix(text, 36).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_tick_has_its_known_text() {
        let tick = TimeTick(458_000_000_000_000_000);
        assert_eq!(tick.to_base36(), "3h9ng7d2ff28");
        assert_eq!(TimeTick::from_base36("3h9ng7d2ff28"), Some(tick));
        assert_eq!(TimeTick::from_base36("3H9NG7D2FF28"), Some(tick));
    }

    #[test]
    fn parts_are_the_upper_46_and_lower_18_bits() {
        let tick = TimeTick::new(1_747_131_347_656, 65_536);
        assert_eq!(tick.0, 1_747_131_347_656 << 18 | 65_536);
        assert_eq!((tick.physical_ms(), tick.logical()), (1_747_131_347_656, 65_536));
        assert_eq!(TimeTick::new(1, 0).saturating_add_ms(9), TimeTick::new(10, 0));
        assert_eq!(TimeTick(u64::MAX).saturating_add_ms(1), TimeTick(u64::MAX));
    }

    #[test]
    fn what_is_no_base36_number_is_refused() {
        for text in ["", "+1", "-1", " 1", "1 ", "1_0", "é", "zzzzzzzzzzzzzz"] {
            assert_eq!(TimeTick::from_base36(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn base36_reads_back(value: u64) {
            let text = TimeTick(value).to_base36();
            prop_assert!(text.chars().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase()));
            prop_assert_eq!(TimeTick::from_base36(&text), Some(TimeTick(value)));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            if let Some(tick) = TimeTick::from_base36(&text) {
                let plain = text.trim_start_matches('0').to_ascii_lowercase();
                prop_assert_eq!(tick.to_base36(), if plain.is_empty() { "0".to_owned() } else { plain });
            }
        }
    }
}
