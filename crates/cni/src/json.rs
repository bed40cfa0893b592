//! JSON as the Go plugins read it.
//!
//! Runtimes rely on what Go's `encoding/json` accepts: containerd sends
//! `HostPort` where the key is `hostPort`, and configurations in the field have
//! duplicate keys and nulls. So [`Json`] keeps a document as it was written, and
//! [`Json::decode`] reads any serde type from it with these rules:
//!
//! - keys of a struct match without regard to case; keys of a map do not;
//! - unknown keys are ignored, `null` leaves the default;
//! - of duplicate keys the last wins, objects are merged;
//! - an error names the path to the fault: `ipam.ranges[0][0].subnet: …`.
//!
//! [`Json::decode_all`] reads by the same rules, but does not stop at the first
//! fault, and reports which keys the type has.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor,
};
use serde::{Deserialize, Deserializer};

/// A JSON value that remembers the order, the case and the duplicates of its keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Json {
    /// `null`
    #[default]
    Null,
    /// `true`, `false`
    Bool(bool),
    /// Any number.
    Number(serde_json::Number),
    /// A string.
    String(String),
    /// `[…]`
    Array(Vec<Json>),
    /// `{…}`, as written.
    Object(Vec<(String, Json)>),
}

/// Reads the `T` that a JSON text describes, by the rules at the head of this module.
///
/// # Errors
/// The text is not JSON, or the first fault in it.
pub fn read<T: DeserializeOwned>(text: impl AsRef<[u8]>) -> anyhow::Result<T> {
    Ok(Json::parse(text.as_ref())?.decode()?)
}

impl Json {
    /// Parses one document; anything but white space after it is an error.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    /// Reads a `T` by the rules at the head of this module.
    ///
    /// # Errors
    /// The first fault.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        T::deserialize(Reader {
            json: self,
            at: None,
        })
    }

    /// Reads a `T` and collects every fault. A faulty value is left out as if its key
    /// or list item were not there.
    pub fn decode_all<T: DeserializeOwned>(&self) -> Reading<T> {
        let survey = Survey::default();
        let mut faults: Vec<DecodeError> = Vec::new();
        let value = loop {
            let at = Some(At {
                survey: &survey,
                path: String::new(),
            });
            let fault = match T::deserialize(Reader { json: self, at }) {
                Ok(value) => break Some(value),
                Err(fault) => fault,
            };
            let path = fault.path().to_owned();
            // An object without its required member is faulty only because of that member.
            if !faults.iter().any(|earlier| earlier.is_below(&path)) {
                faults.push(fault);
            }
            if path.is_empty() || !survey.skipped.borrow_mut().insert(path) {
                break None;
            }
        };
        Reading {
            value,
            faults,
            keys: Keys(survey.keys.into_inner()),
        }
    }

    /// The value of `key`, found as a struct field would be; `None` also for null.
    pub fn get(&self, key: &str) -> Option<Self> {
        match self {
            Self::Object(members) => collect(members, key, &[]).map(Cow::into_owned),
            _ => None,
        }
    }

    /// What the value is, in words: `a list`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    /// The value as an error describes it, if another one was expected.
    pub fn unexpected(&self) -> Unexpected<'_> {
        match self {
            Self::Null => Unexpected::Unit,
            Self::Bool(value) => Unexpected::Bool(*value),
            Self::Number(value) => match (value.as_u64(), value.as_i64()) {
                (Some(value), _) => Unexpected::Unsigned(value),
                (None, Some(value)) => Unexpected::Signed(value),
                (None, None) => Unexpected::Float(value.as_f64().unwrap_or(f64::NAN)),
            },
            Self::String(value) => Unexpected::Str(value),
            Self::Array(_) => Unexpected::Seq,
            Self::Object(_) => Unexpected::Map,
        }
    }
}

/// What [`Json::decode_all`] has read.
#[derive(Debug)]
pub struct Reading<T> {
    /// The value without the faulty parts; `None` if the document as a whole is none.
    pub value: Option<T>,
    /// Every fault, the first as [`Json::decode`] has it.
    pub faults: Vec<DecodeError>,
    /// The keys that `T` has.
    pub keys: Keys,
}

