//! A system call or a kernel request that failed: what was being done to what, the errno
//! and the kernel's explanation.

use std::{fmt, io};

use nix::errno::Errno;

use crate::error::Code;
use crate::privilege::Capability;

/// Why the kernel refused a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// The kernel's explanation, since Linux 4.12: `nexthop has invalid gateway`.
    pub text: Option<String>,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, text: None }
    }
}

/// A system call or a kernel request that failed.
///
/// It displays as `add veth veth1a2b3c4d: file exists (17)`, followed by the kernel's
/// explanation where there is one: `…: invalid argument (22): invalid gateway`.
/// [`crate::Error::from_chain`] derives the error code from it, and the capability that
/// this process lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemError {
    op: String,
    refusal: Refusal,
    style: Style,
    needs: &'static [Capability],
}

/// How the cause is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// `file exists (17)`
    Numbered,
    /// `file exists`: for texts that have to match those of the Go plugins.
    Bare,
    /// `Link not found`: with the text in place of the errno's.
    Worded,
}

impl SystemError {
    /// `errno` happened while doing `op` ("set eth0 up").
    pub fn new(op: impl Into<String>, errno: Errno) -> Self {
        Self::refused(op, errno)
    }

    /// The same, with the kernel's explanation.
    pub fn refused(op: impl Into<String>, refusal: impl Into<Refusal>) -> Self {
        let refusal = refusal.into();
        let needs = match refusal.errno {
            Errno::EPERM => &[Capability::NetAdmin, Capability::SysAdmin][..],
            // A file of another user.
            Errno::EACCES => &[Capability::DacOverride],
            _ => &[],
        };
        Self {
            op: op.into(),
            refusal,
            style: Style::Numbered,
            needs,
        }
    }

    /// `error` happened while doing `op`; without an errno it counts as `EIO`.
    pub fn io(op: impl Into<String>, error: &io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self::new(op, errno)
    }

    /// `<op>: <cause>`: for texts that have to match those of the Go plugins.
    pub fn worded(op: impl Into<String>, errno: Errno, cause: impl Into<String>) -> Self {
        let text = Some(cause.into());
        let refused = Self::refused(op, Refusal { errno, text });
        let style = Style::Worded;
        Self { style, ..refused }
    }

    /// A link that does not exist, in the words of the Go plugins.
    pub fn no_link(op: impl Into<String>) -> Self {
        Self::worded(op, Errno::ENODEV, "Link not found")
    }

    /// The same error with a more precise `op`.
    pub fn about(self, op: impl Into<String>) -> Self {
        let op = op.into();
        Self { op, ..self }
    }

    /// The same error with another `op`, and without number and explanation: for a text that
    /// has to be kept to the letter.
    pub fn reword(self, op: impl Into<String>) -> Self {
        let style = match self.style {
            Style::Worded => Style::Worded,
            _ => Style::Bare,
        };
        Self { style, ..self }.about(op)
    }

    /// The same error of an operation that needs the capabilities `needs`, if the process
    /// was not permitted to do it.
    pub fn needs(self, needs: &'static [Capability]) -> Self {
        if self.needs.is_empty() {
            return self;
        }
        Self { needs, ..self }
    }

    /// The capabilities that the operation may have lacked.
    pub(crate) fn needed(&self) -> &'static [Capability] {
        self.needs
    }

    /// Code 11 if the cause may pass: a deadline, a busy device, a list that others keep
    /// changing.
    pub(crate) fn code(&self) -> Option<Code> {
        let may_pass = matches!(
            self.refusal.errno,
            Errno::ETIMEDOUT | Errno::EAGAIN | Errno::EBUSY | Errno::ERESTART | Errno::EINTR
        );
        may_pass.then_some(Code::TryAgain)
    }

    /// What was being done to what.
    pub fn op(&self) -> &str {
        &self.op
    }

    /// The kernel's errno; `ETIMEDOUT` when it did not answer in time, `ERESTART` and `EINTR`
    /// when others changed the objects in each attempt.
    pub fn errno(&self) -> Errno {
        self.refusal.errno
    }

    /// Something with this name, address or key exists already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Errno::EEXIST
    }

    /// There is no room for one more: a bridge has the maximum number of ports.
    pub fn is_full(&self) -> bool {
        self.errno() == Errno::EXFULL
    }

    /// There is no route to the address.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.errno(), Errno::ENETUNREACH | Errno::EHOSTUNREACH)
    }

    /// This process may not do that, for example because /proc/sys is mounted read-only.
    pub fn is_forbidden(&self) -> bool {
        matches!(self.errno(), Errno::EROFS | Errno::EACCES | Errno::EPERM)
    }

    /// The kernel was built without it.
    pub fn is_unsupported(&self) -> bool {
        self.errno() == Errno::EOPNOTSUPP
    }

    /// The kernel refuses the value as such, in the state that the interface is in, and not for lack
    /// of memory or time. In its own namespace, a pod can bring that about.
    pub fn is_for_good(&self) -> bool {
        let unusable = matches!(
            self.errno(),
            Errno::EINVAL | Errno::ERANGE | Errno::EADDRNOTAVAIL | Errno::EBUSY | Errno::ENODEV
        );
        unusable
            || self.errno() == Errno::ENETDOWN
            || self.is_unreachable()
            || self.is_unsupported()
    }

    /// The object does not exist: a device (`ENODEV`), a file or table (`ENOENT`), a route
    /// (`ESRCH`), an address (`EADDRNOTAVAIL`).
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.errno(),
            Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL
        )
    }

    /// The cause alone: "file exists".
    pub fn reason(&self) -> String {
        match (self.style, &self.refusal) {
            (
                Style::Worded,
                Refusal {
                    text: Some(cause), ..
                },
            ) => cause.clone(),
            (_, refusal) if refusal.errno == Errno::ETIMEDOUT => "timed out".into(),
            (_, refusal) => crate::reason(&refusal.errno.into()),
        }
    }
}

impl fmt::Display for SystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.op, self.reason())?;
        if self.style == Style::Numbered {
            write!(f, " ({})", self.errno() as i32)?;
            if let Some(text) = &self.refusal.text {
                write!(f, ": {text}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for SystemError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_action_object_cause_number() {
        let error = SystemError::new("add veth veth1", Errno::EEXIST);
        assert_eq!(error.to_string(), "add veth veth1: file exists (17)");
        assert!(error.is_exists() && !error.is_not_found());
        let error = error.reword("could not add \"x\"");
        assert_eq!(error.to_string(), "could not add \"x\": file exists");
        assert!(error.is_exists());
    }

    #[test]
    fn the_kernels_explanation_follows_the_number() {
        let refusal = Refusal {
            errno: Errno::EINVAL,
            text: Some("invalid gateway".into()),
        };
        let error = SystemError::refused("add route to ::/0", refusal);
        assert_eq!(
            error.to_string(),
            "add route to ::/0: invalid argument (22): invalid gateway"
        );
        let error = error.reword("could not add a route");
        assert_eq!(error.to_string(), "could not add a route: invalid argument");
    }

    #[test]
    fn a_missing_link_reads_as_in_the_go_plugins() {
        let error = SystemError::no_link("find link eth0");
        assert_eq!(error.to_string(), "find link eth0: Link not found");
        assert!(error.is_not_found());
    }

    #[test]
    fn only_a_refusal_for_lack_of_a_capability_needs_one() {
        let raw = &[Capability::NetRaw];
        let open = |errno| SystemError::new("open a packet socket", errno).needs(raw);
        assert_eq!(open(Errno::EPERM).needed(), raw);
        assert_eq!(open(Errno::ENODEV).needed(), []);
    }
}
