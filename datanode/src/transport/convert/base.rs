//! The base lane.

use bytes::Bytes;
use sbk_engine::replication::log::{LogState, SessionLog};
use sbk_engine::replication::message::{Lineage, ToPrimary, ToReplica};
use sbk_engine::types::{BLOCK_SIZE, Lba, Lsn, MAX_REQUEST_BYTES, REGION_BLOCKS, SessionId};
use sbk_proto::v1;
use sbk_proto::v1::recover_message::Body as RecoverBody;

use super::messages::{
    close_in, close_out, closed_in, closed_out, refused_in, refused_out, session_failed_in,
    session_failed_out,
};
use super::numbers::{attach_generation, lsn, regions, sequence, size};
use super::{
    Decoded, bad, id, incomplete_in, incomplete_out, lineage_in, lineage_out, need, recovery_in,
    recovery_out, session_id, table_in, table_out,
};

/// What a message of zeros counts for in a lane's window, and as a sign that its session comes on.
pub const ZEROS_BYTES: u64 = 16;

/// A message of the base lane, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recover {
    /// One of the engine's, to the replica: `BeginRebuild` or `Close`.
    ToReplica(ToReplica),
    /// One of the engine's, to the primary: `RebuildStarted`, `Closed`, `SessionFailed`, `Refused`.
    ToPrimary(ToPrimary),
    /// Consecutive blocks of the committed image.
    Blocks {
        /// First block.
        lba: Lba,
        /// Whole blocks.
        data: Bytes,
        /// The primary's log end when they were read; all up to it is committed.
        read_at: Lsn,
        /// CRC-32C of `data`.
        crc: u32,
    },
    /// Consecutive blocks of the committed image that are zeros, at most a region's.
    Zeros {
        /// First block.
        lba: Lba,
        /// How many.
        blocks: u32,
        /// As for `Blocks`.
        read_at: Lsn,
    },
    /// The sender's region LSNs from `first` on; 0 for a region that nothing wrote.
    Regions {
        /// First region.
        first: u64,
        /// One for each region.
        lsns: Vec<Lsn>,
    },
    /// All was sent.
    End,
    /// Bytes of base blocks that the receiver has taken since the session's start, and [`ZEROS_BYTES`] for
    /// each message of zeros.
    Taken(u64),
}

fn state_out(state: &LogState) -> v1::LogState {
    let session = |(session, log): (&SessionId, &SessionLog)| v1::SessionState {
        session: id(session.0),
        low: log.low,
        logged: log
            .logged
            .iter()
            .map(|(sequence, lsn)| v1::LoggedSequence { sequence: *sequence, lsn: lsn.0 })
            .collect(),
        newest: log.newest.0,
        attach: log.attach.0,
    };
    v1::LogState {
        attach: state.attach.0,
        exclusive: state.exclusive.map(|session| id(session.0)).unwrap_or_default(),
        blocks: state.blocks,
        sessions: state.sessions.iter().map(session).collect(),
    }
}

fn state_in(state: v1::LogState) -> Decoded<LogState> {
    let mut told = LogState::new(size(state.blocks)?);
    told.attach = attach_generation(state.attach)?;
    if !state.exclusive.is_empty() {
        told.exclusive = Some(session_id(&state.exclusive)?);
    }
    for session in state.sessions {
        let logged = session.logged.iter().map(|l| Ok((sequence(l.sequence)?, lsn(l.lsn)?)));
        let (low, newest) = (sequence(session.low)?, lsn(session.newest)?);
        let attach = attach_generation(session.attach)?;
        let log = SessionLog { low, logged: logged.collect::<Decoded<_>>()?, newest, attach };
        told.sessions.insert(session_id(&session.session)?, log);
    }
    if told.within_limits() { Ok(told) } else { bad("a log state beyond its limits") }
}

