//! Runs of addresses.

use std::fmt;
use std::net::IpAddr;

use cni::address::{number, numbered};
use serde::{Deserialize, Serialize};

/// Addresses of one family from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span(pub IpAddr, pub IpAddr);

impl Span {
    /// Whether `ip` is one of them.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.0.is_ipv4() && self.0 <= ip && ip <= self.1
    }

    /// Whether an address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.is_ipv4() == other.0.is_ipv4() && self.0 <= other.1 && other.0 <= self.1
    }

    /// How many addresses; `u128::MAX` also for one more.
    pub fn count(&self) -> u128 {
        (number(self.1) - number(self.0)).saturating_add(1)
    }

    /// What is left of this one without `hole`: at most two spans.
    pub fn without(self, hole: &Self) -> Vec<Self> {
        if !self.overlaps(hole) {
            return vec![self];
        }
        let mut left = Vec::new();
        if self.0 < hole.0 {
            left.push(Self(self.0, numbered(number(hole.0) - 1, self.0)));
        }
        if hole.1 < self.1 {
            left.push(Self(numbered(number(hole.1) + 1, self.0), self.1));
        }
        left
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: &str, end: &str) -> Span {
        Span(start.parse().unwrap(), end.parse().unwrap())
    }

    #[test]
    fn a_hole_leaves_what_is_beside_it() {
        let all = span("10.0.0.0", "10.0.0.9");
        let left = |start, end| -> Vec<String> {
            let hole = span(start, end);
            all.without(&hole).iter().map(ToString::to_string).collect()
        };
        let both = ["10.0.0.0-10.0.0.3", "10.0.0.6-10.0.0.9"];
        assert_eq!(left("10.0.0.4", "10.0.0.5"), both);
        assert_eq!(left("9.0.0.0", "10.0.0.0"), ["10.0.0.1-10.0.0.9"]);
        assert_eq!(left("10.0.0.5", "11.0.0.0"), ["10.0.0.0-10.0.0.4"]);
        assert_eq!(left("fd00::", "fd00::1"), ["10.0.0.0-10.0.0.9"]);
        assert!(left("10.0.0.0", "10.0.0.9").is_empty());
    }
}
