//! Every message survives the way over the wire, and what no peer would send is refused.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use sbk_engine::replication::log::{
    EntryHeader, EntryKind, LogState, Origin, RequestTag, SessionLog,
};
use sbk_engine::replication::message::{Append, Facts, ToPrimary, ToReplica};
use sbk_engine::types::{
    AttachGeneration, BootId, Durability, Lba, LossGeneration, Lsn, Millis, TailId, WriteAck,
};

use sbk_proto::v1::replication_message::Body;

use super::*;

fn an_id() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

/// One that is counted up.
fn a_number() -> impl Strategy<Value = u64> {
    0..1u64 << 62
}

/// A volume's, or a block of it.
fn a_size() -> impl Strategy<Value = u64> {
    0..=1u64 << 34
}

fn a_ref() -> impl Strategy<Value = ReplicaRef> {
    (an_id(), a_number(), a_number()).prop_map(|(id, process, open)| ReplicaRef {
        id: ReplicaId(id),
        incarnation: Incarnation { process, open },
    })
}

fn a_lineage() -> impl Strategy<Value = Lineage> {
    (an_id(), a_number(), a_ref(), a_ref()).prop_map(|(volume, epoch, from, to)| Lineage {
        volume: VolumeId(volume),
        epoch: Epoch(epoch),
        from,
        to,
    })
}

fn a_config() -> impl Strategy<Value = Config> {
    let placement = (an_id(), "[a-z0-9.]{1,12}:[0-9]{1,5}");
    let placements = btree_map(an_id(), placement, 0..4);
    let numbers = (1..1u64 << 62, a_number(), any::<u32>(), a_size(), a_number());
    let durability = prop_oneof![
        Just(Durability::SyncAll),
        Just(Durability::SyncQuorum),
        Just(Durability::BestEffort)
    ];
    let write_ack = prop_oneof![Just(WriteAck::Durable), Just(WriteAck::Written)];
    let mode = (durability, write_ack);
    let tails = vec((an_id(), a_tail()), 0..4);
    let mode = (mode, tails);
    (an_id(), a_ref(), btree_set(an_id(), 0..4), placements, numbers, mode).prop_map(
        |(volume, primary, isr, placements, numbers, ((durability, write_ack), tails))| {
            let (epoch, since, min_in_sync, blocks, loss) = numbers;
            let mut isr: BTreeSet<_> = isr.into_iter().map(ReplicaId).collect();
            isr.insert(primary.id);
            let placed = placements.into_iter();
            let replicas: BTreeMap<_, _> = placed
                .map(|(id, (node, addr))| (ReplicaId(id), Placement { node: NodeId(node), addr }))
                .collect();
            Config {
                volume: VolumeId(volume),
                epoch: Epoch(epoch),
                primary,
                since: Epoch(since.min(epoch)),
                isr,
                replicas,
                durability,
                write_ack,
                min_in_sync,
                blocks,
                wished_blocks: (blocks % 3 == 1).then_some(blocks),
                loss_generation: LossGeneration(loss),
                handed_over_by: (loss % 2 == 1).then_some(primary),
                tails: tails.into_iter().map(|(id, tail)| (ReplicaId(id), tail)).collect(),
            }
        },
    )
}

fn a_tail() -> impl Strategy<Value = TailId> {
    (an_id(), any::<u64>()).prop_map(|(boot, count)| TailId { boot: BootId(boot), count })
}

fn a_table() -> impl Strategy<Value = EpochTable> {
    vec((1..1000u64, 1..1000u64), 0..8).prop_map(|steps| {
        let (mut epoch, mut first) = (0, 0);
        let pairs = steps.into_iter().map(|(e, f)| {
            epoch += e;
            first += f;
            (Epoch(epoch), Lsn(first))
        });
        EpochTable::from_pairs(pairs.collect()).expect("ascending by construction")
    })
}

