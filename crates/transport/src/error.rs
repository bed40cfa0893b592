//! The result of a request, as an acknowledgement reports it.

use cni::Refusal;
use nix::{errno::Errno, libc};

use crate::{Message, attributes::find, message::HEADER};

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
}
