//! Headers and log states as bytes.

use bytes::Bytes;
use sbk_engine::replication::log::{
    EntryHeader, EntryKind, LogState, Origin, RequestTag, SessionLog,
};
use sbk_engine::types::{AttachGeneration, Epoch, Lba, Lsn, SessionId};
use sbk_wal::{Get, Put, Tag};
use uuid::Uuid;

use super::homes::Homes;
use super::stamper::Stamper;
use crate::entry::{CANONICAL_HEADER, canonical, entry_crc};

/// The header whose canonical form `bytes` starts with. `None` if it is none: a kind that is not
/// known, or fields that no header has.
pub(super) fn header(bytes: &[u8]) -> Option<EntryHeader> {
    let bytes = bytes.get(..CANONICAL_HEADER)?;
    let mut get = Get(bytes);
    let epoch = Epoch(get.u64()?);
    let lsn = Lsn(get.u64()?);
    let kind = get.u32()?;
    let blocks = get.u32()?;
    let value = get.u64()?;
    let session = get.array()?;
    let sequence = get.u64()?;
    let low = get.u64()?;
    let subject = SessionId(Uuid::from_bytes(get.array()?));
    let lba = Lba(value);
    let kind = match kind {
        1 => EntryKind::Write { lba, blocks },
        2 => EntryKind::Trim { lba, blocks },
        3 => EntryKind::Zero { lba, blocks },
        4 => EntryKind::Attach { generation: AttachGeneration(value), exclusive: blocks == 1 },
        5 => EntryKind::Close { session: subject },
        6 => EntryKind::Resize { blocks: value },
        _ => return None,
    };
    let session = SessionId(Uuid::from_bytes(session));
    let origin =
        (!session.0.is_nil()).then_some(Origin { tag: RequestTag { session, sequence }, low });
    let header = EntryHeader { epoch, lsn, kind, origin };
    (canonical(&header) == bytes).then_some(header)
}

/// An entry that is in the log with its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Logged {
    pub(super) header: EntryHeader,
    /// Over canonical header and payload.
    pub(super) crc: u32,
    pub(super) payload: Bytes,
    /// The stamp of each block.
    pub(super) stamps: Box<[u64]>,
}

/// Whether `record` has the tag `tag` behind its header, if it is to have one.
fn is_tagged(record: &[u8], tag: Option<Tag>) -> bool {
    tag.is_none_or(|tag| record[CANONICAL_HEADER..].starts_with(&tag))
}

/// An entry from its bytes in the log, which have the checksum `crc`.
fn entry(body: &Bytes, crc: u32, stamper: &Stamper) -> Option<Logged> {
    let header = header(body)?;
    let at = stamper.payload_at();
    if body.len() as u64 != at as u64 + header.kind.payload_len() {
        return None;
    }
    let payload = body.slice(at..);
    let stamps = stamper.of_payload(&header, &payload);
    let tagged = is_tagged(body, stamper.of_entry(&canonical(&header), &stamps));
    let crc = if stamper.has_key() { entry_crc(&header, &payload) } else { crc };
    tagged.then_some(Logged { header, crc, payload, stamps })
}

/// The bytes of an entry in the log, but for its payload.
pub(super) fn put_entry(header: &EntryHeader, stamps: &[u64], stamper: &Stamper) -> Vec<u8> {
    let mut out = canonical(header).to_vec();
    if let Some(tag) = stamper.of_entry(&out, stamps) {
        out.extend_from_slice(&tag);
    }
    out
}

/// What a record of a write holds that went by reference, in place of the write's number among the kinds.
const REFERENCE: u32 = 7;
/// Where a header has its kind.
const KIND: std::ops::Range<usize> = 16..20;

/// A write whose payload is in homes of its blocks, as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) header: EntryHeader,
    /// Over canonical header and payload.
    pub(super) crc: u32,
    pub(super) stamps: Box<[u64]>,
    pub(super) homes: Homes,
}

/// What a record of the log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Entry(Logged),
    Reference(Reference),
}

impl Stored {
    pub(super) fn header(&self) -> &EntryHeader {
        match self {
            Stored::Entry(logged) => &logged.header,
            Stored::Reference(reference) => &reference.header,
        }
    }
}

/// The bytes of a reference in the log.
pub(super) fn put_reference(
    header: &EntryHeader,
    crc: u32,
    stamps: &[u64],
    homes: &Homes,
    stamper: &Stamper,
) -> Vec<u8> {
    let mut start = canonical(header);
    start[KIND].copy_from_slice(&REFERENCE.to_le_bytes());
    let mut rest = Put::default();
    rest.u32(crc);
    for stamp in stamps {
        rest.bytes(&stamp.to_le_bytes()[..stamper.width() as usize]);
    }
    rest.bytes(homes.bytes());
    let mut out = start.to_vec();
    if let Some(tag) = stamper.of_entry(&[&start, &rest.0[..]].concat(), &[]) {
        out.extend_from_slice(&tag);
    }
    out.extend_from_slice(&rest.0);
    out
}

