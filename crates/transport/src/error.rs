//! Why a request failed: what was being done, the kernel's errno and its explanation.

use std::{fmt, io};

use nix::{errno::Errno, libc};

use crate::{Message, attributes::find, message::HEADER};

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

/// linux/netlink.h: the acknowledgement holds the header of the request only; it has attributes.
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

impl Message<'_> {
    /// The result of a request, if this message is its acknowledgement or the end of a dump.
    pub fn outcome(self) -> Option<Result<(), Refusal>> {
        let errno = match i32::from(self.kind) {
            libc::NLMSG_ERROR | libc::NLMSG_DONE => match self.body.first_chunk() {
                // Errors are negative. A dump may end with its length.
                Some(code) => match i32::from_ne_bytes(*code) {
                    0.. => return Some(Ok(())),
                    code => Errno::from_raw(code.wrapping_neg()),
                },
                None => Errno::EBADMSG,
            },
            libc::NLMSG_OVERRUN => Errno::ENOBUFS,
            _ => return None,
        };
        let text = self.explanation();
        Some(Err(Refusal { errno, text }))
    }

    /// The text in an acknowledgement. It follows the request, of which there may be no more
    /// than the header. The end of a dump holds no request.
    fn explanation(self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let rest = self.body.get(4..)?;
        let request = if i32::from(self.kind) == libc::NLMSG_DONE {
            0
        } else if self.flags & NLM_F_CAPPED != 0 {
            HEADER
        } else {
            u32::from_ne_bytes(*rest.first_chunk()?) as usize
        };
        let text = find(rest.get(request.next_multiple_of(4)..)?, NLMSGERR_ATTR_MSG)?;
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = cni::as_cause(&String::from_utf8_lossy(text));
        Some(text).filter(|text| !text.is_empty())
    }
}

/// A request that failed.
///
/// It displays as `add veth veth1a2b3c4d: file exists (17)`, followed by the kernel's
/// explanation where there is one: `…: invalid argument (22): invalid gateway`. If the cause
/// may pass (a deadline, a busy device, a list that others keep changing), its source is a
/// [`cni::Error`] with [`cni::Code::TryAgain`], so that the runtime tries again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    op: String,
    errno: Errno,
    text: Option<String>,
    style: Style,
    retry: Option<cni::Error>,
}

/// How the cause is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// `file exists (17)`
    Numbered,
    /// `file exists`: for texts that have to match those of the Go plugins.
    Bare,
    /// `Link not found`: the Go plugins' text for an absent link.
    NoLink,
}

impl Error {
    /// `errno` happened while doing `op` ("set eth0 up").
    pub fn new(op: impl Into<String>, errno: Errno) -> Self {
        Self::refused(op, errno)
    }

    /// The same, with the kernel's explanation.
    pub fn refused(op: impl Into<String>, refusal: impl Into<Refusal>) -> Self {
        Self::styled(op, refusal, Style::Numbered)
    }

    /// The same error with another `op`, and without number and explanation: for a text that
    /// has to be kept to the letter.
    pub fn reword(self, op: impl Into<String>) -> Self {
        let style = match self.style {
            Style::NoLink => Style::NoLink,
            _ => Style::Bare,
        };
        Self { style, ..self }.about(op)
    }

    /// The same error with a more precise `op`.
    pub fn about(self, op: impl Into<String>) -> Self {
        let refusal = Refusal {
            errno: self.errno,
            text: self.text,
        };
        Self::styled(op, refusal, self.style)
    }

    /// A link that does not exist, in the words of the Go plugins.
    pub fn no_link(op: impl Into<String>) -> Self {
        Self::styled(op, Errno::ENODEV, Style::NoLink)
    }

    /// `error` happened while doing `op`; without an errno it counts as `EIO`.
    pub fn io(op: impl Into<String>, error: &io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self::new(op, errno)
    }

