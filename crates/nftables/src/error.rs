//! A refused request: what was being done to what, and the kernel's errno.

use std::fmt;

use nix::errno::Errno;

/// A request that failed.
///
/// It displays as `add rule to chain ip t c: operation not supported (95)`. One
/// whose cause may pass (a deadline, a busy object, a rule set that somebody
/// else keeps changing) has a [`cni::Error`] with [`cni::Code::TryAgain`] as its
/// source, so that the runtime is told to retry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    op: String,
    errno: Errno,
    /// What the kernel says beside its errno.
    told: Option<String>,
    retry: Option<cni::Error>,
}

impl Error {
    /// `errno` happened while doing `op` ("add table inet t").
    pub fn new(op: impl Into<String>, errno: Errno) -> Self {
        Self::refused(op, errno, None)
    }

    /// The same, with the kernel's own words, if it has any.
    pub fn refused(op: impl Into<String>, errno: Errno, told: Option<String>) -> Self {
        let mut error = Self {
            op: op.into(),
            errno,
            told,
            retry: None,
        };
        if matches!(
            errno,
            Errno::ETIMEDOUT | Errno::EAGAIN | Errno::EBUSY | Errno::ERESTART | Errno::EINTR
        ) {
            error.retry = Some(cni::Code::TryAgain.err(error.to_string()));
        }
        error
    }

    /// What was being done to what.
    pub fn op(&self) -> &str {
        &self.op
    }

    /// Whether this is how a kernel answers that does not have what was asked for:
    /// no nfnetlink, no nf_tables, no such family.
    pub fn is_absent(&self) -> bool {
        is_absent(self.errno)
    }

    /// The kernel's errno; `ETIMEDOUT` when it did not answer in time,
    /// `ERESTART` and `EINTR` when others changed the rule set all the while.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

/// See [`Error::is_absent`].
pub fn is_absent(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EPROTONOSUPPORT
            | Errno::EAFNOSUPPORT
            | Errno::EPFNOSUPPORT
            | Errno::EOPNOTSUPP
            | Errno::ENOENT
            | Errno::EINVAL
    )
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.errno {
            Errno::ETIMEDOUT => "timed out".to_owned(),
            errno => cni::reason(&errno.into()),
        };
        write!(f, "{}: {reason} ({})", self.op, self.errno as i32)?;
        match &self.told {
            Some(told) => write!(f, ": {told}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.retry.as_ref().map(|retry| retry as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_action_object_cause_number() {
        let error = Error::new("add rule to chain inet t c", Errno::EOPNOTSUPP);
        assert_eq!(
            error.to_string(),
            "add rule to chain inet t c: operation not supported (95)"
        );
    }

    #[test]
    fn what_may_pass_tells_the_runtime_to_try_again() {
        for errno in [Errno::EBUSY, Errno::ETIMEDOUT, Errno::ERESTART] {
            let failed = anyhow::Error::new(Error::new("add table inet t", errno));
            let coded = cni::Error::from_chain(&failed.context("publish ports"));
            assert_eq!(coded.code, cni::Code::TryAgain as u32);
        }
        let wrong = anyhow::Error::new(Error::new("add table inet t", Errno::EINVAL));
        assert_eq!(cni::Error::from_chain(&wrong).code, 999);
    }
}
