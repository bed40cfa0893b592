//! User data of tables, chains, rules, sets and elements: the kernel keeps it for nft, which
//! finds comments and types in it. Entries are a type, a length and a value (libnftnl's
//! udata.h).

/// `NFTNL_UDATA_*_COMMENT` of tables, chains, rules and elements.
const COMMENT: u8 = 0;
/// `NFTNL_UDATA_SET_*`
pub const SET_KEYBYTEORDER: u8 = 0;
pub const SET_DATABYTEORDER: u8 = 1;
pub const SET_KEY_TYPEOF: u8 = 3;

/// The longest comment that nft accepts.
pub const COMMENT_LENGTH: usize = 128;

/// The part of a comment that is kept.
pub fn fitting(comment: &str) -> &str {
    let mut end = comment.len().min(COMMENT_LENGTH);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    &comment[..end]
}

/// User data with a comment.
pub fn comment_data(comment: &str) -> Vec<u8> {
    entry(COMMENT, &[fitting(comment).as_bytes(), &[0]].concat())
}

/// The comment in user data.
pub fn comment(mut user_data: &[u8]) -> Option<&str> {
    loop {
        let (head, rest) = user_data.split_first_chunk::<2>()?;
        let (value, rest) = rest.split_at_checked(usize::from(head[1]))?;
        if head[0] == COMMENT {
            return transport::text(value);
        }
        user_data = rest;
    }
}

/// One entry.
pub fn entry(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind, value.len() as u8], value].concat()
}

/// An entry with a number, which is in the machine's byte order.
pub fn number(kind: u8, value: u32) -> Vec<u8> {
    entry(kind, &value.to_ne_bytes())
}

/// An expression of nft that has a value of a type: its kind, and its parts.
pub fn typeof_expression(kind: u32, parts: &[u8]) -> Vec<u8> {
    [number(0, kind), entry(1, parts)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_where_nft_looks_for_them() {
        assert_eq!(comment_data("abc"), b"\x00\x04abc\0");
        assert_eq!(comment(b"\x00\x04abc\0"), Some("abc"));
        assert_eq!(comment(b"\x02\x02x\0\x00\x02a\0"), Some("a"));
        assert_eq!(comment(b"\x02\x09x\0"), None);
        assert_eq!(comment(&[]), None);
    }

    #[test]
    fn long_comments_are_cut_between_characters() {
        let long = format!("{}é", "a".repeat(127));
        assert_eq!(fitting(&long), "a".repeat(127));
        assert_eq!(comment_data(&"b".repeat(300)).len(), 131);
    }
}