fn a_session() -> impl Strategy<Value = RecoveryId> {
    (a_number(), a_number()).prop_map(|(epoch, number)| RecoveryId { epoch: Epoch(epoch), number })
}

fn a_mark() -> impl Strategy<Value = Incomplete> {
    (a_session(), a_number(), a_number(), a_number()).prop_map(|(session, from, base, target)| {
        Incomplete { session, from: Lsn(from), base: Lsn(base), target: Lsn(target) }
    })
}

fn a_state() -> impl Strategy<Value = LogState> {
    let session = (0..1000u64, btree_set(1..=512u64, 0..4), a_number());
    let sessions = btree_map(an_id(), session, 0..4);
    (a_number(), a_size(), sessions).prop_map(|(attach, blocks, sessions)| {
        let mut state = LogState::new(blocks);
        state.attach = AttachGeneration(attach);
        state.exclusive = sessions.keys().next().map(|id| SessionId(*id));
        for (id, (low, above, newest)) in sessions {
            let logged = above.into_iter().map(|n| (low + n, Lsn(n))).collect();
            let log = SessionLog { low, logged, newest: Lsn(newest), attach: state.attach };
            state.sessions.insert(SessionId(id), log);
        }
        state
    })
}

fn a_kind() -> impl Strategy<Value = EntryKind> {
    let range = (0..1u64 << 40, 1..4u32);
    prop_oneof![
        range.clone().prop_map(|(lba, blocks)| EntryKind::Write { lba: Lba(lba), blocks }),
        range.clone().prop_map(|(lba, blocks)| EntryKind::Trim { lba: Lba(lba), blocks }),
        range.prop_map(|(lba, blocks)| EntryKind::Zero { lba: Lba(lba), blocks }),
        (a_number(), any::<bool>()).prop_map(|(g, exclusive)| {
            EntryKind::Attach { generation: AttachGeneration(g), exclusive }
        }),
        an_id().prop_map(|id| EntryKind::Close { session: SessionId(id) }),
        a_size().prop_map(|blocks| EntryKind::Resize { blocks }),
    ]
}

fn an_entry() -> impl Strategy<Value = WireEntry> {
    let origin = option::of((an_id(), a_number(), a_number()));
    (1..1u64 << 62, 1..1u64 << 62, a_kind(), origin, any::<u32>(), any::<u8>()).prop_map(
        |(epoch, lsn, kind, origin, crc, fill)| {
            let origin = origin.map(|(session, sequence, low)| Origin {
                tag: RequestTag { session: SessionId(session), sequence },
                low,
            });
            let payload = Bytes::from(vec![fill; kind.payload_len() as usize]);
            let header = EntryHeader { epoch: Epoch(epoch), lsn: Lsn(lsn), kind, origin };
            WireEntry { header, crc, payload }
        },
    )
}

fn an_append() -> impl Strategy<Value = (ToReplica, Vec<WireEntry>)> {
    let numbers = (a_number(), a_number(), a_number(), a_number());
    (numbers, option::of(a_number()), vec(an_entry(), 0..3)).prop_map(
        |((since, first, committed, prev), stamp, entries)| {
            let append = Append {
                since: Epoch(since),
                first: Lsn(first),
                committed: Lsn(committed),
                stamp: stamp.map(Millis),
                prev: Lsn(prev),
                entries: entries.iter().map(|entry| entry.header).collect(),
            };
            (ToReplica::Append(append), entries)
        },
    )
}

fn plain(message: ToReplica) -> (ToReplica, Vec<WireEntry>) {
    (message, Vec::new())
}

