//! The wire format of Go's `encoding/gob`, as far as the DHCP daemon needs it.
//!
//! The Go plugin and its daemon use Go's `net/rpc`, and this plugin and daemon can
//! replace either of them. A stream describes its types before it uses them. Fields are
//! matched by name, so a peer may have more or fewer fields. Source: the documentation
//! of package `encoding/gob` ("Encoding Details").
//!
//! Input is not trusted: every length is compared with the bytes that are left.

use std::collections::HashMap;

/// The longest message in bytes, far more than the protocol needs.
pub const LONGEST: usize = 1 << 20;

/// The deepest nesting of values; the protocol needs four levels.
const MAX_DEPTH: usize = 16;

/// The ids of types. Those of described types begin with [`FREE`](id::FREE).
#[allow(missing_docs)] // Go's names
pub mod id {
    pub const BOOL: i64 = 1;
    pub const INT: i64 = 2;
    pub const UINT: i64 = 3;
    pub const FLOAT: i64 = 4;
    pub const BYTES: i64 = 5;
    pub const STRING: i64 = 6;
    pub const FREE: i64 = 65;
    /// The types of the descriptions themselves.
    pub(super) const WIRE: i64 = 16;
    pub(super) const ARRAY: i64 = 17;
    pub(super) const COMMON: i64 = 18;
    pub(super) const SLICE: i64 = 19;
    pub(super) const STRUCT: i64 = 20;
    pub(super) const FIELD: i64 = 21;
    pub(super) const FIELDS: i64 = 22;
    pub(super) const MAP: i64 = 23;
}

/// A value of a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A signed number.
    Int(i64),
    /// An unsigned number, a boolean, or the bits of a float.
    Uint(u64),
    /// Bytes or text.
    Bytes(Vec<u8>),
    /// A slice or an array; the keys and values of a map in turn.
    List(Vec<Value>),
    /// The fields that are not zero, by name.
    Struct(Vec<(String, Value)>),
}

impl Value {
    /// A field of a struct; absent when it is zero.
    pub fn field(&self, name: &str) -> Option<&Self> {
        let Self::Struct(fields) = self else {
            return None;
        };
        let named = fields.iter().find(|(field, _)| field == name);
        named.map(|(_, value)| value)
    }

    /// A field of bytes; empty when it is absent or of another kind.
    pub fn bytes(&self, name: &str) -> &[u8] {
        match self.field(name) {
            Some(Self::Bytes(bytes)) => bytes,
            _ => &[],
        }
    }

