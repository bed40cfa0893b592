//! The keys of a configuration and the types of their values, as its Rust type reads them.
//!
//! serde has no list of them, but a type names each of its fields, and what it expects there, to
//! the deserializer. So this deserializer offers every field in turn and takes notes. A field that
//! refuses the empty value that it gets ends a run; the next run leaves it out.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use serde::forward_to_deserialize_any;

/// What a value may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// The type looks at the value itself.
    #[default]
    Any,
    Boolean,
    Integer,
    /// An integer that is not negative.
    Unsigned,
    Text,
    /// The part without a name is an item.
    List,
    /// The part without a name is a value.
    Map,
    /// Each part is a member.
    Object,
}

/// A value and its parts.
#[derive(Debug, Default)]
pub struct Shape {
    pub kind: Kind,
    pub parts: Vec<(String, Shape)>,
    /// There is nothing more to learn about it.
    is_known: bool,
}

impl Shape {
    /// The shape of the values that `T` reads.
    pub fn of<T: DeserializeOwned>() -> Self {
        let mut shape = Self::default();
        let mut before = 0;
        while T::deserialize(&mut shape).is_err() {
            let known = shape.count_known();
            if known == before {
                // A type that wants a member which refuses the empty value: all parts are known.
                shape.settle();
            }
            before = known;
        }
        shape
    }

    /// Calls the first value known that is not, but whose parts are. Returns whether there is one.
    fn settle(&mut self) -> bool {
        if self.is_known {
            return false;
        }
        let mut parts = self.parts.iter_mut();
        self.is_known = !parts.any(|(_, part)| part.settle());
        true
    }

    /// The part with this name.
    pub fn part(&self, name: &str) -> Option<&Self> {
        let found = self.parts.iter().find(|(it, _)| it == name);
        found.map(|(_, part)| part)
    }

    fn count_known(&self) -> usize {
        let parts = self.parts.iter().map(|(_, part)| part.count_known());
        usize::from(self.is_known) + parts.sum::<usize>()
    }

    /// A value without parts.
    fn leaf(&mut self, kind: Kind) {
        self.kind = kind;
        self.is_known = true;
    }

    /// A value with parts: the visitor may read those that are not known.
    fn whole<T>(
        &mut self,
        kind: Kind,
        names: &[&str],
        visit: impl FnOnce(Parts<'_>) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        self.kind = kind;
        if self.parts.is_empty() {
            let names = names.iter().map(|name| (*name).to_owned());
            self.parts = names.map(|name| (name, Self::default())).collect();
        }
        let value = visit(Parts {
            rest: self.parts.iter_mut(),
            next: None,
        })?;
        self.is_known = true;
        Ok(value)
    }
}

/// The parts that are not known.
struct Parts<'a> {
    rest: std::slice::IterMut<'a, (String, Shape)>,
    next: Option<&'a mut Shape>,
}

impl<'a> Parts<'a> {
    fn next(&mut self) -> Option<&'a mut (String, Shape)> {
        self.rest.find(|(_, part)| !part.is_known)
    }
}

impl<'de> MapAccess<'de> for Parts<'_> {
    type Error = Refused;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Refused> {
        let Some((name, part)) = self.next() else {
            return Ok(None);
        };
        self.next = Some(part);
        let name: StrDeserializer<'_, Refused> = name.as_str().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refused> {
        seed.deserialize(self.next.take().ok_or(Refused)?)
    }
}

impl<'de> SeqAccess<'de> for Parts<'_> {
    type Error = Refused;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Refused> {
        let item = self.next();
        item.map(|(_, part)| seed.deserialize(part)).transpose()
    }
}

impl<'de> Deserializer<'de> for &mut Shape {
    type Error = Refused;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refused> {
        self.leaf(Kind::Any);
        Err(Refused)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.leaf(Kind::Boolean);
        visitor.visit_bool(false)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.leaf(Kind::Integer);
        visitor.visit_i64(0)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.leaf(Kind::Unsigned);
        visitor.visit_u64(0)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.leaf(Kind::Text);
        visitor.visit_str("")
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.whole(Kind::List, &[""], |parts| visitor.visit_seq(parts))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.whole(Kind::Map, &[""], |parts| visitor.visit_map(parts))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.whole(Kind::Object, fields, |parts| visitor.visit_map(parts))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct
        enum identifier ignored_any
    }
}

/// The type refused an empty value.
#[derive(Debug)]
pub struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refused")
    }
}

impl std::error::Error for Refused {}

impl de::Error for Refused {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}
