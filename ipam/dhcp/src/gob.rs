//! The wire format of Go's `encoding/gob`, as far as the DHCP daemon needs it.
//!
//! The Go plugin and its daemon use Go's `net/rpc`, and this plugin and daemon can
//! replace either of them. A stream describes its types before it uses them. Fields are
//! matched by name, so a peer may have more or fewer fields. Source: the documentation
//! of package `encoding/gob` ("Encoding Details").
//!
//! Input is not trusted: every length is compared with the bytes that are left.

use std::collections::HashMap;
use std::fmt;

/// The longest message in bytes, far more than the protocol needs.
pub const LONGEST: usize = 1 << 20;

/// The deepest nesting of values; the protocol needs four levels.
const MAX_DEPTH: usize = 16;

/// The type ids that need no description.
mod builtin {
    pub const BOOL: i64 = 1;
    pub const INT: i64 = 2;
    pub const UINT: i64 = 3;
    pub const FLOAT: i64 = 4;
    pub const BYTES: i64 = 5;
    pub const STRING: i64 = 6;
    /// The description of a type, itself described in [`super::wire_type`].
    pub const WIRE: i64 = 16;
    pub const ARRAY: i64 = 17;
    pub const COMMON: i64 = 18;
    pub const SLICE: i64 = 19;
    pub const STRUCT: i64 = 20;
    pub const FIELD: i64 = 21;
    pub const FIELDS: i64 = 22;
    pub const MAP: i64 = 23;
    /// The first id of a described type.
    pub const FREE: i64 = 65;
}

/// A value of a stream.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // Go's kinds
pub enum Value {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Bytes(Vec<u8>),
    String(String),
    List(Vec<Value>),
    Map(Vec<(Value, Value)>),
    /// The fields that are not zero, by name.
    Struct(Vec<(String, Value)>),
}

impl Value {
    /// A field of a struct; absent when it is zero.
    pub fn field(&self, name: &str) -> Option<&Value> {
        match self {
            Self::Struct(fields) => {
                let named = fields.iter().find(|(field, _)| field == name);
                named.map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// Whether it is empty or 0, which gob leaves out of structs.
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Bool(value) => !value,
            Self::Int(number) => *number == 0,
            Self::Uint(number) => *number == 0,
            Self::Float(number) => *number == 0.0,
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::String(text) => text.is_empty(),
            Self::List(items) => items.is_empty(),
            Self::Map(entries) => entries.is_empty(),
            Self::Struct(fields) => fields.is_empty(),
        }
    }

    /// A text field; empty when it is absent or of another kind.
    pub fn text(&self, name: &str) -> &str {
        match self.field(name) {
            Some(Self::String(text)) => text,
            _ => "",
        }
    }

    /// A field of bytes; empty when it is absent or of another kind.
    pub fn bytes(&self, name: &str) -> &[u8] {
        match self.field(name) {
            Some(Self::Bytes(bytes)) => bytes,
            _ => &[],
        }
    }

    /// A field that is a list; empty when it is absent or of another kind.
    pub fn list(&self, name: &str) -> &[Value] {
        match self.field(name) {
            Some(Self::List(items)) => items,
            _ => &[],
        }
    }

    /// A field that is a number and not negative.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.field(name)? {
            Self::Uint(number) => Some(*number),
            Self::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }
}

/// The stream is not gob, or uses a part of it that is not supported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed gob: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// A described type. Go's arrays are read as slices.
#[derive(Clone, Debug)]
enum Type {
    Slice(i64),
    Map(i64, i64),
    Struct(Vec<(String, i64)>),
}

/// Reads one stream, and keeps the types that it has described.
#[derive(Debug, Default)]
pub struct Decoder {
    types: HashMap<i64, Type>,
}