fn a_question() -> impl Strategy<Value = (ToReplica, Vec<WireEntry>)> {
    prop_oneof![
        a_number().prop_map(|request| plain(ToReplica::Probe { request })),
        (a_number(), a_config())
            .prop_map(|(request, config)| plain(ToReplica::Fence { request, config })),
        (a_number(), a_number(), a_table()).prop_map(|(request, end, table)| plain(
            ToReplica::Cut { request, end: Lsn(end), table }
        )),
        (a_number(), a_number(), a_number()).prop_map(|(request, prev, last)| plain(
            ToReplica::Fetch { request, prev: Lsn(prev), last: Lsn(last) }
        )),
        an_append(),
        (a_number(), a_number(), some_lbas(1)).prop_map(|(request, committed, blocks)| plain(
            ToReplica::ReadBlocks { request, committed: Lsn(committed), blocks }
        )),
        (a_session(), a_number()).prop_map(|(session, lsn)| {
            let (through, committed) = (Lsn(lsn), Lsn(lsn / 2));
            plain(ToReplica::Close { session, through, committed })
        }),
    ]
}

fn a_space() -> impl Strategy<Value = SpaceTold> {
    let room = prop_oneof![Just(Room::Ample), Just(Room::Short), Just(Room::Full)];
    (room, a_number(), a_number(), a_number()).prop_map(|(room, free, size, change)| SpaceTold {
        space: Space { room, free, size, watermark: size / 2 },
        change,
    })
}

fn a_failure() -> impl Strategy<Value = FailureKind> {
    prop_oneof![
        Just(FailureKind::WalRecycled),
        Just(FailureKind::Transport),
        Just(FailureKind::StoreIo),
        Just(FailureKind::StartTimeout),
        Just(FailureKind::Invalidated),
        Just(FailureKind::PinLost),
        Just(FailureKind::Stalled),
        Just(FailureKind::NoSpace),
    ]
}

fn some_facts() -> impl Strategy<Value = Facts> {
    let numbers = [a_number(), a_number(), a_number(), a_number()];
    let others = (a_number(), a_number(), option::of(a_mark()), a_tail());
    (a_table(), numbers, others).prop_map(
        |(table, mut ordered, (loss, promised_ms, incomplete, tail))| {
            ordered.sort_unstable();
            let [checkpoint, retained, committed, durable] = ordered.map(Lsn);
            let loss_generation = LossGeneration(loss);
            Facts {
                table,
                durable,
                committed,
                checkpoint,
                retained,
                incomplete,
                loss_generation,
                promised_ms,
                tail,
                doubtful: promised_ms % 2 == 1,
            }
        },
    )
}

fn a_session_end() -> impl Strategy<Value = ToPrimary> {
    prop_oneof![
        (a_session(), a_number())
            .prop_map(|(session, lsn)| ToPrimary::Closed { session, achieved: Lsn(lsn) }),
        (a_session(), a_failure())
            .prop_map(|(session, cause)| ToPrimary::SessionFailed { session, cause }),
        (a_number(), option::of(a_config())).prop_map(|(epoch, config)| ToPrimary::Refused {
            fenced: Epoch(epoch),
            config,
            stood: Epoch(epoch / 2),
        }),
        // Where the volume was deleted.
        a_number().prop_map(|epoch| ToPrimary::Refused {
            fenced: Epoch(u64::MAX),
            config: None,
            stood: Epoch(epoch),
        }),
    ]
}

/// Blocks by themselves, ascending.
fn some_lbas(least: usize) -> impl Strategy<Value = Vec<Lba>> {
    btree_set(0..1u64 << 34, least..4).prop_map(|lbas| lbas.into_iter().map(Lba).collect())
}

fn told_blocks() -> impl Strategy<Value = (ToPrimary, Beside)> {
    (a_number(), a_number(), some_lbas(0), some_lbas(0), any::<u8>()).prop_map(
        |(request, at, held, rotten, fill)| {
            let block = |lba: &Lba| WireBlock { lba: *lba, data: vec![fill; 4096].into() };
            let beside = Beside::Blocks(held.iter().map(block).collect());
            (ToPrimary::Blocks { request, at: Lsn(at), held, rotten }, beside)
        },
    )
}

