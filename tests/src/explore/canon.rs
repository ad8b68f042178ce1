//! A state in canonical bytes, so that two states that will behave alike are found to be the same.
//!
//! Times are the one thing in which states differ for nothing. The worlds' clock starts at
//! [`ORIGIN`], which no other number in a state comes near, so every number at or above it is a time
//! (or a time to come) wherever it stands. It is written as its distance from now. A replica does
//! with a time only this: it compares it, or it plus one of its parameters, with now, with another
//! time that it got in the same way, or takes the later of two. So the distance says all, and
//! [`LONGEST`] after every parameter has run out it says no more than that.

use std::hash::{DefaultHasher, Hasher};

use serde::ser::{self, Serialize};

/// When every world begins.
pub(crate) const ORIGIN: u64 = 1 << 40;
/// Not a time: the epoch that fences for ever.
const LAST_TIME: u64 = 1 << 62;
/// Older than every timeout of [`super::node::params`].
pub(crate) const LONGEST: i64 = 10_000;

const TIME: u8 = 0xF0;
const TEXT: u8 = 0xF1;
const NONE: u8 = 0xF2;
const SOME: u8 = 0xF3;
const BYTES: u8 = 0xF4;
const END: u8 = 0xF5;

/// Appends the canonical bytes of `value` as seen at `now` to `out`.
pub(crate) fn write<T: Serialize + ?Sized>(out: &mut Vec<u8>, now: u64, value: &T) {
    value.serialize(&mut Canon { out, now }).expect("canonical bytes always can be written");
}

/// 64 bits of the bytes (SipHash-1-3 with a fixed key). Among ten million states two share one by
/// chance in three searches of a million.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

struct Canon<'a> {
    out: &'a mut Vec<u8>,
    now: u64,
}

/// Nothing can go wrong; the trait wants a type.
#[derive(Debug)]
pub(crate) struct Never;

impl std::fmt::Display for Never {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("never")
    }
}

impl std::error::Error for Never {}

impl ser::Error for Never {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        panic!("a value refused to be written: {message}")
    }
}

type Done = Result<(), Never>;

impl Canon<'_> {
    fn number(&mut self, v: u64) -> Done {
        if (ORIGIN..LAST_TIME).contains(&v) {
            let distance = (v as i64 - self.now as i64).max(-LONGEST);
            self.out.push(TIME);
            self.out.extend(distance.to_le_bytes());
        } else if v < 0xE0 {
            self.out.push(v as u8);
        } else {
            self.out.push(0xE0);
            self.out.extend(v.to_le_bytes());
        }
        Ok(())
    }

    fn long(&mut self, tag: u8, bytes: &[u8]) -> Done {
        self.out.push(tag);
        self.out.extend((bytes.len() as u32).to_le_bytes());
        self.out.extend(bytes);
        Ok(())
    }
}

impl ser::Serializer for &mut Canon<'_> {
    type Ok = ();
    type Error = Never;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    fn is_human_readable(&self) -> bool {
        false
    }
    fn serialize_bool(self, v: bool) -> Done {
        self.number(u64::from(v))
    }
    fn serialize_i8(self, v: i8) -> Done {
        self.serialize_i64(i64::from(v))
    }
    fn serialize_i16(self, v: i16) -> Done {
        self.serialize_i64(i64::from(v))
    }
    fn serialize_i32(self, v: i32) -> Done {
        self.serialize_i64(i64::from(v))
    }
    fn serialize_i64(self, v: i64) -> Done {
        self.long(BYTES, &v.to_le_bytes())
    }
    fn serialize_u8(self, v: u8) -> Done {
        self.number(u64::from(v))
    }
    fn serialize_u16(self, v: u16) -> Done {
        self.number(u64::from(v))
    }
    fn serialize_u32(self, v: u32) -> Done {
        self.number(u64::from(v))
    }
    fn serialize_u64(self, v: u64) -> Done {
        self.number(v)
    }
    fn serialize_f32(self, v: f32) -> Done {
        self.long(BYTES, &v.to_le_bytes())
    }
    fn serialize_f64(self, v: f64) -> Done {
        self.long(BYTES, &v.to_le_bytes())
    }
    fn serialize_char(self, v: char) -> Done {
        self.number(u64::from(u32::from(v)))
    }
    fn serialize_str(self, v: &str) -> Done {
        self.long(TEXT, v.as_bytes())
    }
    fn serialize_bytes(self, v: &[u8]) -> Done {
        self.long(BYTES, v)
    }
    fn serialize_none(self) -> Done {
        self.out.push(NONE);
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Done {
        self.out.push(SOME);
        value.serialize(self)
    }
    fn serialize_unit(self) -> Done {
        Ok(())
    }
    fn serialize_unit_struct(self, _: &'static str) -> Done {
        Ok(())
    }
    fn serialize_unit_variant(self, _: &'static str, index: u32, _: &'static str) -> Done {
        self.number(u64::from(index))
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Done {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        value: &T,
    ) -> Done {
        self.number(u64::from(index))?;
        value.serialize(self)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Never> {
        Ok(self)
    }
    fn serialize_tuple(self, _: usize) -> Result<Self, Never> {
        Ok(self)
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Never> {
        Ok(self)
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Never> {
        self.number(u64::from(index))?;
        Ok(self)
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Self, Never> {
        Ok(self)
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Never> {
        Ok(self)
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Never> {
        self.number(u64::from(index))?;
        Ok(self)
    }
}

impl ser::SerializeSeq for &mut Canon<'_> {
    type Ok = ();
    type Error = Never;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        value.serialize(&mut **self)
    }
    fn end(self) -> Done {
        self.out.push(END);
        Ok(())
    }
}

impl ser::SerializeTuple for &mut Canon<'_> {
    type Ok = ();
    type Error = Never;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        value.serialize(&mut **self)
    }
    fn end(self) -> Done {
        Ok(())
    }
}

impl ser::SerializeTupleStruct for &mut Canon<'_> {
    type Ok = ();
    type Error = Never;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        value.serialize(&mut **self)
    }
    fn end(self) -> Done {
        Ok(())
    }
}

impl ser::SerializeTupleVariant for &mut Canon<'_> {
    type Ok = ();
    type Error = Never;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        value.serialize(&mut **self)
    }
    fn end(self) -> Done {
        Ok(())
    }
}

impl ser::SerializeMap for &mut Canon<'_> {
    type Ok = ();
    type Error = Never;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Done {
        key.serialize(&mut **self)
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        value.serialize(&mut **self)
    }
    fn end(self) -> Done {
        self.out.push(END);
        Ok(())
    }
}

impl ser::SerializeStruct for &mut Canon<'_> {
    type Ok = ();
    type Error = Never;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Done {
        value.serialize(&mut **self)
    }
    fn end(self) -> Done {
        Ok(())
    }
}

impl ser::SerializeStructVariant for &mut Canon<'_> {
    type Ok = ();
    type Error = Never;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Done {
        value.serialize(&mut **self)
    }
    fn end(self) -> Done {
        Ok(())
    }
}
