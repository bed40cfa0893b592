//! Why the kernel refused a request: its errno and, since Linux 4.12, its own words.

use nix::errno::Errno;

use crate::answer::attributes;

/// An errno, and what the kernel says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    /// As causes are written here: `nexthop has invalid gateway`.
    pub(crate) told: Option<String>,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, told: None }
    }
}

/// linux/netlink.h: the answer has not the whole request in it; it has attributes.
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

impl Refusal {
    /// What an answer says: its flags, its code (negated, as it comes), and what follows the
    /// code. `None` for an acknowledgement.
    pub(crate) fn read(flags: u16, code: i32, rest: &[u8]) -> Option<Self> {
        // A dump may end with its length.
        let errno = (code < 0).then(|| Errno::from_raw(code.wrapping_neg()))?;
        let told = told(flags, rest);
        Some(Self { errno, told })
    }

    /// The same at the end of a dump, which has no request in it.
    pub(crate) fn of_dump(code: i32, rest: &[u8]) -> Option<Self> {
        let errno = (code < 0).then(|| Errno::from_raw(code.wrapping_neg()))?;
        let told = words(rest);
        Some(Self { errno, told })
    }
}

fn told(flags: u16, rest: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let request = match flags & NLM_F_CAPPED {
        0 => u32::from_ne_bytes(*rest.first_chunk()?) as usize,
        _ => HEADER,
    };
    words(rest.get(request.next_multiple_of(4)..)?)
}

fn words(bytes: &[u8]) -> Option<String> {
    let mut all = attributes(bytes);
    let (_, value) = all.find(|(attribute, _)| *attribute == NLMSGERR_ATTR_MSG)?;
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = cni::as_cause(&String::from_utf8_lossy(text));
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of a request of `length` bytes, the rest of it, and the kernel's words.
    fn answer(length: u32, words: &[u8]) -> Vec<u8> {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.resize(length as usize, 0);
        bytes.extend((4 + words.len() as u16).to_ne_bytes());
        bytes.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        bytes.extend(words);
        bytes
    }

    #[test]
    fn the_kernels_words_follow_the_request() {
        let words = b"Nexthop has invalid gateway\0";
        for (flags, length) in [(0, 40), (NLM_F_CAPPED, 16)] {
            let refusal = Refusal::read(flags | NLM_F_ACK_TLVS, -22, &answer(length, words));
            let refusal = refusal.unwrap();
            assert_eq!(refusal.errno, Errno::EINVAL);
            assert_eq!(refusal.told.as_deref(), Some("nexthop has invalid gateway"));
        }
        assert_eq!(
            Refusal::of_dump(-22, &answer(0, words)[4..]),
            Some(Errno::EINVAL.into())
        );
    }

    #[test]
    fn an_answer_without_words_is_an_errno() {
        let plain = Some(Refusal::from(Errno::EPERM));
        assert_eq!(Refusal::read(0, -1, &answer(16, b"x\0")), plain);
        assert_eq!(Refusal::read(NLM_F_ACK_TLVS, -1, &[]), plain);
        assert_eq!(Refusal::read(NLM_F_ACK_TLVS, -1, &[255; 4]), plain);
        assert_eq!(Refusal::read(NLM_F_ACK_TLVS, 0, &[]), None);
    }
}