fn fetched() -> impl Strategy<Value = (ToPrimary, Beside)> {
    (a_number(), a_number(), vec(an_entry(), 0..3)).prop_map(|(request, prev, entries)| {
        let headers = entries.iter().map(|entry| entry.header).collect();
        let beside = Beside::Entries(entries);
        (ToPrimary::Entries { request, prev: Lsn(prev), entries: headers }, beside)
    })
}

fn an_answer() -> impl Strategy<Value = (ToPrimary, Beside)> {
    prop_oneof![
        an_empty_answer().prop_map(|message| (message, Beside::default())),
        fetched(),
        told_blocks(),
    ]
}

fn an_empty_answer() -> impl Strategy<Value = ToPrimary> {
    let ack = (a_number(), option::of(a_number()), option::of(a_number()), a_space());
    prop_oneof![
        a_number().prop_map(|request| ToPrimary::Alive { request }),
        (a_number(), some_facts()).prop_map(|(request, facts)| ToPrimary::Facts { request, facts }),
        (a_number(), a_number())
            .prop_map(|(request, lsn)| ToPrimary::CutDone { request, durable: Lsn(lsn) }),
        ack.prop_map(|(durable, recorded, promised, space)| ToPrimary::Ack {
            durable: Lsn(durable),
            recorded: recorded.map(Epoch),
            promised: promised.map(Millis),
            written: Lsn(durable),
            space,
        }),
        a_number().prop_map(|end| ToPrimary::Gap { end: Lsn(end) }),
        a_session_end(),
    ]
}

fn a_base_message() -> impl Strategy<Value = Recover> {
    let begin =
        (a_number(), a_mark(), a_table(), a_state()).prop_map(|(request, mark, table, state)| {
            ToReplica::BeginRebuild { request, mark, table, state }
        });
    let close = (a_session(), a_number()).prop_map(|(session, lsn)| ToReplica::Close {
        session,
        through: Lsn(lsn),
        committed: Lsn(lsn / 2),
    });
    let blocks = (a_size(), 1..3usize, a_number(), any::<u32>());
    prop_oneof![
        begin.prop_map(Recover::ToReplica),
        close.prop_map(Recover::ToReplica),
        a_session().prop_map(|s| Recover::ToPrimary(ToPrimary::RebuildStarted { session: s })),
        a_session_end().prop_map(Recover::ToPrimary),
        blocks.prop_map(|(lba, blocks, read_at, crc)| Recover::Blocks {
            lba: Lba(lba),
            data: Bytes::from(vec![1; blocks * 4096]),
            read_at: Lsn(read_at),
            crc,
        }),
        (0..1u64 << 20, vec(a_number(), 0..4)).prop_map(|(first, lsns)| Recover::Regions {
            first,
            lsns: lsns.into_iter().map(Lsn).collect(),
        }),
        Just(Recover::End),
        a_number().prop_map(Recover::Taken),
    ]
}

