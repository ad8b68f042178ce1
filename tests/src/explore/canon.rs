//! A state in canonical bytes, so that two states that will behave alike are found to be the same.
//!
//! Times are the one thing in which states differ for nothing. The worlds' clock starts at
//! [`ORIGIN`], which no other number in a state comes near, so every number at or above it is a time
//! (or a time to come) wherever it stands. It is written as its distance from now. A replica does
//! with a time only this: it compares it, or it plus one of its parameters, with now, with another
//! time that it got in the same way, or takes the later of two. So the distance says all, and
//! [`LONGEST`] after every parameter has run out it says no more than that.

use std::hash::{BuildHasherDefault, DefaultHasher, Hasher};

use serde::ser::{self, Serialize};

use super::node;

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
    value
        .serialize(&mut Canon { out, now, oldest: LONGEST, of: "" })
        .expect("canonical bytes always can be written");
}

/// 64 bits of the bytes (SipHash-1-3 with a fixed key). Among ten million states two share one by
/// chance in three searches of a million.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// The digest of a value as seen at `now`.
pub(crate) fn digest_of<T: Serialize + ?Sized>(now: u64, value: &T) -> u64 {
    let mut bytes = Vec::with_capacity(4096);
    write(&mut bytes, now, value);
    digest(&bytes)
}

/// For tables whose keys are digests: they are spread already.
pub(crate) type Spread = BuildHasherDefault<Spreader>;

/// Takes the numbers of a key as they are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spreader(u64);

impl Hasher for Spreader {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x517c_c1b7_2722_0a95).rotate_left(20);
    }

    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }
}

struct Canon<'a> {
    out: &'a mut Vec<u8>,
    now: u64,
    /// How old a time can be and still tell something, where it stands.
    oldest: i64,
    /// Whose fields are being written.
    of: &'static str,
}

/// How long ago the time of a field can be, in milliseconds, and still make a difference. Each is only
/// compared with now, after the time that a parameter gives it, so all times for which that is over
/// are alike, and the time that never was, 0, is one of them.
fn oldest(of: &str, field: &str) -> i64 {
    let params = node::params();
    let ms = match (of, field) {
        // Deadlines: over or not.
        (_, "until" | "leased_until" | "leased_before" | "promised_until") => 0,
        (_, "wait_until" | "retry_at") => 0,
        // For people only.
        ("Seen", "since") | (_, "lacking_since") => 0,
        // A proposal is given five times as long as a question.
        ("Asked", "sent") => return LONGEST,
        ("Core", "now") | (_, "sent") => params.retry_ms,
        ("Reach", "since") => params.recovery.probe_timeout_ms,
        ("Handover", "since") => params.drain_ms,
        ("Work", "asked") => params.recovery.fence_retry_ms,
        (_, "commanded") | ("Stage", "at") => params.recovery.command_retry_ms,
        (_, "stamped") => params.renew_ms,
        // The stamp of a lease, in the question and in the answer.
        (_, "stamp" | "promised") => params.lease_ms,
        (_, "heard" | "given_up") => params.suspect_ms,
        (_, "moved") => params.stall_ms,
        (_, "timed") => {
            params.recovery.start_timeout_ms.max(params.recovery.delta_start_timeout_ms)
        }
        _ => return LONGEST,
    };
    ms as i64
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
        let is_time = (ORIGIN..LAST_TIME).contains(&v);
        if is_time || v == 0 && self.oldest < LONGEST {
            let distance = (v as i64 - self.now as i64).max(-self.oldest);
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

    fn field<T: Serialize + ?Sized>(&mut self, field: &'static str, value: &T) -> Done {
        let (of, around) = (self.of, self.oldest);
        self.oldest = oldest(of, field);
        value.serialize(&mut *self)?;
        (self.of, self.oldest) = (of, around);
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
    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Self, Never> {
        self.of = name;
        Ok(self)
    }
    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Never> {
        self.number(u64::from(index))?;
        self.of = name;
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
    fn serialize_field<T: Serialize + ?Sized>(&mut self, field: &'static str, value: &T) -> Done {
        self.field(field, value)
    }
    fn end(self) -> Done {
        Ok(())
    }
}

impl ser::SerializeStructVariant for &mut Canon<'_> {
    type Ok = ();
    type Error = Never;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, field: &'static str, value: &T) -> Done {
        self.field(field, value)
    }
    fn end(self) -> Done {
        Ok(())
    }
}
