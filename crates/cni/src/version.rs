//! The versions of the CNI specification.

use std::fmt;

/// A version of the specification that podwire supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are the versions
pub enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: &'static [Self] = &[
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The newest one. Results are kept in its form.
    pub const LATEST: Self = Self::V1_1_0;

    /// This version and all later ones.
    pub const fn and_later(self) -> &'static [Self] {
        Self::ALL.split_at(self as usize).1
    }

    /// As it is written in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version with exactly this text; the empty text means 0.1.0, because early
    /// configurations have no version.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::V0_1_0);
        }
        Self::ALL.iter().copied().find(|v| v.as_str() == text)
    }

    /// The versions whose results have the same form.
    pub fn family(self) -> &'static [Self] {
        match self {
            Self::V0_1_0 | Self::V0_2_0 => &[Self::V0_1_0, Self::V0_2_0],
            Self::V0_3_0 | Self::V0_3_1 | Self::V0_4_0 => {
                &[Self::V0_3_0, Self::V0_3_1, Self::V0_4_0]
            }
            Self::V1_0_0 | Self::V1_1_0 => &[Self::V1_0_0, Self::V1_1_0],
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The three numbers of any version text; missing ones are 0.
pub fn numbers(text: &str) -> Option<[u32; 3]> {
    let mut numbers = [0; 3];
    let parts: Vec<_> = text.split('.').collect();
    if parts.len() > 3 {
        return None;
    }
    for (number, part) in numbers.iter_mut().zip(parts) {
        *number = part.parse().ok()?;
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_versions_correspond() {
        for version in Version::ALL {
            assert_eq!(Version::parse(version.as_str()), Some(*version));
            assert!(version.family().contains(version));
        }
        assert_eq!(Version::parse(""), Some(Version::V0_1_0));
        assert_eq!(Version::V0_1_0.and_later(), Version::ALL);
        let newest = [Version::V1_0_0, Version::V1_1_0];
        assert_eq!(Version::V1_0_0.and_later(), newest);
        assert_eq!(Version::parse("1.0"), None);
    }

    #[test]
    fn any_version_has_numbers() {
        assert_eq!(numbers("1.2.0"), Some([1, 2, 0]));
        assert_eq!(numbers("9"), Some([9, 0, 0]));
        assert_eq!(numbers("x.y"), None);
        assert_eq!(numbers("1.1.1.1"), None);
    }
}