impl Decoder {
    /// Removes the next value from the front of `input`; `None` while it is incomplete.
    ///
    /// # Errors
    /// When the stream is malformed: it cannot be read any further.
    pub fn next(&mut self, input: &mut Vec<u8>) -> Result<Option<Value>, Malformed> {
        loop {
            let mut rest = Reader { bytes: input };
            let Some(length) = rest.message_length()? else {
                return Ok(None);
            };
            let header = input.len() - rest.bytes.len();
            let Some(message) = rest.bytes.get(..length) else {
                return Ok(None);
            };
            let value = self.message(message)?;
            input.drain(..header + length);
            if value.is_some() {
                return Ok(value);
            }
        }
    }

    /// A message is a value, or the description of a type.
    fn message(&mut self, message: &[u8]) -> Result<Option<Value>, Malformed> {
        let mut reader = Reader { bytes: message };
        let id = reader.int()?;
        if id >= 0 {
            if !matches!(self.types.get(&id), Some(Type::Struct(_))) {
                return Err(Malformed("a value that is not a struct"));
            }
            return self.value(&mut reader, id, 0).map(Some);
        }
        let id = id.checked_neg().ok_or(Malformed("type id"))?;
        let wire = self.value(&mut reader, builtin::WIRE, 0)?;
        self.types.insert(id, described(&wire)?);
        Ok(None)
    }

    fn value(&self, reader: &mut Reader<'_>, id: i64, depth: usize) -> Result<Value, Malformed> {
        if depth > MAX_DEPTH {
            return Err(Malformed("nested too deep"));
        }
        Ok(match id {
            builtin::BOOL => Value::Bool(reader.uint()? != 0),
            builtin::INT => Value::Int(reader.int()?),
            builtin::UINT => Value::Uint(reader.uint()?),
            // The bytes are reversed, as most floats end in zeros.
            builtin::FLOAT => Value::Float(f64::from_bits(reader.uint()?.swap_bytes())),
            builtin::BYTES => Value::Bytes(reader.counted()?.to_vec()),
            builtin::STRING => {
                Value::String(String::from_utf8_lossy(reader.counted()?).into_owned())
            }
            id => match wire_type(id).as_ref().or_else(|| self.types.get(&id)) {
                Some(Type::Struct(fields)) => self.fields(reader, fields, depth)?,
                Some(Type::Slice(item)) => {
                    let count = reader.count()?;
                    let items = (0..count).map(|_| self.value(reader, *item, depth + 1));
                    Value::List(items.collect::<Result<_, _>>()?)
                }
                Some(Type::Map(key, item)) => {
                    let mut entries = Vec::new();
                    for _ in 0..reader.count()? {
                        let key = self.value(reader, *key, depth + 1)?;
                        entries.push((key, self.value(reader, *item, depth + 1)?));
                    }
                    Value::Map(entries)
                }
                None => return Err(Malformed("a type without a description")),
            },
        })
    }

    /// Each field follows its distance from the previous one; distance 0 ends them.
    fn fields(
        &self,
        reader: &mut Reader<'_>,
        fields: &[(String, i64)],
        depth: usize,
    ) -> Result<Value, Malformed> {
        let mut values = Vec::new();
        let mut next = 0_usize;
        loop {
            let distance = usize::try_from(reader.uint()?).map_err(|_| Malformed("field"))?;
            if distance == 0 {
                return Ok(Value::Struct(values));
            }
            let index = next.checked_add(distance - 1).ok_or(Malformed("field"))?;
            let (name, id) = fields.get(index).ok_or(Malformed("field out of range"))?;
            values.push((name.clone(), self.value(reader, *id, depth + 1)?));
            next = index + 1;
        }
    }
}

