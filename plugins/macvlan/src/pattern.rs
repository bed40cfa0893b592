//! Patterns of interface names, as `master` may have them: a node's interfaces
//! are called after its slots, and one configuration is for all nodes.

use std::fmt;

/// Patterns, of which the first that any interface matches counts. In each, `*`
/// stands for any text and `?` for any one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patterns(Vec<String>);

impl Patterns {
    /// Reads `bond0|enp*`; `None` when it is a plain name.
    pub fn parse(text: &str) -> Option<Self> {
        let patterns = || text.split('|').map(str::to_owned).collect();
        text.contains(['*', '?', '|']).then(|| Self(patterns()))
    }

    /// Of `names`, those that match the first pattern that any matches.
    pub fn select<'a, T>(&self, names: &'a [T], name: impl Fn(&T) -> &str) -> Vec<&'a T> {
        let of = |pattern: &String| {
            let matching = names.iter().filter(|it| matches(pattern, name(it)));
            matching.collect::<Vec<_>>()
        };
        let mut selections = self.0.iter().map(of);
        selections.find(|it| !it.is_empty()).unwrap_or_default()
    }

    /// Whether `name` matches any of them.
    pub fn match_name(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, name))
    }
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("|"))
    }
}

/// Whether `name` is what `pattern` describes. A name has 15 bytes, so the number
/// of ways to try is small, whatever the pattern.
fn matches(pattern: &str, name: &str) -> bool {
    let mut at: Vec<usize> = vec![0];
    let name: Vec<char> = name.chars().collect();
    // `at`: up to where in the name the pattern so far may have come.
    for wanted in pattern.chars() {
        at = match wanted {
            '*' => at
                .first()
                .map_or_else(Vec::new, |first| (*first..=name.len()).collect()),
            wanted => at
                .into_iter()
                .filter(|i| name.get(*i).is_some_and(|c| wanted == '?' || wanted == *c))
                .map(|i| i + 1)
                .collect(),
        };
    }
    at.contains(&name.len())
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
