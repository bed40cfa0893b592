//! Patterns of interface names. Nodes name their interfaces after slots, and one configuration is
//! for all nodes.

use std::fmt;

/// Patterns in order of preference: the first one that matches any interface counts. `*` matches
/// any text, `?` any one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patterns(Vec<String>);

impl Patterns {
    /// Parses `bond0|enp*`; `None` for a plain name.
    pub fn parse(text: &str) -> Option<Self> {
        let patterns = || text.split('|').map(str::to_owned).collect();
        text.contains(['*', '?', '|']).then(|| Self(patterns()))
    }

    /// The items whose `name` matches the first pattern that matches any.
    pub fn select<'a, T>(&self, items: &'a [T], name: impl Fn(&T) -> &str) -> Vec<&'a T> {
        let matching = |pattern: &String| -> Vec<_> {
            let found = items.iter().filter(|it| matches(pattern, name(it)));
            found.collect()
        };
        let mut selections = self.0.iter().map(matching);
        selections.find(|it| !it.is_empty()).unwrap_or_default()
    }

    /// Whether `name` matches any pattern.
    pub fn match_name(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, name))
    }
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("|"))
    }
}

/// Keeps the set of ends: the positions in `name` up to which the pattern so far can match. A name
/// has at most 15 bytes, so the set is small for any pattern.
fn matches(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let mut ends = vec![0];
    for wanted in pattern.chars() {
        ends = match (wanted, ends.first()) {
            ('*', Some(first)) => (*first..=name.len()).collect(),
            _ => ends
                .into_iter()
                .filter(|end| {
                    name.get(*end)
                        .is_some_and(|c| wanted == '?' || wanted == *c)
                })
                .map(|end| end + 1)
                .collect(),
        };
    }
    ends.contains(&name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, name) in [
            ("en*", "enp1s0"),
            ("en*", "en"),
            ("*", "x"),
            ("en?", "en0"),
            ("e*p*s?", "enp130s1"),
            ("**0", "eth0"),
            ("e*0*0", "e0000"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("en*", "eth0"),
            ("en?", "en"),
            ("en?", "en10"),
            ("*1", "eth0"),
            ("", "eth0"),
            ("eth", "eth0"),
            ("e*x*0", "eth0"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn a_plain_name_is_no_pattern() {
        assert_eq!(Patterns::parse("eth0"), None);
        assert_eq!(Patterns::parse(""), None);
        assert!(Patterns::parse("eth0|eth1").is_some());
    }

    #[test]
    fn the_first_pattern_that_any_name_matches_counts() {
        let names = ["lo", "enp1s0", "enp2s0", "bond0"];
        let select = |text: &str| {
            let patterns = Patterns::parse(text).unwrap();
            let found = patterns.select(&names, |name| name);
            found.into_iter().copied().collect::<Vec<_>>()
        };
        assert_eq!(select("bond*|enp*"), ["bond0"]);
        assert_eq!(select("eth*|enp*"), ["enp1s0", "enp2s0"]);
        assert_eq!(select("eth*|wl*"), [""; 0]);
        assert_eq!(select("|enp2s0"), ["enp2s0"]);
    }
}