fn get_reference(body: &[u8], stamper: &Stamper) -> Option<Reference> {
    let start: [u8; CANONICAL_HEADER] = body.get(..CANONICAL_HEADER)?.try_into().ok()?;
    let kind = u32::from_le_bytes(start[KIND].try_into().ok()?);
    let mut plain = start;
    plain[KIND].copy_from_slice(&1u32.to_le_bytes());
    let header = header(&plain).filter(|_| kind == REFERENCE)?;
    let EntryKind::Write { blocks, .. } = header.kind else { return None };
    let rest = body.get(stamper.payload_at()..)?;
    if !is_tagged(body, stamper.of_entry(&[&start, rest].concat(), &[])) {
        return None;
    }
    let mut get = Get(rest);
    let crc = get.u32()?;
    let (blocks, width) = (blocks as usize, stamper.width() as usize);
    if get.0.len() as u64 != (width * blocks + Homes::bytes_for(blocks)) as u64 {
        return None;
    }
    let mut stamp = || {
        let mut stamp = [0; 8];
        stamp[..width].copy_from_slice(get.slice(width)?);
        Some(u64::from_le_bytes(stamp))
    };
    let stamps = (0..blocks).map(|_| stamp()).collect::<Option<_>>()?;
    let homes = Homes::decode(blocks, get.0)?;
    Some(Reference { header, crc, stamps, homes })
}

/// What a record of the log holds, from its bytes, which have the checksum `crc`.
pub(super) fn stored(body: &Bytes, crc: u32, stamper: &Stamper) -> Option<Stored> {
    let whole = entry(body, crc, stamper).map(Stored::Entry);
    whole.or_else(|| get_reference(body, stamper).map(Stored::Reference))
}

/// A log state and the LSN that it is as of.
pub(super) fn put_state(state: &LogState, upto: Lsn, out: &mut Put) {
    let exclusive = state.exclusive.map_or(Uuid::nil(), |session| session.0);
    out.u64(upto.0).u64(state.attach.0).bytes(exclusive.as_bytes());
    out.u64(state.blocks).u32(state.sessions.len() as u32);
    for (id, session) in &state.sessions {
        out.bytes(id.0.as_bytes()).u64(session.attach.0).u64(session.low).u64(session.newest.0);
        out.u32(session.logged.len() as u32);
        for (sequence, lsn) in &session.logged {
            out.u64(*sequence).u64(lsn.0);
        }
    }
}