/// The types of descriptions (`wireType` and its parts).
fn wire_type(id: i64) -> Option<Type> {
    use builtin::{ARRAY, COMMON, FIELD, FIELDS, INT, MAP, SLICE, STRING, STRUCT, WIRE};
    let fields = |list: &[(&str, i64)]| {
        let owned = list.iter().map(|(name, id)| ((*name).to_owned(), *id));
        Some(Type::Struct(owned.collect()))
    };
    match id {
        WIRE => fields(&[
            ("ArrayT", ARRAY),
            ("SliceT", SLICE),
            ("StructT", STRUCT),
            ("MapT", MAP),
        ]),
        ARRAY => fields(&[("CommonType", COMMON), ("Elem", INT), ("Len", INT)]),
        SLICE => fields(&[("CommonType", COMMON), ("Elem", INT)]),
        STRUCT => fields(&[("CommonType", COMMON), ("Field", FIELDS)]),
        MAP => fields(&[("CommonType", COMMON), ("Key", INT), ("Elem", INT)]),
        COMMON => fields(&[("Name", STRING), ("Id", INT)]),
        FIELD => fields(&[("Name", STRING), ("Id", INT)]),
        FIELDS => Some(Type::Slice(FIELD)),
        _ => None,
    }
}

fn described(wire: &Value) -> Result<Type, Malformed> {
    let id = |of: &Value, name: &str| match of.field(name) {
        Some(Value::Int(id)) => Ok(*id),
        _ => Err(Malformed("type without an id")),
    };
    if let Some(list) = wire.field("SliceT").or_else(|| wire.field("ArrayT")) {
        return Ok(Type::Slice(id(list, "Elem")?));
    }
    if let Some(map) = wire.field("MapT") {
        return Ok(Type::Map(id(map, "Key")?, id(map, "Elem")?));
    }
    let structure = wire.field("StructT").ok_or(Malformed("unknown kind"))?;
    let fields = structure.list("Field").iter();
    fields
        .map(|field| Ok((field.text("Name").to_owned(), id(field, "Id")?)))
        .collect::<Result<_, _>>()
        .map(Type::Struct)
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The length of the next message; `None` while the length is incomplete.
    fn message_length(&mut self) -> Result<Option<usize>, Malformed> {
        let Some(&first) = self.bytes.first() else {
            return Ok(None);
        };
        if first >= 128 && self.bytes.len() <= usize::from(first.wrapping_neg()) {
            return match first.wrapping_neg() {
                ..=8 => Ok(None),
                _ => Err(Malformed("length")),
            };
        }
        match usize::try_from(self.uint()?) {
            Ok(length @ 1..=LONGEST) => Ok(Some(length)),
            _ => Err(Malformed("length of a message")),
        }
    }

    /// Below 128 one byte; otherwise the negated number of bytes, then these, big-endian.
    fn uint(&mut self) -> Result<u64, Malformed> {
        let first = self.take(1)?[0];
        if first < 128 {
            return Ok(first.into());
        }
        let count = usize::from(first.wrapping_neg());
        if count > 8 {
            return Err(Malformed("number"));
        }
        let bytes = self.take(count)?.iter();
        Ok(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// If the lowest bit is set, the other bits are inverted.
    fn int(&mut self) -> Result<i64, Malformed> {
        let coded = self.uint()?;
        let number = (coded >> 1) as i64;
        Ok(if coded & 1 == 1 { !number } else { number })
    }

    /// The number of items that follow: every item has at least one byte.
    fn count(&mut self) -> Result<usize, Malformed> {
        let count = self.uint()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.bytes.len() => Ok(count),
            _ => Err(Malformed("count")),
        }
    }

    fn counted(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.count()?;
        self.take(count)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(count)
            .ok_or(Malformed("truncated"))?;
        self.bytes = rest;
        Ok(taken)
    }
}

/// The type of a value to write.
#[derive(Debug)]
pub enum Schema {
    /// `int`, and all of its sizes.
    Int,
    /// `uint`, and all of its sizes.
    Uint,
    /// `[]byte`, and types based on it, such as `net.IP`.
    Bytes,
    /// `string`.
    String,
    /// A slice: its name in the stream, and the type of its items.
    List(&'static str, &'static Schema),
    /// A struct: its name and fields.
    Struct(&'static str, &'static [(&'static str, Schema)]),
}

/// Writes one stream, and keeps the names of the types that it has described.
#[derive(Debug, Default)]
pub struct Encoder {
    described: Vec<&'static str>,
}

impl Encoder {
    /// Appends `value`, a struct of type `schema`. Fields that the schema lacks are left
    /// out.
    pub fn write(&mut self, out: &mut Vec<u8>, schema: &'static Schema, value: &Value) {
        let id = self.describe(out, schema);
        let mut message = Vec::new();
        put_int(&mut message, id);
        self.value(&mut message, schema, value);
        put_bytes(out, &message);
    }

    /// The id of a type. Describes the type if it is new.
    fn describe(&mut self, out: &mut Vec<u8>, schema: &'static Schema) -> i64 {
        let name = match schema {
            Schema::Int => return builtin::INT,
            Schema::Uint => return builtin::UINT,
            Schema::Bytes => return builtin::BYTES,
            Schema::String => return builtin::STRING,
            Schema::List(name, _) | Schema::Struct(name, _) => *name,
        };
        let id_at = |position: usize| builtin::FREE + position as i64;
        if let Some(position) = self.described.iter().position(|known| *known == name) {
            return id_at(position);
        }
        let id = id_at(self.described.len());
        self.described.push(name);
        // The types of its fields are described before it.
        let description = self.description(out, schema, id);
        put_bytes(out, &description);
        id
    }

    /// A `wireType`, with the one field for the kind of the type. That begins with its
    /// `CommonType`.
    fn description(&mut self, out: &mut Vec<u8>, schema: &'static Schema, id: i64) -> Vec<u8> {
        let mut message = Vec::new();
        put_int(&mut message, -id);
        match schema {
            Schema::List(name, item) => {
                let item = self.describe(out, item);
                put_uint(&mut message, 2); // SliceT
                put_common(&mut message, name, id);
                put_uint(&mut message, 1); // Elem
                put_int(&mut message, item);
            }
            Schema::Struct(name, fields) => {
                let ids: Vec<_> = fields
                    .iter()
                    .map(|(_, field)| self.describe(out, field))
                    .collect();
                put_uint(&mut message, 3); // StructT
                put_common(&mut message, name, id);
                if !fields.is_empty() {
                    put_uint(&mut message, 1); // Field
                    put_uint(&mut message, fields.len() as u64);
                }
                for ((name, _), id) in fields.iter().zip(ids) {
                    put_uint(&mut message, 1);
                    put_bytes(&mut message, name.as_bytes());
                    put_uint(&mut message, 1);
                    put_int(&mut message, id);
                    put_uint(&mut message, 0);
                }
            }
            // These need no description.
            Schema::Int | Schema::Uint | Schema::Bytes | Schema::String => {}
        }
        put_uint(&mut message, 0); // of SliceT or StructT
        put_uint(&mut message, 0); // of wireType
        message
    }

    fn value(&self, out: &mut Vec<u8>, schema: &'static Schema, value: &Value) {
        match (schema, value) {
            (Schema::Int, Value::Int(number)) => put_int(out, *number),
            (Schema::Uint, Value::Uint(number)) => put_uint(out, *number),
            (Schema::Bytes, Value::Bytes(bytes)) => put_bytes(out, bytes),
            (Schema::String, Value::String(text)) => put_bytes(out, text.as_bytes()),
            (Schema::List(_, item), Value::List(items)) => {
                put_uint(out, items.len() as u64);
                for value in items {
                    self.value(out, item, value);
                }
            }
            (Schema::Struct(_, fields), value) => {
                let mut next = 0;
                for (index, (name, schema)) in fields.iter().enumerate() {
                    if let Some(value) = value.field(name) {
                        put_uint(out, (index + 1 - next) as u64);
                        self.value(out, schema, value);
                        next = index + 1;
                    }
                }
                put_uint(out, 0);
            }
            // A value of another type is written as zero.
            _ => put_uint(out, 0),
        }
    }
}

fn put_common(out: &mut Vec<u8>, name: &str, id: i64) {
    put_uint(out, 1); // CommonType
    if !name.is_empty() {
        put_uint(out, 1); // Name
        put_bytes(out, name.as_bytes());
    }
    put_uint(out, if name.is_empty() { 2 } else { 1 }); // Id
    put_int(out, id);
    put_uint(out, 0);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_uint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_uint(out: &mut Vec<u8>, number: u64) {
    if number < 128 {
        out.push(number as u8);
        return;
    }
    let bytes = number.to_be_bytes();
    let skip = number.leading_zeros() as usize / 8;
    out.push(((8 - skip) as u8).wrapping_neg());
    out.extend(&bytes[skip..]);
}

fn put_int(out: &mut Vec<u8>, number: i64) {
    let coded = (number as u64) << 1;
    put_uint(out, if number < 0 { !coded } else { coded });
}

#[cfg(test)]
mod tests {
    use super::*;

    static POINT: Schema = Schema::Struct("Point", &[("X", Schema::Int), ("Y", Schema::Int)]);
    static LINE: Schema = Schema::Struct(
        "Line",
        &[
            ("Name", Schema::String),
            ("Points", Schema::List("[]Point", &POINT)),
            ("Raw", Schema::Bytes),
            ("Seq", Schema::Uint),
        ],
    );

    fn line() -> Value {
        let point = |x: i64| Value::Struct(vec![("X".into(), Value::Int(x))]);
        Value::Struct(vec![
            ("Name".into(), Value::String("a".into())),
            ("Points".into(), Value::List(vec![point(-300), point(7)])),
            ("Raw".into(), Value::Bytes(vec![0; 300])),
            ("Seq".into(), Value::Uint(u64::MAX)),
        ])
    }

    #[test]
    fn the_example_of_the_documentation_is_written_exactly() {
        // encoding/gob, "type Point struct { X, Y int }", Point{22, 33}.
        let value = Value::Struct(vec![
            ("X".into(), Value::Int(22)),
            ("Y".into(), Value::Int(33)),
        ]);
        let mut out = Vec::new();
        Encoder::default().write(&mut out, &POINT, &value);
        let expected = [
            0x1f, 0xff, 0x81, 0x03, 0x01, 0x01, 0x05, b'P', b'o', b'i', b'n', b't', 0x01, 0xff,
            0x82, 0x00, 0x01, 0x02, 0x01, 0x01, b'X', 0x01, 0x04, 0x00, 0x01, 0x01, b'Y', 0x01,
            0x04, 0x00, 0x00, 0x00, 0x07, 0xff, 0x82, 0x01, 0x2c, 0x01, 0x42, 0x00,
        ];
        assert_eq!(out, expected);
    }

    #[test]
    fn a_stream_is_read_in_any_pieces() {
        let mut stream = Vec::new();
        let mut encoder = Encoder::default();
        encoder.write(&mut stream, &LINE, &line());
        encoder.write(&mut stream, &LINE, &line());
        let (mut decoder, mut input, mut read) = (Decoder::default(), Vec::new(), 0);
        for byte in stream {
            input.push(byte);
            while let Some(value) = decoder.next(&mut input).unwrap() {
                assert_eq!(value, line());
                read += 1;
            }
        }
        assert_eq!((read, input.len()), (2, 0));
    }

    #[test]
    fn a_broken_stream_is_an_error_and_never_a_panic() {
        let mut stream = Vec::new();
        Encoder::default().write(&mut stream, &LINE, &line());
        for position in 0..stream.len() {
            for flip in [0x01, 0x80, 0xff, 0x7f] {
                let mut broken = stream.clone();
                broken[position] ^= flip;
                let mut decoder = Decoder::default();
                while let Ok(Some(_)) = decoder.next(&mut broken) {}
            }
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for bytes in [
            &[0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff][..],
            &[0x80],
            &[0x00],
        ] {
            assert!(
                Decoder::default().next(&mut bytes.to_vec()).is_err(),
                "{bytes:?}"
            );
        }
    }
}
