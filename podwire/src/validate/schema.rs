//! Tables of keys, and values compared with them.
//!
//! A table says what a plugin's own `conf.rs` says with its types.

use cni::Cidr;
use cni::address::parse_ip;
use cni::env::IfName;
use cni::json::Json;

use super::findings::Findings;
use super::spelling;

/// A key of an object.
pub struct Key {
    /// As it is documented; it matches in any case.
    pub name: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// Whether it may be left out.
    pub required: bool,
}

/// What a value may be. `null` may stand for anything: it leaves the default.
pub enum Kind {
    /// `true` or `false`
    Bool,
    /// An integer from the one to the other.
    Integer(i64, i64),
    /// Any text.
    Text,
    /// Text that this takes; its error is the reason.
    Parsed(fn(&str) -> Result<(), String>),
    /// Anything that this takes; its error is the reason.
    Custom(fn(&Json) -> Result<(), String>),
    /// A list of such.
    List(&'static Kind),
    /// An object with these keys, and perhaps others.
    Object(&'static [Key], Others),
    /// An object with any keys and `true` or `false` for each.
    BoolMap,
}

/// Keys that a table does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Somebody else reads them.
    AreFine,
    /// Nobody reads them.
    AreMistakes,
}

impl Kind {
    /// An address; no text is no address.
    pub const ADDRESS: Self = Self::Parsed(|text| match text {
        "" => Ok(()),
        text => parse_ip(text).map(drop),
    });
    /// An address with its prefix.
    pub const CIDR: Self = Self::Parsed(|text| text.parse::<Cidr>().map(drop));
    /// An address with its prefix, or a list of them; no text is none.
    pub const CIDRS: Self = Self::Custom(cidrs);
    /// The name of an interface.
    pub const INTERFACE: Self = Self::Parsed(|text| {
        let name = IfName::parse(text);
        name.map(drop).map_err(|error| error.to_string())
    });
    /// A hardware address of six bytes; no text is none.
    pub const MAC: Self = Self::Parsed(mac);
    /// What a kernel counts in 32 bits.
    pub const UNSIGNED: Self = Self::Integer(0, u32::MAX as i64);
}

impl Key {
    /// A key that may be left out.
    pub const fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            required: false,
        }
    }

    /// A key that may not.
    pub const fn required(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            required: true,
        }
    }
}

/// Compares the members of an object with `tables`, of which the first that has
/// a key counts.
pub fn check_members(
    members: &[(String, Json)],
    tables: &[&'static [Key]],
    others: Others,
    place: &str,
    findings: &mut Findings,
) {
    let all = || tables.iter().flat_map(|table| table.iter());
    for (index, (name, value)) in members.iter().enumerate() {
        let place = join(place, name);
        let again = |(other, _): &(String, Json)| other.eq_ignore_ascii_case(name);
        if members[..index].iter().any(again) {
            findings.warning(&place, "written more than once: the last one counts");
        }
        let mut after = members[index + 1..].iter();
        let is_overridden = after.any(|it| again(it) && it.1 != Json::Null);
        match all().find(|key| key.name.eq_ignore_ascii_case(name)) {
            Some(_) if is_overridden => {}
            // What a plugin reads: the last that is not null, or all objects as one.
            Some(key) if members[..index].iter().any(again) && *value != Json::Null => {
                let read = Json::Object(members.to_vec()).get(name);
                check(&read.unwrap_or_default(), &key.kind, &place, findings);
            }
            Some(key) => check(value, &key.kind, &place, findings),
            None if others == Others::AreMistakes => {
                let names: Vec<_> = all().map(|key| key.name).collect();
                findings.warning(&place, unknown(name, &names));
            }
            None => {}
        }
    }
    for key in all().filter(|key| key.required) {
        let present = |(name, value): &(String, Json)| {
            name.eq_ignore_ascii_case(key.name) && *value != Json::Null
        };
        if !members.iter().any(present) {
            findings.error(&join(place, key.name), "missing");
        }
    }
}

fn cidrs(value: &Json) -> Result<(), String> {
    match value {
        Json::String(text) if text.is_empty() => Ok(()),
        Json::String(text) => text.parse::<Cidr>().map(drop),
        Json::Array(items) => items.iter().try_for_each(cidrs),
        other => Err(format!(
            "expected a network or a list of networks, got {}",
            kind_of(other)
        )),
    }
}

/// What is said of a key that nobody reads.
pub fn unknown(name: &str, known: &[&'static str]) -> String {
    match spelling::slip(name, known) {
        Some(meant) => format!("unknown key; did you mean {meant}?"),
        None => "unknown key, ignored".to_owned(),
    }
}

/// Compares a value with what it may be.
pub fn check(value: &Json, kind: &Kind, place: &str, findings: &mut Findings) {
    let mut expected = |what: &str| {
        let reason = format!("expected {what}, got {}", kind_of(value));
        findings.error(place, reason);
    };
    match (kind, value) {
        (_, Json::Null) | (Kind::Bool, Json::Bool(_)) | (Kind::Text, Json::String(_)) => {}
        (Kind::Bool, _) => expected("a boolean"),
        (Kind::Text | Kind::Parsed(_), other) if !matches!(other, Json::String(_)) => {
            expected("a string");
        }
        (Kind::Integer(least, most), Json::Number(number)) => match integer(value) {
            Some(number) if (*least..=*most).contains(&number) => {}
            Some(_) => {
                findings.error(place, format!("{number} is not between {least} and {most}"));
            }
            None => findings.error(place, format!("{number} is no integer in range")),
        },
        (Kind::Integer(..), _) => expected("an integer"),
        (Kind::Parsed(parse), Json::String(text)) => {
            if let Err(reason) = parse(text) {
                findings.error(place, reason);
            }
        }
        (Kind::Custom(check), _) => {
            if let Err(reason) = check(value) {
                findings.error(place, reason);
            }
        }
        (Kind::List(kind), Json::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                check(item, kind, &format!("{place}[{index}]"), findings);
            }
        }
        (Kind::List(_), _) => expected("a list"),
        (Kind::Object(keys, others), Json::Object(members)) => {
            check_members(members, &[keys], *others, place, findings);
        }
        (Kind::BoolMap, Json::Object(members)) => {
            for (name, value) in members {
                check(value, &Kind::Bool, &join(place, name), findings);
            }
        }
        (Kind::Object(..) | Kind::BoolMap, _) => expected("an object"),
        (Kind::Text | Kind::Parsed(_), _) => {}
    }
}

/// What a value is, for a sentence.
pub fn kind_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}

