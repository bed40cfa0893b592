//! Names that a resolver can answer.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

/// The longest label and the longest name in bytes (RFC 1035, section 2.3.4). The name is the text
/// without the dot at its end.
const LONGEST_LABEL: usize = 63;
const LONGEST: usize = 253;

/// A name of one or more labels in lower case, without a dot at its end. The first label may be `*`,
/// which stands for one or more labels.
///
/// ```
/// let name: names::Name = "Web.Apps.".parse().unwrap();
/// assert_eq!(name.as_str(), "web.apps");
/// assert!("web..apps".parse::<names::Name>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Name(String);

impl Name {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows `*.`, if the name is a wildcard.
    pub fn wildcard(&self) -> Option<&str> {
        self.0.strip_prefix("*.")
    }
}

/// The reason why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(&'static str);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Fault {}

impl FromStr for Name {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(Fault("a name is not empty"));
        }
        if text.len() > LONGEST {
            return Err(Fault("a name has at most 253 characters"));
        }
        for label in text.strip_prefix("*.").unwrap_or(text).split('.') {
            check_label(label)?;
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

/// Underscores are common in names of containers, and in those of services (RFC 2782).
fn check_label(label: &str) -> Result<(), Fault> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if label.is_empty() {
        return Err(Fault("a name has no empty label between its dots"));
    }
    if label.len() > LONGEST_LABEL {
        return Err(Fault("a label of a name has at most 63 characters"));
    }
    if !label.bytes().all(is_allowed) {
        return Err(Fault("a name has letters, digits, `-`, `_` and dots"));
    }
    Ok(())
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let fault = |fault| de::Error::custom(format_args!("invalid name {text:?}: {fault}"));
        text.parse().map_err(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_containers_and_services_are_names() {
        for text in [
            "web",
            "my_app-1.web_1",
            "*.apps",
            "*.a.b",
            "_http._tcp",
            "0123456789ab",
            "a.",
        ] {
            assert!(text.parse::<Name>().is_ok(), "{text}");
        }
        assert_eq!("*.Apps".parse::<Name>().unwrap().wildcard(), Some("apps"));
        assert_eq!("apps".parse::<Name>().unwrap().wildcard(), None);
    }

    #[test]
    fn what_no_question_can_have_is_refused() {
        let long_label = "a".repeat(64);
        let long_name = ["a"; 128].join(".");
        let wrong = [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a b",
            "a/b",
            "*",
            "a.*",
            "*.*.a",
            "ä",
            "a\0",
            &long_label,
            &long_name,
        ];
        for text in wrong {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
