//! Capabilities (capabilities(7)): the kernel's "operation not permitted" does not say
//! which one is missing, so the error of a plugin does.

use std::fmt;

/// A capability that plugins may need. The numbers are those of linux/capability.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the capabilities
pub enum Capability {
    DacOverride = 1,
    NetAdmin = 12,
    NetRaw = 13,
    SysAdmin = 21,
}

impl Capability {
    fn name(self) -> &'static str {
        match self {
            Self::DacOverride => "CAP_DAC_OVERRIDE",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysAdmin => "CAP_SYS_ADMIN",
        }
    }
}

/// A program reports that it lacks a privilege.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    msg: String,
    pub(crate) needs: &'static [Capability],
}

impl Denied {
    /// An error with the text `msg`; the operation needs the capabilities `needs`.
    pub fn new(msg: impl Into<String>, needs: &'static [Capability]) -> Self {
        let msg = msg.into();
        Self { msg, needs }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)
    }
}

impl std::error::Error for Denied {}

/// `needs CAP_NET_ADMIN and CAP_SYS_ADMIN`: those of `needed` that this process lacks;
/// `None` if it lacks none, or if its capabilities cannot be read.
pub(crate) fn missing(needed: &[Capability]) -> Option<String> {
    if needed.is_empty() {
        return None;
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    missing_in(&status, needed)
}

fn missing_in(status: &str, needed: &[Capability]) -> Option<String> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    let lacks = |capability: &&Capability| mask & (1 << **capability as u32) == 0;
    let names: Vec<_> = needed.iter().filter(lacks).map(|it| it.name()).collect();
    (!names.is_empty()).then(|| format!("needs {}", names.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_capabilities_are_named() {
        let missing = |mask: &str| {
            let status = format!("Name:\tx\nCapEff:\t{mask}\nSeccomp:\t0\n");
            missing_in(&status, &[Capability::NetAdmin, Capability::SysAdmin])
        };
        assert_eq!(missing("000001ffffffffff"), None);
        assert_eq!(missing("1000").unwrap(), "needs CAP_SYS_ADMIN");
        assert_eq!(missing("200000").unwrap(), "needs CAP_NET_ADMIN");
        let both = "needs CAP_NET_ADMIN and CAP_SYS_ADMIN";
        assert_eq!(missing("0").unwrap(), both);
        assert_eq!(missing(""), None);
    }
}
