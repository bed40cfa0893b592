//! `--filter KEY=VALUE`, as `docker network ls` and `prune` have it: values of one key are
//! alternatives, keys are conditions. Only labels are all conditions.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use networks::named::{Moment, Network};
use regex_lite::Regex;

/// Conditions for networks.
#[derive(Debug)]
pub struct Filter {
    conditions: BTreeMap<String, Vec<Condition>>,
}

#[derive(Debug)]
enum Condition {
    Driver(String),
    Scope(String),
    Text(Field, String, Option<Regex>),
    Label {
        key: String,
        value: Option<String>,
        wanted: bool,
    },
    Custom(bool),
    Dangling(bool),
    Until(Moment),
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Id,
    Name,
}

/// What filters compare beside the configuration of a network.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The network.
    pub network: &'a Network,
    /// When it was created.
    pub created: Option<Moment>,
    /// Whether containers are attached.
    pub in_use: bool,
}

/// The keys of `ls`.
pub const LIST: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];
/// The keys of `prune`.
pub const PRUNE: &[&str] = &["label", "label!", "until"];

impl Filter {
    /// Reads the words of `--filter` with some of the keys.
    ///
    /// # Errors
    /// A word is not `KEY=VALUE`, or has another key or an impossible value.
    pub fn read(words: &[String], keys: &[&str]) -> Result<Self> {
        let mut conditions = BTreeMap::<String, Vec<Condition>>::new();
        for word in words {
            let pair = word.split_once('=');
            let (key, value) =
                pair.with_context(|| format!("invalid filter {word:?}: expected KEY=VALUE"))?;
            let (key, value) = (key.trim().to_lowercase(), value.trim());
            if !keys.contains(&&*key) {
                bail!("invalid filter '{key}': expected {}", keys.join(", "));
            }
            let condition = condition(&key, value)?;
            conditions.entry(key).or_default().push(condition);
        }
        Ok(Self { conditions })
    }

    /// Whether a condition asks for users of a network.
    pub fn needs_users(&self) -> bool {
        self.conditions.contains_key("dangling")
    }

    /// Whether a network meets the conditions.
    pub fn accepts(&self, facts: Facts<'_>) -> bool {
        self.conditions
            .iter()
            .all(|(key, conditions)| match key.as_str() {
                "label" | "label!" => conditions.iter().all(|it| it.holds(facts)),
                _ => conditions.iter().any(|it| it.holds(facts)),
            })
    }
}

fn condition(key: &str, value: &str) -> Result<Condition> {
    let invalid = || format!("invalid filter '{key}={value}'");
    let text = |field| Condition::Text(field, value.to_owned(), Regex::new(value).ok());
    let label = |wanted| {
        let (key, value) = match value.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (value, None),
        };
        Condition::Label {
            key: key.to_owned(),
            value,
            wanted,
        }
    };
    Ok(match key {
        "driver" => Condition::Driver(value.to_owned()),
        "scope" => Condition::Scope(value.to_owned()),
        "id" => text(Field::Id),
        "name" => text(Field::Name),
        "label" => label(true),
        "label!" => label(false),
        "type" => match value {
            "builtin" => Condition::Custom(false),
            "custom" => Condition::Custom(true),
            _ => bail!("{}: expected builtin or custom", invalid()),
        },
        "dangling" => match value {
            "1" | "true" => Condition::Dangling(true),
            "0" | "false" => Condition::Dangling(false),
            _ => bail!("{}: expected true or false", invalid()),
        },
        _ => Condition::Until(until(value).with_context(invalid)?),
    })
}

impl Condition {
    fn holds(&self, facts: Facts<'_>) -> bool {
        let network = facts.network;
        match self {
            Self::Driver(driver) => network.driver() == driver,
            Self::Scope(scope) => scope == super::document::SCOPE,
            Self::Text(field, text, regex) => {
                let value = match field {
                    Field::Id => &network.id,
                    Field::Name => &network.name,
                };
                value == text
                    || regex
                        .as_ref()
                        .map_or(value.contains(text), |it| it.is_match(value))
            }
            Self::Label { key, value, wanted } => {
                let labels = network.listed().map(|it| &it.record.labels);
                let label = labels.and_then(|it| it.get(key));
                let has = label.is_some_and(|it| value.as_ref().is_none_or(|value| it == value));
                has == *wanted
            }
            Self::Custom(custom) => network.is_predefined() != *custom,
            Self::Dangling(dangling) => (!facts.in_use && !network.is_predefined()) == *dangling,
            Self::Until(moment) => facts.created.is_some_and(|it| it < *moment),
        }
    }
}

/// Unix seconds, a date, or a duration before now.
fn until(text: &str) -> Result<Moment> {
    if let Some(span) = duration(text) {
        return Ok(Moment::now().before(span));
    }
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let nanoseconds = format!("{fraction:0<9}")
        .get(..9)
        .and_then(|it| it.parse().ok());
    let seconds: Option<i64> = seconds.parse().ok();
    let moment = seconds.zip(nanoseconds);
    let (seconds, nanoseconds) = moment.context("expected a time, as 2026-01-31T10:00 or 24h")?;
    Ok(Moment::from_unix(seconds, nanoseconds))
}

/// Go's durations: `1h30m`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit() && it != '.')?;
        let (number, unit) = rest.split_at(digits);
        let end = unit
            .find(|it: char| it.is_ascii_digit() || it == '.')
            .unwrap_or(unit.len());
        let (unit, next) = unit.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        rest = next;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_is_a_time_or_a_duration() {
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(duration("1h30"), None);
        let at = |text: &str| until(text).map(|it| it.to_string()).ok();
        assert_eq!(
            at("1700493042.5").as_deref(),
            Some("2023-11-20T15:10:42.5Z")
        );
        assert_eq!(at("2023-11-20").as_deref(), Some("2023-11-20T00:00:00Z"));
        assert!(at("10m").is_some() && at("soon").is_none() && at("").is_none());
    }

    #[test]
    fn wrong_filters_are_errors() {
        for word in [
            "x",
            "color=red",
            "type=other",
            "dangling=maybe",
            "until=1h",
            "=x",
        ] {
            assert!(Filter::read(&[word.into()], LIST).is_err(), "{word}");
        }
        for word in ["name=a", "until=soon"] {
            assert!(Filter::read(&[word.into()], PRUNE).is_err(), "{word}");
        }
    }
}
