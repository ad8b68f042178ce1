//! Headers and log states as bytes.

use bytes::Bytes;
use sbk_engine::replication::log::{
    EntryHeader, EntryKind, LogState, Origin, RequestTag, SessionLog,
};
use sbk_engine::types::{AttachGeneration, Epoch, Lba, Lsn, SessionId};
use sbk_wal::{Get, Put};
use uuid::Uuid;

use super::homes::Homes;
use crate::entry::{CANONICAL_HEADER, canonical};

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

/// The header and the payload of an entry's bytes in the log.
fn entry(body: &Bytes) -> Option<(EntryHeader, Bytes)> {
    let header = header(body)?;
    let payload = body.slice(CANONICAL_HEADER..);
    (payload.len() as u64 == header.kind.payload_len()).then_some((header, payload))
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
    pub(super) stamps: Box<[u32]>,
    pub(super) homes: Homes,
}

/// What a record of the log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Entry(EntryHeader, Bytes),
    Reference(Reference),
}

impl Stored {
    pub(super) fn header(&self) -> &EntryHeader {
        match self {
            Stored::Entry(header, _) => header,
            Stored::Reference(reference) => &reference.header,
        }
    }
}

/// The bytes of a reference in the log.
pub(super) fn put_reference(
    header: &EntryHeader,
    crc: u32,
    stamps: &[u32],
    homes: &Homes,
) -> Vec<u8> {
    let mut start = canonical(header);
    start[KIND].copy_from_slice(&REFERENCE.to_le_bytes());
    let mut out = Put::default();
    out.bytes(&start).u32(crc);
    for stamp in stamps {
        out.u32(*stamp);
    }
    out.bytes(homes.bytes());
    out.0
}

fn get_reference(body: &[u8]) -> Option<Reference> {
    let mut start: [u8; CANONICAL_HEADER] = body.get(..CANONICAL_HEADER)?.try_into().ok()?;
    let kind = u32::from_le_bytes(start[KIND].try_into().ok()?);
    start[KIND].copy_from_slice(&1u32.to_le_bytes());
    let header = header(&start).filter(|_| kind == REFERENCE)?;
    let EntryKind::Write { blocks, .. } = header.kind else { return None };
    let mut get = Get(&body[CANONICAL_HEADER..]);
    let crc = get.u32()?;
    let rest = get.0.len() as u64;
    let blocks = blocks as usize;
    if rest != 4 * blocks as u64 + Homes::bytes_for(blocks) as u64 {
        return None;
    }
    let stamps = (0..blocks).map(|_| get.u32()).collect::<Option<_>>()?;
    let homes = Homes::decode(blocks, get.0)?;
    Some(Reference { header, crc, stamps, homes })
}

/// What a record of the log holds, from its bytes.
pub(super) fn stored(body: &Bytes) -> Option<Stored> {
    let whole = entry(body).map(|(header, payload)| Stored::Entry(header, payload));
    whole.or_else(|| get_reference(body).map(Stored::Reference))
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
    use proptest::prelude::*;

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
            stored(&Bytes::from(bytes));
        }
    }

    #[test]
    fn a_reference_comes_back_and_is_no_entry() {
        use crate::homes::Home::{Extents, Shadow};
        let kind = EntryKind::Write { lba: Lba(9), blocks: 3 };
        let header = EntryHeader { epoch: Epoch(2), lsn: Lsn(7), kind, origin: None };
        let (stamps, homes) = (Box::new([0x11, 0, 0x33]), Homes::new(&[Shadow, Extents, Shadow]));
        let body = Bytes::from(put_reference(&header, 0x77, &stamps[..], &homes));
        assert_eq!(entry(&body), None);
        let reference = Reference { header, crc: 0x77, stamps, homes };
        assert_eq!(stored(&body), Some(Stored::Reference(reference)));
        for len in 0..body.len() {
            assert_eq!(stored(&body.slice(..len)), None);
        }
        // None of another kind is taken for one.
        let mut other = body.to_vec();
        other[16] = 8;
        assert_eq!(stored(&Bytes::from(other)), None);
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