/// A message of the base lane.
///
/// # Panics
/// On a message of the engine that the base lane does not carry.
pub fn recover_out(lineage: Lineage, message: &Recover) -> v1::RecoverMessage {
    let body = match message {
        Recover::ToReplica(ToReplica::BeginRebuild { request, mark, table, state }) => {
            RecoverBody::Begin(v1::BeginRebuild {
                mark: Some(incomplete_out(*mark)),
                table: table_out(table),
                state: Some(state_out(state)),
                request: *request,
            })
        }
        Recover::ToReplica(ToReplica::Close { session, through, committed }) => {
            RecoverBody::Close(close_out(*session, *through, *committed))
        }
        Recover::ToPrimary(ToPrimary::RebuildStarted { session }) => {
            RecoverBody::Started(recovery_out(*session))
        }
        Recover::ToPrimary(ToPrimary::Closed { session, achieved }) => {
            RecoverBody::Closed(closed_out(*session, *achieved))
        }
        Recover::ToPrimary(ToPrimary::SessionFailed { session, cause }) => {
            RecoverBody::Failed(session_failed_out(*session, *cause))
        }
        Recover::ToPrimary(ToPrimary::Refused { fenced, config, stood }) => {
            RecoverBody::Refused(refused_out(*fenced, config, *stood))
        }
        Recover::ToReplica(
            message @ (ToReplica::Probe { .. }
            | ToReplica::Fence { .. }
            | ToReplica::Cut { .. }
            | ToReplica::Fetch { .. }
            | ToReplica::ReadBlocks { .. }
            | ToReplica::Append(_)),
        ) => panic!("{message:?} does not go over the base lane"),
        Recover::ToPrimary(
            message @ (ToPrimary::Alive { .. }
            | ToPrimary::Facts { .. }
            | ToPrimary::CutDone { .. }
            | ToPrimary::Entries { .. }
            | ToPrimary::Blocks { .. }
            | ToPrimary::Ack { .. }
            | ToPrimary::Gap { .. }),
        ) => panic!("{message:?} does not go over the base lane"),
        Recover::Blocks { lba, data, read_at, crc } => RecoverBody::Blocks(v1::BaseBlocks {
            lba: lba.0,
            data: data.clone(),
            read_at: read_at.0,
            crc: *crc,
        }),
        Recover::Zeros { lba, blocks, read_at } => {
            RecoverBody::Zeros(v1::BaseZeros { lba: lba.0, blocks: *blocks, read_at: read_at.0 })
        }
        Recover::Regions { first, lsns } => RecoverBody::Regions(v1::RegionTable {
            first_region: *first,
            lsns: lsns.iter().map(|lsn| lsn.0).collect(),
        }),
        Recover::End => RecoverBody::End(true),
        Recover::Taken(bytes) => RecoverBody::Taken(v1::BaseTaken { bytes: *bytes }),
    };
    v1::RecoverMessage { lineage: Some(lineage_out(lineage)), body: Some(body) }
}

/// A message of the base lane, whose data's CRC the caller still has to check.
pub fn recover_in(message: v1::RecoverMessage) -> Decoded<(Lineage, Recover)> {
    let lineage = lineage_in(message.lineage)?;
    let message = match need(message.body, "body")? {
        RecoverBody::Begin(begin) => Recover::ToReplica(ToReplica::BeginRebuild {
            mark: incomplete_in(need(begin.mark, "mark")?)?,
            table: table_in(begin.table)?,
            state: state_in(need(begin.state, "state")?)?,
            request: begin.request,
        }),
        RecoverBody::Close(close) => Recover::ToReplica(close_in(close)?),
        RecoverBody::Started(session) => {
            Recover::ToPrimary(ToPrimary::RebuildStarted { session: recovery_in(Some(session))? })
        }
        RecoverBody::Closed(closed) => Recover::ToPrimary(closed_in(closed)?),
        RecoverBody::Failed(failed) => Recover::ToPrimary(session_failed_in(failed)?),
        RecoverBody::Refused(refused) => Recover::ToPrimary(refused_in(refused)?),
        RecoverBody::Blocks(blocks) => {
            let length = blocks.data.len() as u64;
            let whole = length > 0 && length.is_multiple_of(BLOCK_SIZE);
            if !whole || length > MAX_REQUEST_BYTES {
                return bad(format!("base blocks of {length} bytes"));
            }
            Recover::Blocks {
                lba: Lba(size(blocks.lba)?),
                data: blocks.data,
                read_at: lsn(blocks.read_at)?,
                crc: blocks.crc,
            }
        }
        RecoverBody::Zeros(zeros) => {
            if zeros.blocks == 0 || u64::from(zeros.blocks) > REGION_BLOCKS {
                return bad(format!("{} base blocks of zeros", zeros.blocks));
            }
            let (lba, read_at) = (Lba(size(zeros.lba)?), lsn(zeros.read_at)?);
            Recover::Zeros { lba, blocks: zeros.blocks, read_at }
        }
        RecoverBody::Regions(table) => {
            regions(table.first_region, table.lsns.len())?;
            let lsns = table.lsns.into_iter().map(lsn).collect::<Decoded<_>>()?;
            Recover::Regions { first: table.first_region, lsns }
        }
        RecoverBody::End(_) => Recover::End,
        RecoverBody::Taken(taken) => Recover::Taken(taken.bytes),
    };
    Ok((lineage, message))
}