/// The keys that types have, for each object of one document.
#[derive(Clone, Debug, Default)]
pub struct Keys(BTreeMap<String, BTreeSet<&'static str>>);

/// A member of an object that is not read as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stray {
    /// No type has this key.
    Unknown {
        /// The path to the member.
        path: String,
        /// The keys that the object may have.
        known: Vec<&'static str>,
    },
    /// The object has the key before, perhaps in another case.
    Repeated {
        /// The path to the later member.
        path: String,
    },
}

impl Keys {
    /// Adds keys that another reader of the same document has.
    pub fn extend(&mut self, others: Self) {
        for (path, names) in others.0 {
            self.0.entry(path).or_default().extend(names);
        }
    }

    /// Adds keys of the object at `path`.
    pub fn add(&mut self, path: &str, names: &[&'static str]) {
        self.0.entry(path.to_owned()).or_default().extend(names);
    }

    /// The keys of the object at `path`, sorted.
    pub fn of(&self, path: &str) -> impl Iterator<Item = &'static str> {
        self.0.get(path).into_iter().flatten().copied()
    }

    /// Allows any key in the object at `path`.
    pub fn allow_any(&mut self, path: &str) {
        self.0.remove(path);
    }

    /// The members of `document` and of the objects in it that no type reads.
    pub fn strays(&self, document: &Json) -> Vec<Stray> {
        let mut strays = Vec::new();
        self.find_strays(document, "", &mut strays);
        strays
    }

    fn find_strays(&self, json: &Json, path: &str, strays: &mut Vec<Stray>) {
        match json {
            Json::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.find_strays(item, &format!("{path}[{index}]"), strays);
                }
            }
            Json::Object(members) => {
                let known = self.0.get(path);
                for (index, (name, value)) in members.iter().enumerate() {
                    let same = |other: &&'static str| other.eq_ignore_ascii_case(name);
                    let field = known.and_then(|known| known.iter().copied().find(same));
                    let is_repeated = (members[..index].iter())
                        .any(|(earlier, _)| earlier.eq_ignore_ascii_case(name));
                    match known {
                        Some(known) if field.is_none() => strays.push(Stray::Unknown {
                            path: join(path, name),
                            known: known.iter().copied().collect(),
                        }),
                        Some(_) if is_repeated => strays.push(Stray::Repeated {
                            path: join(path, name),
                        }),
                        _ => {}
                    }
                    self.find_strays(value, &join(path, field.unwrap_or(name)), strays);
                }
            }
            _ => {}
        }
    }
}

/// The path of `key` in the object at `path`.
fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// The value of `key`: as Go does, it merges each occurrence of the key into the earlier ones.
/// `fields` are all keys that are read: two of them may differ only in case, and each gets the
/// members in its own case. Only objects that are merged are copied.
fn collect<'a>(members: &'a [(String, Json)], key: &str, fields: &[&str]) -> Option<Cow<'a, Json>> {
    let mut value: Option<Cow<'a, Json>> = None;
    for (name, next) in members {
        // In this order: most names differ from the key, and there are many fields.
        if !name.eq_ignore_ascii_case(key) || (name != key && fields.contains(&name.as_str())) {
            continue;
        }
        value = match (value, next) {
            (value, Json::Null) => value,
            (Some(before), Json::Object(after)) if matches!(*before, Json::Object(_)) => {
                let mut before = before.into_owned();
                if let Json::Object(members) = &mut before {
                    members.extend(after.iter().cloned());
                }
                Some(Cow::Owned(before))
            }
            (_, next) => Some(Cow::Borrowed(next)),
        };
    }
    value
}

/// Why a document could not be decoded, and at which path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    path: String,
    what: String,
}

impl DecodeError {
    /// The path to the fault, such as `ipam.ranges[0][0].subnet`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is wrong there.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Whether the fault is at `path`, or in the value that is there.
    fn is_below(&self, path: &str) -> bool {
        let rest = self.path.strip_prefix(path);
        rest.is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
    }

    /// The same fault in a member of a larger document.
    pub(crate) fn under(mut self, parent: &str) -> Self {
        let joint = match self.path.chars().next() {
            None | Some('[') => "",
            Some(_) => ".",
        };
        self.path = format!("{parent}{joint}{}", self.path);
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.what)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self {
            path: String::new(),
            what: what.to_string(),
        }
    }

    fn invalid_type(got: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let (got, expected) = (got.to_string(), expected.to_string());
        Self::custom(format_args!(
            "invalid type: {}, expected {}",
            in_json(&got),
            in_json(&expected)
        ))
    }

    fn invalid_value(got: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = expected.to_string();
        Self::custom(format_args!(
            "invalid value: {got}, expected {}",
            in_json(&expected)
        ))
    }
}

