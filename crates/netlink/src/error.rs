//! A failed request: what was being done, and the kernel's errno.

use std::{fmt, io};

use nix::errno::Errno;

use crate::refusal::Refusal;

/// A request that failed.
///
/// It displays as `add veth veth1a2b3c4d: file exists (17)`, followed by the kernel's own
/// words where it has some: `…: invalid argument (22): invalid gateway`. One whose cause
/// may pass (a deadline, a busy device) has a [`cni::Error`] with
/// [`cni::Code::TryAgain`] as its source, so that the runtime is told to retry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    op: String,
    errno: Errno,
    /// What the kernel says beside its errno.
    told: Option<String>,
    style: Style,
    retry: Option<cni::Error>,
}

/// How the cause is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// `file exists (17)`: ours.
    Numbered,
    /// `file exists`: where the whole text is one that runtimes know.
    Bare,
    /// `Link not found`: what the Go plugins say for a link that is absent.
    NoLink,
}

impl Error {
    /// `errno` happened while doing `op` ("set eth0 up").
    pub fn new(op: impl Into<String>, errno: Errno) -> Self {
        Self::refused(op, errno)
    }

    /// The same with the kernel's own words, if it has any.
    pub(crate) fn refused(op: impl Into<String>, refusal: impl Into<Refusal>) -> Self {
        Self::styled(op, refusal, Style::Numbered)
    }

    /// The same error, said with another `op`, and without the number: for a
    /// text that has to be kept to the letter.
    pub fn reword(self, op: impl Into<String>) -> Self {
        let style = match self.style {
            Style::NoLink => Style::NoLink,
            _ => Style::Bare,
        };
        Self { style, ..self }.about(op)
    }

    /// The same error of `op`, of which more is known.
    pub(crate) fn about(self, op: impl Into<String>) -> Self {
        let refusal = Refusal {
            errno: self.errno,
            told: self.told,
        };
        Self::styled(op, refusal, self.style)
    }

    pub(crate) fn no_link(op: impl Into<String>) -> Self {
        Self::styled(op, Errno::ENODEV, Style::NoLink)
    }

    pub(crate) fn io(op: impl Into<String>, error: &io::Error) -> Self {
        // An error without an errno is our own I/O that went wrong.
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self::new(op, errno)
    }

    fn styled(op: impl Into<String>, refusal: impl Into<Refusal>, style: Style) -> Self {
        let Refusal { errno, told } = refusal.into();
        let mut error = Self {
            op: op.into(),
            errno,
            told,
            style,
            retry: None,
        };
        if matches!(errno, Errno::ETIMEDOUT | Errno::EAGAIN | Errno::EBUSY) {
            error.retry = Some(cni::Code::TryAgain.err(error.to_string()));
        }
        error
    }

    /// The kernel's errno; `ETIMEDOUT` when it did not answer in time.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// Something with this name, address or key is there already.
    pub fn is_exists(&self) -> bool {
        self.errno == Errno::EEXIST
    }

    /// There is no room for one more: a bridge has all the ports that it can have.
    pub fn is_full(&self) -> bool {
        self.errno == Errno::EXFULL
    }

    /// No route leads there.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH)
    }

    /// We may not do that here: /proc/sys is mounted read-only, say.
    pub fn is_forbidden(&self) -> bool {
        matches!(self.errno, Errno::EROFS | Errno::EACCES | Errno::EPERM)
    }

    /// The kernel was built without it.
    pub fn is_unsupported(&self) -> bool {
        self.errno == Errno::EOPNOTSUPP
    }

    /// What was asked for or deleted is not there: a device (`ENODEV`), a file
    /// or table (`ENOENT`), a route (`ESRCH`), an address (`EADDRNOTAVAIL`).
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.errno,
            Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL
        )
    }

    /// The cause alone: "file exists".
    pub fn reason(&self) -> String {
        match (self.style, self.errno) {
            (Style::NoLink, _) => "Link not found".into(),
            (_, Errno::ETIMEDOUT) => "timed out".into(),
            (_, errno) => cni::reason(&errno.into()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.op, self.reason())?;
        match self.style {
            Style::Numbered => {
                write!(f, " ({})", self.errno as i32)?;
                match &self.told {
                    Some(told) => write!(f, ": {told}"),
                    None => Ok(()),
                }
            }
            Style::Bare | Style::NoLink => Ok(()),
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
        let error = Error::new("add veth veth1", Errno::EEXIST);
        assert_eq!(error.to_string(), "add veth veth1: file exists (17)");
        assert!(error.is_exists() && !error.is_not_found());
        let error = error.reword("could not add \"x\"");
        assert_eq!(error.to_string(), "could not add \"x\": file exists");
        assert!(error.is_exists());
    }

    #[test]
    fn the_kernels_words_follow_the_number() {
        let refusal = Refusal {
            errno: Errno::EINVAL,
            told: Some("invalid gateway".into()),
        };
        let error = Error::refused("add route to ::/0", refusal);
        assert_eq!(
            error.to_string(),
            "add route to ::/0: invalid argument (22): invalid gateway"
        );
        let error = error.reword("could not add a route");
        assert_eq!(error.to_string(), "could not add a route: invalid argument");
    }

    #[test]
    fn a_missing_link_is_said_as_go_says_it() {
        let error = Error::no_link("find link eth0");
        assert_eq!(error.to_string(), "find link eth0: Link not found");
        assert!(error.is_not_found());
    }

    #[test]
    fn what_may_pass_tells_the_runtime_to_try_again() {
        let slow = anyhow::Error::new(Error::new("set eth0 up", Errno::ETIMEDOUT));
        let coded = cni::Error::from_chain(&slow.context("wire the pod"));
        assert_eq!(coded.code, cni::Code::TryAgain as u32);
        assert_eq!(coded.msg, "set eth0 up: timed out (110)");
        let wrong = anyhow::Error::new(Error::new("set eth0 up", Errno::EINVAL));
        assert_eq!(cni::Error::from_chain(&wrong).code, 999);
    }
}