    fn styled(op: impl Into<String>, refusal: impl Into<Refusal>, style: Style) -> Self {
        let Refusal { errno, text } = refusal.into();
        let mut error = Self {
            op: op.into(),
            errno,
            text,
            style,
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

    /// The kernel's errno; `ETIMEDOUT` when it did not answer in time, `ERESTART` and `EINTR`
    /// when others changed the objects in each attempt.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// Something with this name, address or key exists already.
    pub fn is_exists(&self) -> bool {
        self.errno == Errno::EEXIST
    }

    /// There is no room for one more: a bridge has the maximum number of ports.
    pub fn is_full(&self) -> bool {
        self.errno == Errno::EXFULL
    }

    /// There is no route to the address.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH)
    }

    /// This process may not do that, for example because /proc/sys is mounted read-only.
    pub fn is_forbidden(&self) -> bool {
        matches!(self.errno, Errno::EROFS | Errno::EACCES | Errno::EPERM)
    }

    /// The kernel was built without it.
    pub fn is_unsupported(&self) -> bool {
        self.errno == Errno::EOPNOTSUPP
    }

    /// The object does not exist: a device (`ENODEV`), a file or table (`ENOENT`), a route
    /// (`ESRCH`), an address (`EADDRNOTAVAIL`).
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
                match &self.text {
                    Some(text) => write!(f, ": {text}"),
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

    /// The header of a request of `length` bytes, the rest of it, and the explanation.
    fn answer(length: u32, text: &[u8]) -> Vec<u8> {
        let mut bytes = (-22_i32).to_ne_bytes().to_vec();
        bytes.extend(length.to_ne_bytes());
        bytes.resize(4 + length as usize, 0);
        bytes.extend((4 + text.len() as u16).to_ne_bytes());
        bytes.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        bytes.extend(text);
        bytes
    }

    fn outcome(kind: i32, flags: u16, body: &[u8]) -> Option<Result<(), Refusal>> {
        let message = Message {
            kind: kind as u16,
            flags,
            sequence: 1,
            body,
        };
        message.outcome()
    }

    #[test]
    fn the_explanation_follows_the_request_if_there_is_one() {
        let text = b"Nexthop has invalid gateway\0";
        let refused = Some(Err(Refusal {
            errno: Errno::EINVAL,
            text: Some("nexthop has invalid gateway".into()),
        }));
        for (flags, length) in [(0, 40), (NLM_F_CAPPED, 16)] {
            let body = answer(length, text);
            let outcome = outcome(libc::NLMSG_ERROR, flags | NLM_F_ACK_TLVS, &body);
            assert_eq!(outcome, refused);
        }
        let done = answer(0, text);
        assert_eq!(outcome(libc::NLMSG_DONE, NLM_F_ACK_TLVS, &done), refused);
    }

    #[test]
    fn an_outcome_without_an_explanation_is_an_errno() {
        let plain = |errno| Some(Err(Refusal::from(errno)));
        let error = libc::NLMSG_ERROR;
        assert_eq!(outcome(error, 0, &answer(16, b"x\0")), plain(Errno::EINVAL));
        let cut = &answer(16, b"x\0")[..4];
        assert_eq!(outcome(error, NLM_F_ACK_TLVS, cut), plain(Errno::EINVAL));
        assert_eq!(outcome(error, 0, &[0; 3]), plain(Errno::EBADMSG));
        assert_eq!(outcome(error, 0, &[0; 4]), Some(Ok(())));
        assert_eq!(outcome(libc::NLMSG_DONE, 0, &[36, 0, 0, 0]), Some(Ok(())));
        assert_eq!(outcome(16, 0, &[0; 4]), None);
    }

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
    fn the_kernels_explanation_follows_the_number() {
        let refusal = Refusal {
            errno: Errno::EINVAL,
            text: Some("invalid gateway".into()),
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
    fn a_missing_link_reads_as_in_the_go_plugins() {
        let error = Error::no_link("find link eth0");
        assert_eq!(error.to_string(), "find link eth0: Link not found");
        assert!(error.is_not_found());
    }

    #[test]
    fn a_cause_that_may_pass_tells_the_runtime_to_try_again() {
        let slow = anyhow::Error::new(Error::new("set eth0 up", Errno::ETIMEDOUT));
        let coded = cni::Error::from_chain(&slow.context("wire the pod"));
        assert_eq!(coded.code, cni::Code::TryAgain as u32);
        assert_eq!(coded.msg, "set eth0 up: timed out (110)");
        let wrong = anyhow::Error::new(Error::new("set eth0 up", Errno::EINVAL));
        assert_eq!(cni::Error::from_chain(&wrong).code, 999);
    }
}