/// A type's name in Rust as a name that authors of configurations know.
fn in_json(name: &str) -> &str {
    match name {
        "i64" | "u64" => "an integer",
        "u32" => "an integer from 0 to 4294967295",
        "u16" => "an integer from 0 to 65535",
        "u8" => "an integer from 0 to 255",
        "a sequence" => "a list",
        "sequence" => "list",
        "a map" => "an object",
        "map" => "object",
        other => other,
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_none<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Json, E> {
        serde_json::Number::from_f64(value)
            .map(Json::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::String(value))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::Array(list))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = entries.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }
}

/// The faulty values that [`Json::decode_all`] skips, and the keys that it finds.
#[derive(Default)]
struct Survey {
    skipped: RefCell<BTreeSet<String>>,
    keys: RefCell<BTreeMap<String, BTreeSet<&'static str>>>,
}

/// A place in the document that [`Json::decode_all`] reads.
struct At<'a> {
    survey: &'a Survey,
    path: String,
}

impl<'a> At<'a> {
    fn member(&self, key: &str) -> Self {
        Self {
            survey: self.survey,
            path: join(&self.path, key),
        }
    }

    fn item(&self, index: usize) -> Self {
        Self {
            survey: self.survey,
            path: format!("{}[{index}]", self.path),
        }
    }

    fn is_skipped(&self) -> bool {
        self.survey.skipped.borrow().contains(&self.path)
    }
}

/// Reads one value.
struct Reader<'a> {
    json: &'a Json,
    /// `None` in [`Json::decode`], which needs no path unless there is a fault.
    at: Option<At<'a>>,
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.json {
            Json::Null => visitor.visit_unit(),
            Json::Bool(value) => visitor.visit_bool(*value),
            Json::Number(value) => visit_number(value, visitor),
            Json::String(value) => visitor.visit_str(value),
            Json::Array(items) => visitor.visit_seq(Items {
                items: items.iter().enumerate(),
                at: self.at,
            }),
            Json::Object(members) => visitor.visit_map(Entries {
                members: members.iter(),
                at: self.at,
                current: None,
            }),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        if let Some(at) = &self.at {
            let mut keys = at.survey.keys.borrow_mut();
            keys.entry(at.path.clone()).or_default().extend(fields);
        }
        match self.json {
            Json::Object(members) => visitor.visit_map(Fields {
                members,
                fields,
                next: fields.iter(),
                at: self.at,
                current: None,
            }),
            other => Err(de::Error::custom(format!(
                "expected an object, got {}",
                other.kind()
            ))),
        }
    }

    /// In a map such as `capabilities`, null is false, as in Go. A struct skips its members that are null.
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.json {
            Json::Null => visitor.visit_bool(false),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.json {
            Json::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.json {
            Json::String(name) => visitor.visit_enum(name.as_str().into_deserializer()),
            other => Err(de::Error::custom(format!(
                "expected a string, got {}",
                other.kind()
            ))),
        }
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes
        byte_buf unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

fn visit_number<'de, V: Visitor<'de>>(
    number: &serde_json::Number,
    visitor: V,
) -> Result<V::Value, DecodeError> {
    if let Some(value) = number.as_u64() {
        visitor.visit_u64(value)
    } else if let Some(value) = number.as_i64() {
        visitor.visit_i64(value)
    } else {
        visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN))
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Json>>,
    at: Option<At<'a>>,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        for (index, json) in self.items.by_ref() {
            let at = self.at.as_ref().map(|at| at.item(index));
            if at.as_ref().is_some_and(At::is_skipped) {
                continue;
            }
            let item = seed.deserialize(Reader { json, at });
            return item
                .map(Some)
                .map_err(|error| error.under(&format!("[{index}]")));
        }
        Ok(None)
    }
}

