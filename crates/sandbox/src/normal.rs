//! Make two runs comparable: chosen names and MAC addresses become the same text.

use std::collections::BTreeMap;

use serde_json::Value;

/// Replaces what a plugin chooses at random: host veth names, MAC addresses and
/// the IPv6 link-local addresses that follow from them. The same input becomes the
/// same placeholder, numbered in the order of appearance.
#[derive(Default)]
pub struct Normaliser {
    seen: BTreeMap<String, String>,
    plain: bool,
}

impl Normaliser {
    /// One that does not number: for text whose order depends on the random words.
    pub fn plain() -> Self {
        Self {
            plain: true,
            ..Self::default()
        }
    }

    /// Text with its random words replaced.
    pub fn text(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut word = String::new();
        for c in text.chars() {
            if c.is_ascii_alphanumeric() || c == ':' || c == '.' {
                word.push(c);
            } else {
                out.push_str(&self.word(&std::mem::take(&mut word)));
                out.push(c);
            }
        }
        out.push_str(&self.word(&word));
        out
    }

    /// A document with the random words in its texts replaced.
    pub fn value(&mut self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(all) => all.iter().map(|v| self.value(v)).collect(),
            Value::Object(all) => {
                let entries = all.iter().map(|(k, v)| (k.clone(), self.value(v)));
                Value::Object(entries.collect())
            }
            other => other.clone(),
        }
    }

    fn word(&mut self, word: &str) -> String {
        let Some(kind) = random_kind(word) else {
            return word.to_owned();
        };
        if self.plain {
            return kind.to_owned();
        }
        let next = self.seen.values().filter(|v| v.starts_with(kind)).count();
        let placeholder = self.seen.entry(word.to_owned());
        placeholder
            .or_insert_with(|| format!("{kind}{next}"))
            .clone()
    }
}

fn random_kind(word: &str) -> Option<&'static str> {
    let hex = |s: &str| s.chars().all(|c| c.is_ascii_hexdigit());
    if let Some(rest) = word.strip_prefix("veth")
        && rest.len() == 8
        && hex(rest)
    {
        return Some("VETH");
    }
    let parts: Vec<&str> = word.split(':').collect();
    if parts.len() == 6 && parts.iter().all(|p| p.len() == 2 && hex(p)) {
        let fixed = ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"];
        return (!fixed.contains(&word)).then_some("MAC");
    }
    word.starts_with("fe80::").then_some("LINKLOCAL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_word_gets_the_same_placeholder() {
        let mut normal = Normaliser::default();
        let text = normal.text("veth0a1b2c3d 02:00:00:00:00:01 veth0a1b2c3d fe80::1/64");
        assert_eq!(text, "VETH0 MAC0 VETH0 LINKLOCAL0/64");
    }

    #[test]
    fn fixed_words_stay() {
        let mut normal = Normaliser::default();
        let text = "00:00:00:00:00:00 vethernet 10.1.0.2/24 fd00::2 eth0";
        assert_eq!(normal.text(text), text);
    }
}
