//! Names that are derived by a hash.

use sha2::{Digest, Sha512};

/// The first `length` characters of `prefix` followed by the SHA-512 of `text`
/// in lower-case hex: how the Go plugins derive chain and device names.
pub fn prefixed(length: usize, prefix: &str, text: &str) -> String {
    let digest = Sha512::digest(text.as_bytes());
    // `write!` would take ten times as long as the hash.
    let digit = |half: u8| char::from_digit(u32::from(half), 16);
    let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    let hex = digits.filter_map(digit);
    prefix.chars().chain(hex).take(length).collect()
}

/// The first octets of the SHA-512 of `text`.
pub fn octets<const N: usize>(text: &str) -> [u8; N] {
    let digest = Sha512::digest(text.as_bytes());
    std::array::from_fn(|at| digest[at])
}

/// `text`, or a hash of it if it is longer than 120 bytes: two of them fit into an alias
/// (255 bytes, IFALIASZ in linux/if.h), and one into a file name. A hash starts with `#`,
/// which names and ids cannot contain.
pub fn short(text: &str) -> String {
    if text.len() <= 120 {
        return text.to_owned();
    }
    prefixed(65, "#", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_go_plugins() {
        let owner = "mynetaaaabbbbccccdddd";
        assert_eq!(prefixed(28, "CNI-", owner), "CNI-ac32b8ee4dcc1773aba08475");
        assert_eq!(
            prefixed(28, "CNI-DN-", owner),
            "CNI-DN-ac32b8ee4dcc1773aba08"
        );
        assert_eq!(prefixed(15, "bwp", owner), "bwpac32b8ee4dcc");
        assert_eq!(prefixed(16, "", "mynet"), "d23676b4f2d9fe04");
        assert_eq!(octets("mynet"), [0xd2, 0x36, 0x76, 0xb4]);
        assert_eq!(
            prefixed(16, "", "eth0:aaaabbbbccccdddd"),
            "a64ba18ca6ffe108"
        );
    }
}