/// The entries of a map type: every key as it is written.
struct Entries<'a> {
    members: std::slice::Iter<'a, (String, Json)>,
    at: Option<At<'a>>,
    current: Option<(&'a (String, Json), Option<At<'a>>)>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        for member in self.members.by_ref() {
            let at = self.at.as_ref().map(|at| at.member(&member.0));
            if at.as_ref().is_some_and(At::is_skipped) {
                continue;
            }
            self.current = Some((member, at));
            let key = member.0.as_str();
            return seed.deserialize(key.into_deserializer()).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        let Some(((key, json), at)) = self.current.take() else {
            return Err(de::Error::custom("value without a key"));
        };
        seed.deserialize(Reader { json, at })
            .map_err(|error| error.under(key))
    }
}

/// The fields of a struct type: those that are present, under their own names.
struct Fields<'a> {
    members: &'a [(String, Json)],
    fields: &'static [&'static str],
    next: std::slice::Iter<'static, &'static str>,
    at: Option<At<'a>>,
    current: Option<(&'static str, Cow<'a, Json>, Option<At<'a>>)>,
}

impl<'de> de::MapAccess<'de> for Fields<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        for field in self.next.by_ref() {
            let at = self.at.as_ref().map(|at| at.member(field));
            if at.as_ref().is_some_and(At::is_skipped) {
                continue;
            }
            if let Some(value) = collect(self.members, field, self.fields) {
                self.current = Some((field, value, at));
                return seed.deserialize((*field).into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        let Some((field, json, at)) = self.current.take() else {
            return Err(de::Error::custom("value without a key"));
        };
        seed.deserialize(Reader { json: &json, at })
            .map_err(|error| error.under(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Sample {
        host_port: u16,
        name: String,
        inner: Inner,
        list: Vec<Inner>,
        free: BTreeMap<String, String>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Inner {
        a: i64,
        b: Option<bool>,
    }

    fn decode(text: &str) -> Result<Sample, DecodeError> {
        Json::parse(text.as_bytes()).unwrap().decode()
    }

    #[test]
    fn struct_keys_match_in_any_case_and_map_keys_do_not() {
        let sample = decode(r#"{"HostPort": 80, "FREE": {"Net.IPv4": "1"}, "other": [{}]}"#);
        let sample = sample.unwrap();
        assert_eq!(sample.host_port, 80);
        assert_eq!(sample.free["Net.IPv4"], "1");
    }

    #[test]
    fn null_leaves_the_default_and_objects_of_duplicate_keys_merge() {
        let sample = decode(
            r#"{"name": "x", "name": null, "inner": {"a": 1}, "Inner": {"b": true, "A": 2}}"#,
        );
        let sample = sample.unwrap();
        assert_eq!(sample.name, "x");
        assert_eq!(
            sample.inner,
            Inner {
                a: 2,
                b: Some(true)
            }
        );
    }

    #[test]
    fn null_in_a_map_of_switches_is_off() {
        let decode = |text: &str| {
            let document = Json::parse(text.as_bytes()).unwrap();
            document.decode::<std::collections::BTreeMap<String, bool>>()
        };
        let switches = decode(r#"{"ips": null, "mac": true}"#).unwrap();
        assert_eq!((switches["ips"], switches["mac"]), (false, true));
        assert!(decode(r#"{"ips": "true"}"#).is_err());
    }

    #[test]
    fn the_last_of_duplicate_keys_wins() {
        assert_eq!(decode(r#"{"name": "x", "NAME": "y"}"#).unwrap().name, "y");
    }

    #[test]
    fn of_keys_that_differ_in_case_alone_each_gets_its_own() {
        #[derive(Debug, Default, Deserialize, PartialEq)]
        #[serde(default)]
        struct Both {
            address: String,
            #[serde(rename = "Address")]
            parsed: u32,
        }
        let decode = |text: &str| Json::parse(text.as_bytes()).unwrap().decode::<Both>();
        let expected = Both {
            address: "x".into(),
            parsed: 7,
        };
        for text in [
            r#"{"address": "x", "Address": 7}"#,
            r#"{"Address": 7, "address": "x"}"#,
        ] {
            assert_eq!(decode(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn an_error_names_the_path() {
        let error = decode(r#"{"list": [{}, {"a": "one"}]}"#).unwrap_err();
        assert_eq!(error.path(), "list[1].a");
        assert!(error.to_string().starts_with("list[1].a: invalid type: "));
        assert_eq!(
            decode(r#"{"inner": []}"#).unwrap_err().to_string(),
            "inner: expected an object, got a list"
        );
    }

    #[test]
    fn an_error_says_what_is_expected_in_words_of_json() {
        for (text, expected) in [
            (
                r#"{"hostPort": -1}"#,
                "hostPort: invalid value: integer `-1`, expected an integer from 0 to 65535",
            ),
            (
                r#"{"inner": {"a": 1.5}}"#,
                "inner.a: invalid type: floating point `1.5`, expected an integer",
            ),
            (
                r#"{"list": {}}"#,
                "list: invalid type: object, expected a list",
            ),
            (
                r#"{"free": []}"#,
                "free: invalid type: list, expected an object",
            ),
        ] {
            assert_eq!(decode(text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn numbers_must_be_integers_in_range() {
        for text in ["1.5", "70000", "-1", "\"80\"", "1e2"] {
            assert!(
                decode(&format!(r#"{{"hostPort": {text}}}"#)).is_err(),
                "{text}"
            );
        }
    }

    fn decode_all(text: &str) -> Reading<Sample> {
        Json::parse(text.as_bytes()).unwrap().decode_all()
    }

    #[test]
    fn every_fault_is_found_and_only_what_is_faulty_is_left_out() {
        let text = r#"{"hostPort": -1, "NAME": "x", "inner": {"A": "one", "b": true},
            "list": [{"a": 1}, 5, {"a": "two", "b": false}], "free": {"x": 1, "y": "z"}}"#;
        let reading = decode_all(text);
        let faults = reading.faults.iter().map(DecodeError::path);
        let expected = ["hostPort", "inner.a", "list[1]", "list[2].a", "free.x"];
        assert_eq!(faults.collect::<Vec<_>>(), expected);
        assert_eq!(reading.faults[0], decode(text).unwrap_err());
        let sample = reading.value.unwrap();
        assert_eq!((sample.host_port, sample.name.as_str()), (0, "x"));
        assert_eq!(
            sample.inner,
            Inner {
                a: 0,
                b: Some(true)
            }
        );
        let items = [(1, None), (0, Some(false))].map(|(a, b)| Inner { a, b });
        assert_eq!(sample.list, items);
        assert_eq!(sample.free, BTreeMap::from([("y".into(), "z".into())]));
    }

    #[test]
    fn a_document_that_is_no_object_has_one_fault_and_no_value() {
        let reading = decode_all("[]");
        assert_eq!(reading.value, None);
        assert_eq!(reading.faults.len(), 1);
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Strict {
        needed: i64,
    }

    #[test]
    fn an_object_without_its_required_member_is_left_out_as_a_whole() {
        let json = Json::parse(br#"[{"needed": "x"}, {"needed": 1}, {}]"#).unwrap();
        let reading = json.decode_all::<Vec<Strict>>();
        assert_eq!(reading.value, Some(vec![Strict { needed: 1 }]));
        let faults = reading.faults.iter().map(DecodeError::path);
        assert_eq!(faults.collect::<Vec<_>>(), ["[0].needed", "[2]"]);
    }

    #[test]
    fn keys_that_no_type_has_are_found_in_every_object() {
        let text = r#"{"hostport": 1, "HostPort": null, "x": {"y": 1}, "free": {"y": "1"},
            "list": [{"A": 1, "c": 2}], "Inner": {"d": 1}, "extra": {"e": 1}}"#;
        let json = Json::parse(text.as_bytes()).unwrap();
        let mut keys = json.decode_all::<Sample>().keys;
        keys.add("", &["extra"]);
        keys.allow_any("inner");
        let strays = keys.strays(&json);
        let unknown = |path: &str, known: &[&'static str]| Stray::Unknown {
            path: path.to_owned(),
            known: known.to_vec(),
        };
        let top = ["extra", "free", "hostPort", "inner", "list", "name"];
        let path = "HostPort".to_owned();
        let expected = [
            Stray::Repeated { path },
            unknown("x", &top),
            unknown("list[0].c", &["a", "b"]),
        ];
        assert_eq!(strays, expected);
    }

    #[test]
    fn nothing_may_follow_the_document() {
        assert!(Json::parse(b"{} x").is_err());
        assert!(Json::parse(b"{}\n").is_ok());
        assert!(Json::parse(b"").is_err());
    }
}
