//! Names that follow from what they name.

use std::fmt::Write;

use sha2::{Digest, Sha512};

/// The first `length` characters of `prefix` followed by the SHA-512 of `text`
/// in lower-case hex: how the Go plugins derive chain and device names.
pub fn prefixed(length: usize, prefix: &str, text: &str) -> String {
    let mut name = prefix.to_owned();
    for byte in Sha512::digest(text.as_bytes()) {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name.truncate(length);
    name
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
        assert_eq!(
            prefixed(16, "", "eth0:aaaabbbbccccdddd"),
            "a64ba18ca6ffe108"
        );
    }
}