/// The place of `key` in the object at `place`.
pub fn join(place: &str, key: &str) -> String {
    match place {
        "" => key.to_owned(),
        place => format!("{place}.{key}"),
    }
}

/// A string, if it is one.
pub fn text(value: Option<Json>) -> Option<String> {
    match value {
        Some(Json::String(text)) => Some(text),
        _ => None,
    }
}

/// An integer, if it is one: for a plugin, `1500.0` and `1e3` are none.
pub fn integer(value: &Json) -> Option<i64> {
    match value {
        Json::Number(number) => number.as_i64(),
        _ => None,
    }
}

/// A list's items; none for anything else.
pub fn items(value: Option<Json>) -> Vec<Json> {
    match value {
        Some(Json::Array(items)) => items,
        _ => Vec::new(),
    }
}

/// Six bytes with colons or dashes between them, or three pairs with dots: what
/// Go's `net.ParseMAC` takes.
fn mac(text: &str) -> Result<(), String> {
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let made_of = |separator: char, count: usize, length: usize| {
        text.split(separator).count() == count
            && text.split(separator).all(|part| hex(part, length))
    };
    if text.is_empty() || made_of(':', 6, 2) || made_of('-', 6, 2) || made_of('.', 3, 4) {
        return Ok(());
    }
    Err(format!("address {text}: invalid MAC address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[Key] = &[
        Key::required("name", Kind::Text),
        Key::new("isGateway", Kind::Bool),
        Key::new("vlan", Kind::Integer(0, 4094)),
        Key::new("ips", Kind::List(&Kind::CIDR)),
        Key::new("gw", Kind::ADDRESS),
        Key::new("mac", Kind::MAC),
        Key::new("capabilities", Kind::BoolMap),
    ];

    fn findings(text: &str) -> Vec<String> {
        let mut findings = Findings::default();
        let kind = Kind::Object(KEYS, Others::AreMistakes);
        check(
            &Json::parse(text.as_bytes()).unwrap(),
            &kind,
            "",
            &mut findings,
        );
        let all = findings.all().iter();
        all.map(|it| format!("{:?} {}: {}", it.severity, it.path, it.reason))
            .collect()
    }

    #[test]
    fn what_is_right_is_not_mentioned() {
        let text = r#"{"NAME": "x", "isgateway": true, "vlan": 5, "ips": ["10.0.0.2/24"],
                       "gw": "", "mac": "02-00-5e-10-00-01", "capabilities": {"x": false}}"#;
        assert!(findings(text).is_empty(), "{:?}", findings(text));
    }

    #[test]
    fn every_fault_is_told_with_its_place() {
        let text = r#"{"isGateway": "yes", "vlan": 4095, "ips": ["10.0.0.2", 5], "gw": "x",
                       "mac": "02:00", "capabilities": {"ips": 1}, "isGatway": 1}"#;
        assert_eq!(
            findings(text),
            [
                "Error isGateway: expected a boolean, got a string",
                "Error vlan: 4095 is not between 0 and 4094",
                "Error ips[0]: invalid CIDR address: 10.0.0.2",
                "Error ips[1]: expected a string, got a number",
                "Error gw: invalid IP address: x",
                "Error mac: address 02:00: invalid MAC address",
                "Error capabilities.ips: expected a boolean, got a number",
                "Warning isGatway: unknown key; did you mean isGateway?",
                "Error name: missing",
            ]
        );
    }

    #[test]
    fn a_key_that_is_written_twice_is_told() {
        assert_eq!(
            findings(r#"{"name": "x", "Name": "y"}"#),
            ["Warning Name: written more than once: the last one counts"]
        );
    }

    #[test]
    fn only_whole_numbers_are_integers() {
        assert_eq!(
            findings(r#"{"name": "x", "vlan": 1.5}"#),
            ["Error vlan: 1.5 is no integer in range"]
        );
    }
}