/// The reverse of [`put_state`].
pub(super) fn get_state(get: &mut Get<'_>) -> Option<(LogState, Lsn)> {
    let upto = Lsn(get.u64()?);
    let attach = AttachGeneration(get.u64()?);
    let exclusive = SessionId(Uuid::from_bytes(get.array()?));
    let mut state = LogState::new(get.u64()?);
    (state.attach, state.exclusive) = (attach, (!exclusive.0.is_nil()).then_some(exclusive));
    for _ in 0..get.u32()? {
        let id = SessionId(Uuid::from_bytes(get.array()?));
        let mut session = SessionLog {
            attach: AttachGeneration(get.u64()?),
            low: get.u64()?,
            newest: Lsn(get.u64()?),
            ..SessionLog::default()
        };
        for _ in 0..get.u32()? {
            session.logged.insert(get.u64()?, Lsn(get.u64()?));
        }
        state.sessions.insert(id, session);
    }
    Some((state, upto))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use sbk_wal::{Authenticator, crc32c};

    use super::*;

    fn kinds() -> impl Strategy<Value = EntryKind> {
        let (lba, blocks) = (any::<u64>(), any::<u32>());
        prop_oneof![
            (lba, blocks).prop_map(|(l, blocks)| EntryKind::Write { lba: Lba(l), blocks }),
            (lba, blocks).prop_map(|(l, blocks)| EntryKind::Trim { lba: Lba(l), blocks }),
            (lba, blocks).prop_map(|(l, blocks)| EntryKind::Zero { lba: Lba(l), blocks }),
            (lba, any::<bool>()).prop_map(|(g, exclusive)| {
                EntryKind::Attach { generation: AttachGeneration(g), exclusive }
            }),
            (1..u128::MAX)
                .prop_map(|id| EntryKind::Close { session: SessionId(Uuid::from_u128(id)) }),
            lba.prop_map(|blocks| EntryKind::Resize { blocks }),
        ]
    }

    fn origins() -> impl Strategy<Value = Option<Origin>> {
        let origin = (1..u128::MAX, any::<u64>(), any::<u64>()).prop_map(|(id, sequence, low)| {
            let session = SessionId(Uuid::from_u128(id));
            Origin { tag: RequestTag { session, sequence }, low }
        });
        proptest::option::of(origin)
    }

    proptest! {
        #[test]
        fn a_header_comes_back_from_its_canonical_form(
            epoch in any::<u64>(),
            lsn in any::<u64>(),
            kind in kinds(),
            origin in origins(),
        ) {
            let it = EntryHeader { epoch: Epoch(epoch), lsn: Lsn(lsn), kind, origin };
            prop_assert_eq!(header(&canonical(&it)), Some(it));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(it) = header(&bytes) {
                prop_assert_eq!(&canonical(&it)[..], &bytes[..CANONICAL_HEADER]);
            }
            get_state(&mut Get(&bytes));
            stored(&Bytes::from(bytes), 0, &Stamper::plain());
        }
    }

    /// A key that proves nothing.
    #[derive(Debug)]
    struct Sum;

    impl Authenticator for Sum {
        fn tag(&self, parts: &[&[u8]]) -> Tag {
            let sum = crc32c(&parts.concat()).to_le_bytes();
            std::array::from_fn(|at| sum[at % 4])
        }
    }

    fn both() -> [Stamper; 2] {
        [Stamper::plain(), Stamper::with(Arc::new(Sum))]
    }

    #[test]
    fn a_reference_comes_back_and_is_no_entry() {
        use crate::homes::Home::{Extents, Shadow};
        let kind = EntryKind::Write { lba: Lba(9), blocks: 3 };
        let header = EntryHeader { epoch: Epoch(2), lsn: Lsn(7), kind, origin: None };
        for stamper in both() {
            let (stamps, homes) =
                (Box::new([0x11, 0, 0x33]), Homes::new(&[Shadow, Extents, Shadow]));
            let body = put_reference(&header, 0x77, &stamps[..], &homes, &stamper);
            let body = Bytes::from(body);
            assert_eq!(entry(&body, 1, &stamper), None);
            let reference = Reference { header, crc: 0x77, stamps, homes };
            assert_eq!(stored(&body, 1, &stamper), Some(Stored::Reference(reference)));
            for len in 0..body.len() {
                assert_eq!(stored(&body.slice(..len), 1, &stamper), None);
            }
            // None of another kind is taken for one.
            let mut other = body.to_vec();
            other[16] = 8;
            assert_eq!(stored(&Bytes::from(other), 1, &stamper), None);
        }
    }

    #[test]
    fn an_entry_is_what_was_tagged() {
        let kind = EntryKind::Write { lba: Lba(9), blocks: 2 };
        let header = EntryHeader { epoch: Epoch(2), lsn: Lsn(7), kind, origin: None };
        let payload = Bytes::from([vec![0; 4096], vec![3; 4096]].concat());
        for stamper in both() {
            let stamps = stamper.of_payload(&header, &payload);
            assert_eq!((stamps.len(), stamps[0]), (2, 0));
            let record = |start: Vec<u8>| Bytes::from([&start[..], &payload[..]].concat());
            let body = record(put_entry(&header, &stamps, &stamper));
            let crc = entry_crc(&header, &payload);
            let logged = Logged { header, crc, payload: payload.clone(), stamps: stamps.clone() };
            assert_eq!(stored(&body, crc32c(&body), &stamper), Some(Stored::Entry(logged)));
            if !stamper.has_key() {
                continue;
            }
            // Of another place in the log, or with other bytes.
            let other = EntryHeader { lsn: Lsn(8), ..header };
            let mut start = put_entry(&header, &stamps, &stamper);
            start[..CANONICAL_HEADER].copy_from_slice(&canonical(&other));
            assert_eq!(stored(&record(start), 1, &stamper), None);
            let mut changed = body.to_vec();
            changed[stamper.payload_at() + 5000] ^= 1;
            assert_eq!(stored(&Bytes::from(changed), 1, &stamper), None);
        }
    }

    #[test]
    fn a_state_comes_back() {
        let mut state = LogState::new(77);
        state.attach = AttachGeneration(5);
        state.exclusive = Some(SessionId(Uuid::from_u128(1)));
        let attach = AttachGeneration(5);
        let mut session = SessionLog { attach, low: 3, newest: Lsn(9), ..SessionLog::default() };
        session.logged.insert(4, Lsn(8));
        session.logged.insert(6, Lsn(9));
        state.sessions.insert(SessionId(Uuid::from_u128(1)), session);
        state.sessions.insert(SessionId(Uuid::from_u128(2)), SessionLog::default());
        let mut put = Put::default();
        put_state(&state, Lsn(9), &mut put);
        assert_eq!(get_state(&mut Get(&put.0)), Some((state, Lsn(9))));
    }
}
