//! JSON as the Go plugins read it.
//!
//! Runtimes rely on what Go's `encoding/json` accepts: containerd sends
//! `HostPort` where the key is `hostPort`, and configurations in the field have
//! duplicate keys and nulls. So a document is kept as it was written, and
//! [`Json::decode`] reads any serde type from it with these rules:
//!
//! - keys of a struct match without regard to case; keys of a map do not;
//! - unknown keys are ignored, `null` leaves the default;
//! - of duplicate keys the last wins, objects are merged;
//! - an error names the path to the fault: `ipam.ranges[0][0].subnet: …`.

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

impl Json {
    /// Parses one document; anything but white space after it is an error.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    /// Reads a `T` by the rules at the head of this module.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        T::deserialize(self)
    }

    /// The value of `key`, found as a struct field would be; `None` also for null.
    pub fn get(&self, key: &str) -> Option<Self> {
        match self {
            Self::Object(members) => collect(members, key),
            _ => None,
        }
    }

    /// The document without the top-level `key`, in whatever case it is written.
    pub fn without(mut self, key: &str) -> Self {
        if let Self::Object(members) = &mut self {
            members.retain(|(name, _)| !name.eq_ignore_ascii_case(key));
        }
        self
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// Go decodes each occurrence of a key over what the earlier ones left.
fn collect(members: &[(String, Json)], key: &str) -> Option<Json> {
    let mut value = None;
    for (name, next) in members {
        if !name.eq_ignore_ascii_case(key) {
            continue;
        }
        value = match (value, next) {
            (value, Json::Null) => value,
            (Some(Json::Object(mut before)), Json::Object(after)) => {
                before.extend(after.iter().cloned());
                Some(Json::Object(before))
            }
            (_, next) => Some(next.clone()),
        };
    }
    value
}

/// Why a document could not be read as what it should be, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    path: String,
    what: String,
}

impl DecodeError {
    /// The top-level key under which the fault is; empty for the document itself.
    pub fn key(&self) -> &str {
        let end = self.path.find(['.', '[']).unwrap_or(self.path.len());
        &self.path[..end]
    }

    /// The path to the fault, such as `ipam.ranges[0][0].subnet`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is wrong there.
    pub fn what(&self) -> &str {
        &self.what
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

/// What serde calls by its name in Rust, for who writes configurations.
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

impl<'de> Deserializer<'de> for &Json {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self {
            Json::Null => visitor.visit_unit(),
            Json::Bool(value) => visitor.visit_bool(*value),
            Json::Number(value) => visit_number(value, visitor),
            Json::String(value) => visitor.visit_str(value),
            Json::Array(items) => visitor.visit_seq(Items { items, next: 0 }),
            Json::Object(members) => visitor.visit_map(Entries {
                members: members.iter(),
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
        match self {
            Json::Object(members) => visitor.visit_map(Fields {
                members,
                fields: fields.iter(),
                current: None,
            }),
            other => Err(de::Error::custom(format!(
                "expected an object, got {}",
                other.kind()
            ))),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self {
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
        match self {
            Json::String(name) => visitor.visit_enum(name.as_str().into_deserializer()),
            other => Err(de::Error::custom(format!(
                "expected a string, got {}",
                other.kind()
            ))),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes
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
    items: &'a [Json],
    next: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let Some(item) = self.items.get(self.next) else {
            return Ok(None);
        };
        let place = format!("[{}]", self.next);
        self.next += 1;
        seed.deserialize(item)
            .map(Some)
            .map_err(|error| error.under(&place))
    }
}

/// The entries of a map type: every key as it is written.
struct Entries<'a> {
    members: std::slice::Iter<'a, (String, Json)>,
    current: Option<&'a (String, Json)>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        self.current = self.members.next();
        match self.current {
            None => Ok(None),
            Some((key, _)) => seed.deserialize(key.as_str().into_deserializer()).map(Some),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        let Some((key, value)) = self.current else {
            return Err(de::Error::custom("value without a key"));
        };
        seed.deserialize(value).map_err(|error| error.under(key))
    }
}

/// The fields of a struct type: those that are present, under their own names.
struct Fields<'a> {
    members: &'a [(String, Json)],
    fields: std::slice::Iter<'static, &'static str>,
    current: Option<(&'static str, Json)>,
}

impl<'de> de::MapAccess<'de> for Fields<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        for field in self.fields.by_ref() {
            if let Some(value) = collect(self.members, field) {
                self.current = Some((field, value));
                return seed.deserialize((*field).into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        let Some((field, value)) = self.current.take() else {
            return Err(de::Error::custom("value without a key"));
        };
        seed.deserialize(&value).map_err(|error| error.under(field))
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
    fn the_last_of_duplicate_keys_wins() {
        assert_eq!(decode(r#"{"name": "x", "NAME": "y"}"#).unwrap().name, "y");
    }

    #[test]
    fn an_error_names_the_path() {
        let error = decode(r#"{"list": [{}, {"a": "one"}]}"#).unwrap_err();
        assert_eq!(error.path(), "list[1].a");
        assert_eq!(error.key(), "list");
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

    #[test]
    fn nothing_may_follow_the_document() {
        assert!(Json::parse(b"{} x").is_err());
        assert!(Json::parse(b"{}\n").is_ok());
        assert!(Json::parse(b"").is_err());
    }
}