/// Through the bytes, as a peer would see it.
fn over_the_wire<M: prost::Message + Default>(message: &M) -> M {
    M::decode(Bytes::from(message.encode_to_vec())).expect("what was encoded decodes")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn questions_survive(lineage in a_lineage(), (message, entries) in a_question()) {
        let sent = over_the_wire(&to_replica_out(lineage, &message, &entries));
        prop_assert_eq!(to_replica_in(sent), Ok((lineage, message, entries)));
    }

    #[test]
    fn answers_survive(lineage in a_lineage(), (message, beside) in an_answer()) {
        let sent = over_the_wire(&to_primary_out(lineage, &message, &beside));
        prop_assert_eq!(to_primary_in(sent), Ok((lineage, message, beside)));
    }

    /// A block's checksum is of whose it is and as of when, too: no other one passes for it.
    #[test]
    fn a_block_is_no_other_block(
        lineage in a_lineage(),
        lba in 0..1u64 << 34,
        at in a_number(),
        what in 0..5u8,
    ) {
        let lbas = vec![Lba(lba)];
        let message = ToPrimary::Blocks { request: 1, at: Lsn(at), held: lbas, rotten: vec![] };
        let block = WireBlock { lba: Lba(lba), data: vec![7; 4096].into() };
        let mut sent = to_primary_out(lineage, &message, &Beside::Blocks(vec![block]));
        prop_assert!(to_primary_in(sent.clone()).is_ok());
        let other = |id: &Bytes| Bytes::from(id.iter().map(|byte| !byte).collect::<Vec<_>>());
        let Some(lineage) = &mut sent.lineage else { panic!("it has one") };
        let Some(Body::Blocks(told)) = &mut sent.body else { panic!("blocks were sent") };
        match what {
            0 => lineage.volume = other(&lineage.volume),
            1 => {
                let from = lineage.from.as_mut().expect("somebody says it");
                from.id = other(&from.id);
            }
            2 => told.at ^= 1,
            3 => told.held[0].lba ^= 1,
            _ => told.held[0].data = vec![8; 4096].into(),
        }
        prop_assert!(to_primary_in(sent).is_err());
    }

    #[test]
    fn base_messages_survive(lineage in a_lineage(), message in a_base_message()) {
        let sent = over_the_wire(&recover_out(lineage, &message));
        prop_assert_eq!(recover_in(sent), Ok((lineage, message)));
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in vec(any::<u8>(), 0..256)) {
        if let Ok(message) = <v1::ReplicationMessage as prost::Message>::decode(&bytes[..]) {
            let _refused = to_replica_in(message.clone()).is_err();
            let _refused = to_primary_in(message).is_err();
        }
    }
}

#[test]
fn a_payload_that_does_not_fit_its_blocks_is_refused() {
    let kind = EntryKind::Write { lba: Lba(1), blocks: 2 };
    let header = EntryHeader { epoch: Epoch(1), lsn: Lsn(1), kind, origin: None };
    let entry = WireEntry { header, crc: 0, payload: Bytes::from(vec![0; 4096]) };
    assert!(entry_in(entry_out(&entry)).is_err());
}

#[test]
fn a_range_past_the_last_address_is_refused() {
    let kind = EntryKind::Trim { lba: Lba(u64::MAX), blocks: 1 };
    let header = EntryHeader { epoch: Epoch(1), lsn: Lsn(1), kind, origin: None };
    let entry = WireEntry { header, crc: 0, payload: Bytes::new() };
    assert!(entry_in(entry_out(&entry)).is_err());
}

#[test]
fn numbers_that_nothing_counts_up_to_are_refused() {
    for number in [1 << 62, u64::MAX - 1, u64::MAX] {
        assert!(epoch(number).is_err() && lsn(number).is_err() && sequence(number).is_err());
        let incarnation = v1::Incarnation { process: number, open: 1 };
        let replica = v1::ReplicaRef { id: id(Uuid::nil()), incarnation: Some(incarnation) };
        assert!(replica_ref_in(replica).is_err());
    }
    assert!(epoch((1 << 62) - 1).is_ok());
    let table = |first_region, count| v1::RecoverMessage {
        lineage: Some(lineage_out(Lineage {
            volume: VolumeId(Uuid::nil()),
            epoch: Epoch(1),
            from: a_replica(),
            to: a_replica(),
        })),
        body: Some(v1::recover_message::Body::Regions(v1::RegionTable {
            first_region,
            lsns: vec![1; count],
        })),
    };
    // 64 TiB are 2^26 regions; memory for more is not asked for.
    assert!(recover_in(table((1 << 26) - 2, 2)).is_ok());
    for first in [(1 << 26) - 1, 1 << 40, u64::MAX] {
        assert!(recover_in(table(first, 2)).is_err(), "{first}");
    }
}

fn a_replica() -> ReplicaRef {
    let incarnation = Incarnation { process: 1, open: 1 };
    ReplicaRef { id: ReplicaId(Uuid::nil()), incarnation }
}