    /// A text field; empty when it is absent or of another kind.
    pub fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(self.bytes(name)).into_owned()
    }

    /// A field that is a list; empty when it is absent or of another kind.
    pub fn list(&self, name: &str) -> &[Self] {
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

/// Why a stream is not gob, or which part of it is not supported.
pub type Malformed = &'static str;

/// A described type. Go's arrays are read as slices.
#[derive(Clone, Debug)]
enum Type {
    Slice(i64),
    Map(i64, i64),
    Struct(Vec<(String, i64)>),
}

/// Reads one stream, and keeps the types that it has described.
#[derive(Debug)]
pub struct Decoder {
    types: HashMap<i64, Type>,
}

impl Default for Decoder {
    /// Knows the types of descriptions (`wireType` and its parts).
    fn default() -> Self {
        use id::{ARRAY, COMMON, FIELD, FIELDS, INT, MAP, SLICE, STRING, STRUCT, WIRE};
        let structs: [(i64, &[(&str, i64)]); 7] = [
            (
                WIRE,
                &[
                    ("ArrayT", ARRAY),
                    ("SliceT", SLICE),
                    ("StructT", STRUCT),
                    ("MapT", MAP),
                ],
            ),
            (ARRAY, &[("", COMMON), ("Elem", INT), ("Len", INT)]),
            (SLICE, &[("", COMMON), ("Elem", INT)]),
            (STRUCT, &[("", COMMON), ("Field", FIELDS)]),
            (MAP, &[("", COMMON), ("Key", INT), ("Elem", INT)]),
            (COMMON, &[("Name", STRING), ("Id", INT)]),
            (FIELD, &[("Name", STRING), ("Id", INT)]),
        ];
        let owned = |(id, fields): (i64, &[(&str, i64)])| {
            let fields = fields.iter().map(|(name, id)| ((*name).to_owned(), *id));
            (id, Type::Struct(fields.collect()))
        };
        let mut types: HashMap<_, _> = structs.into_iter().map(owned).collect();
        types.insert(FIELDS, Type::Slice(FIELD));
        Self { types }
    }
}

impl Decoder {
    /// Removes the next value from the front of `input`; `None` while it is incomplete.
    ///
    /// # Errors
    /// When the stream is malformed: it cannot be read any further.
    pub fn next(&mut self, input: &mut Vec<u8>) -> Result<Option<Value>, Malformed> {
        loop {
            let mut rest = Reader(input);
            let Some(length) = rest.message_length()? else {
                return Ok(None);
            };
            let header = input.len() - rest.0.len();
            let Some(message) = rest.0.get(..length) else {
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
        let mut reader = Reader(message);
        let id = reader.int()?;
        if id >= 0 {
            if id < id::FREE || !matches!(self.types.get(&id), Some(Type::Struct(_))) {
                return Err("a value that is not a struct");
            }
            return self.value(&mut reader, id, 0).map(Some);
        }
        let id = id.checked_neg().filter(|id| *id >= id::FREE);
        let id = id.ok_or("type id")?;
        let wire = self.value(&mut reader, id::WIRE, 0)?;
        self.types.insert(id, described(&wire)?);
        Ok(None)
    }

    fn value(&self, reader: &mut Reader<'_>, id: i64, depth: usize) -> Result<Value, Malformed> {
        if depth > MAX_DEPTH {
            return Err("nested too deep");
        }
        let item = |reader: &mut Reader<'_>, id| self.value(reader, id, depth + 1);
        Ok(match id {
            id::INT => Value::Int(reader.int()?),
            id::BOOL | id::UINT | id::FLOAT => Value::Uint(reader.uint()?),
            id::BYTES | id::STRING => Value::Bytes(reader.counted()?.to_vec()),
            id => match self.types.get(&id) {
                Some(Type::Struct(fields)) => {
                    let (mut values, mut next) = (Vec::new(), 0);
                    // Each field follows its distance from the previous one; 0 ends them.
                    while let Some(distance) = reader.index()?.checked_sub(1) {
                        let (name, id) = fields.get(next + distance).ok_or("field")?;
                        values.push((name.clone(), item(reader, *id)?));
                        next += distance + 1;
                    }
                    Value::Struct(values)
                }
                Some(Type::Slice(element)) => {
                    let count = reader.count()?;
                    let items = (0..count).map(|_| item(reader, *element));
                    Value::List(items.collect::<Result<_, _>>()?)
                }
                Some(Type::Map(key, element)) => {
                    let ids = std::iter::repeat_n([*key, *element], reader.count()?);
                    let items = ids.flatten().map(|id| item(reader, id));
                    Value::List(items.collect::<Result<_, _>>()?)
                }
                None => return Err("a type without a description"),
            },
        })
    }
}

/// The type that a `wireType` describes.
fn described(wire: &Value) -> Result<Type, Malformed> {
    let id = |of: &Value, name: &str| match of.field(name) {
        Some(Value::Int(id)) => Ok(*id),
        _ => Err("type without an id"),
    };
    if let Some(list) = wire.field("SliceT").or_else(|| wire.field("ArrayT")) {
        return Ok(Type::Slice(id(list, "Elem")?));
    }
    if let Some(map) = wire.field("MapT") {
        return Ok(Type::Map(id(map, "Key")?, id(map, "Elem")?));
    }
    let structure = wire.field("StructT").ok_or("unknown kind")?;
    let fields = structure.list("Field").iter();
    let fields = fields.map(|field| Ok((field.text("Name"), id(field, "Id")?)));
    fields.collect::<Result<_, _>>().map(Type::Struct)
}

/// The bytes that are not yet read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The length of the next message; `None` while the length is incomplete.
    fn message_length(&mut self) -> Result<Option<usize>, Malformed> {
        let Some(&first) = self.0.first() else {
            return Ok(None);
        };
        let digits = first.wrapping_neg();
        if first >= 128 && self.0.len() <= usize::from(digits) && digits <= 8 {
            return Ok(None);
        }
        match self.index()? {
            length @ 1..=LONGEST => Ok(Some(length)),
            _ => Err("length of a message"),
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
            return Err("number");
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

    /// A length, a count or a distance; none can be longer than a message.
    fn index(&mut self) -> Result<usize, Malformed> {
        let number = usize::try_from(self.uint()?).ok();
        number.filter(|number| *number <= LONGEST).ok_or("length")
    }

    /// The number of items that follow: every item has at least one byte.
    fn count(&mut self) -> Result<usize, Malformed> {
        let count = self.index()?;
        if count > self.0.len() {
            return Err("count");
        }
        Ok(count)
    }

    fn counted(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.count()?;
        self.take(count)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let split = self.0.split_at_checked(count);
        let (taken, rest) = split.ok_or("truncated")?;
        self.0 = rest;
        Ok(taken)
    }
}

/// Appends a description: `id` is `type NAME []ITEM`.
pub fn describe_slice(out: &mut Vec<u8>, id: i64, name: &str, item: i64) {
    write(out, -id, |wire| {
        wire.structure(1, |slice| {
            common(slice, name, id).int(1, item);
        });
    });
}

/// Appends a description: `id` is `type NAME struct {FIELDS}`.
pub fn describe_struct(out: &mut Vec<u8>, id: i64, name: &str, fields: &[(&str, i64)]) {
    write(out, -id, |wire| {
        wire.structure(2, |structure| {
            common(structure, name, id).structures(1, fields, |field, (name, id)| {
                field.bytes(0, name).int(1, *id);
            });
        });
    });
}

/// The beginning of each description (`CommonType`).
fn common<'a, 'b>(of: &'a mut Fields<'b>, name: &str, id: i64) -> &'a mut Fields<'b> {
    of.structure(0, |common| {
        common.bytes(0, name).int(1, id);
    })
}

/// Appends a value of the struct type `id`, which has been described.
pub fn write(out: &mut Vec<u8>, id: i64, fill: impl FnOnce(&mut Fields<'_>)) {
    let mut message = Vec::new();
    put_int(&mut message, id);
    put_struct(&mut message, fill);
    put_bytes(out, &message);
}

/// Writes the fields of one struct in their order; those that are zero are left out.
pub struct Fields<'a> {
    out: &'a mut Vec<u8>,
    next: u64,
}

impl Fields<'_> {
    fn begin(&mut self, index: u64) -> &mut Vec<u8> {
        put_uint(self.out, index + 1 - self.next);
        self.next = index + 1;
        self.out
    }

    /// A string, a slice of bytes, or a type based on it, such as `net.IP`.
    pub fn bytes(&mut self, index: u64, bytes: impl AsRef<[u8]>) -> &mut Self {
        if !bytes.as_ref().is_empty() {
            put_bytes(self.begin(index), bytes.as_ref());
        }
        self
    }

    /// A `uint` of any size.
    pub fn uint(&mut self, index: u64, number: u64) -> &mut Self {
        if number != 0 {
            put_uint(self.begin(index), number);
        }
        self
    }

    /// An `int` of any size.
    pub fn int(&mut self, index: u64, number: i64) -> &mut Self {
        if number != 0 {
            put_int(self.begin(index), number);
        }
        self
    }

    /// A struct.
    pub fn structure(&mut self, index: u64, fill: impl FnOnce(&mut Fields<'_>)) -> &mut Self {
        put_struct(self.begin(index), fill);
        self
    }

    /// A slice of structs.
    pub fn structures<T>(
        &mut self,
        index: u64,
        items: &[T],
        fill: impl Fn(&mut Fields<'_>, &T),
    ) -> &mut Self {
        self.list(index, items, |out, item| {
            put_struct(out, |fields| fill(fields, item));
        })
    }

    /// A slice of strings.
    pub fn texts(&mut self, index: u64, items: &[String]) -> &mut Self {
        self.list(index, items, |out, item| put_bytes(out, item.as_bytes()))
    }

    fn list<T>(&mut self, index: u64, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) -> &mut Self {
        if !items.is_empty() {
            let out = self.begin(index);
            put_uint(out, items.len() as u64);
            items.iter().for_each(|item| put(out, item));
        }
        self
    }
}

fn put_struct(out: &mut Vec<u8>, fill: impl FnOnce(&mut Fields<'_>)) {
    fill(&mut Fields { out, next: 0 });
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

    #[test]
    fn the_example_of_the_documentation_is_written_exactly() {
        // encoding/gob, "type Point struct { X, Y int }", Point{22, 33}.
        let mut out = Vec::new();
        describe_struct(&mut out, 65, "Point", &[("X", id::INT), ("Y", id::INT)]);
        write(&mut out, 65, |point| {
            point.int(0, 22).int(1, 33);
        });
        let expected = [
            0x1f, 0xff, 0x81, 0x03, 0x01, 0x01, 0x05, b'P', b'o', b'i', b'n', b't', 0x01, 0xff,
            0x82, 0x00, 0x01, 0x02, 0x01, 0x01, b'X', 0x01, 0x04, 0x00, 0x01, 0x01, b'Y', 0x01,
            0x04, 0x00, 0x00, 0x00, 0x07, 0xff, 0x82, 0x01, 0x2c, 0x01, 0x42, 0x00,
        ];
        assert_eq!(out, expected);
        let point = Decoder::default().next(&mut out).unwrap().unwrap();
        let fields = [("X", 22), ("Y", 33)].map(|(name, it)| (name.into(), Value::Int(it)));
        assert_eq!(point, Value::Struct(fields.to_vec()));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for bytes in [
            &[0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff][..],
            &[0x80],
            &[0x00],
        ] {
            let read = Decoder::default().next(&mut bytes.to_vec());
            assert!(read.is_err(), "{bytes:?}");
        }
    }
}
