//! Which faults come together.

use sbk_engine::types::{Durability, WriteAck};

use super::Faults;
use super::faults::AGES;

/// Faults that come together, drawn by the seed.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// What it is called on the command line.
    pub name: &'static str,
    /// The faults of a seed.
    pub faults: fn(u64) -> Faults,
}

/// The family of that name.
pub fn family(name: &str) -> Option<Family> {
    FAMILIES.iter().copied().find(|family| family.name == name)
}

/// Seeds that once found something, with their family. With large writes a seed runs otherwise: those that found
/// theirs before there were any are of family `small`.
pub const REGRESSIONS: &[(&str, u64)] = &[
    // A broken rebuild's superblock told of epochs beyond the empty log.
    ("echoes", 46),
    ("everything", 2),
    // The checkpoint of one rebuild came after the wipe of the next.
    ("disks", 1052),
    // A late word of a gap set a rebuild's feed back below its base.
    ("quorum", 26),
    // A primary that stepped down left a base lane open.
    ("small", 89),
    // A rebuild hung on a damaged block whose overwriting a client had given up.
    ("handovers", 11448),
    // What a primary had sent before it was given up wiped the last copy, which a recovery had made the
    // whole set.
    ("disasters", 1692),
    // A replica that had been named primary and had not heard of it stood for the end of its own epoch.
    ("recoveries", 2083),
    // A fresh replica was removed while a member had just lost its tail: no copy went.
    ("handovers", 556),
    ("small", 1004573),
    // A recovery that was refused as it was applied, and a replica that was retired: the first seeds of the
    // default family come to none.
    ("recoveries", 13),
    ("swarm", 4092),
    // A replica was removed that had all, but never was a voter: nobody counted on it.
    ("small", 300487),
    // A replica whose making was killed before its name was durable was opened, joined, and lost power.
    ("small", 700163),
    // A frontend closed a link as it opened, and its client was taken for attached.
    ("small", 726542),
    // A process was told to end while its checkpoint failed, and the failure was lost on the simulator.
    ("small", 400315),
    // A replica that had left the list refused every epoch, and the primary stepped down for it.
    ("swarm", 401634),
    // Damaged replicas that are replaced: no other family damages more than blocks.
    ("flips", 3),
    // A delta beside blocks that rotted: in no other family does a region stay as it was.
    ("deltas", 189),
    // A forgotten replica kept another one from being made at its node, whose removal was then waited for.
    ("small", 728467),
    // A list was full of replacements that were lost before they joined.
    ("small", 7025617),
    // And once more, where one of their nodes had been told to drain before it was lost.
    ("swarm", 12027318),
    // A candidate took what a replica told as committed that had been given up in a loss.
    ("small", 8015438),
    // A frontend that left waited for ever for an answer that was lost, and nobody wrote damaged blocks anew.
    ("small", 9068029),
    // A run was taken for at rest before the checkpoint of what a member's hung disk had held up.
    ("small", 4000969),
    // A sync of a new replica's directory failed, the next one was believed, and a loss of power took the name.
    ("small", 12038062),
    // A replica was struck below its checkpoint, opened, and had its log cut back to there.
    ("small", 12079900),
];

/// The modes of the families that try them all.
const MODES: [Durability; 4] =
    [Durability::SyncAll, Durability::SyncQuorum, Durability::SyncAll, Durability::BestEffort];

/// How many must be in sync, where the mode and the seed allow for a choice.
fn least(seed: u64) -> u32 {
    let mode = MODES[(seed / 2 % 4) as usize];
    if mode == Durability::SyncAll { 1 + (seed / 3 % 2) as u32 } else { 1 }
}

/// Anything; where blocks rot, somebody looks for that.
fn swarm(seed: u64) -> Faults {
    let mut faults = Faults::swarm(seed);
    faults.scrub = faults.rot;
    faults
}

/// Blocks that rot where they are read. A loss would take the writes that make the last of them whole, so in
/// `best_effort` nobody fails.
fn rotten(seed: u64) -> Faults {
    let durability = MODES[(seed / 2 % 4) as usize];
    let safe = durability != Durability::BestEffort;
    Faults {
        rot: true,
        rotten: true,
        scrub: matches!(seed % 5, 1 | 3),
        loss: seed % 6 / 5,
        slow: seed % 5 / 4 * 10,
        crash: safe && seed % 3 == 1,
        blink: safe && seed % 4 == 2,
        partition: safe && seed % 8 == 5,
        slow_link: seed % 7 == 3,
        short_wal: !seed.is_multiple_of(4),
        drift: seed % 5 == 2,
        impatient: seed % 9 == 8,
        busy: [8, 15, 25][(seed / 3 % 3) as usize],
        durability,
        replicas: [3, 3, 2, 4, 5][(seed / 4 % 5) as usize],
        min_in_sync: least(seed),
        ..Faults::none()
    }
}

/// Replicas that fall behind the WAL and get what changed, from one primary after another.
fn deltas(seed: u64) -> Faults {
    let durability = MODES[(seed / 2 % 4) as usize];
    let safe = durability == Durability::SyncAll;
    let disaster = seed % 9 == 7;
    // What makes damaged blocks whole in the end is a write, which a loss may take.
    let rot = safe && !disaster && seed % 4 == 1;
    Faults {
        cold: true,
        short_wal: true,
        rot,
        rotten: rot,
        resize: durability != Durability::BestEffort && !disaster && !rot && seed % 3 != 1,
        loss: seed % 4,
        repeat: seed % 5 * 2,
        slow: seed % 3 * 5,
        crash: seed % 3 != 1,
        power: !rot && seed.is_multiple_of(5),
        partition: seed % 3 == 1,
        blink: seed % 6 == 2,
        coup: !rot && seed % 7 == 4,
        whim: seed % 4 == 3,
        leader: seed % 8 == 6,
        disk: seed % 11 == 8,
        slow_link: seed % 10 == 9,
        disaster,
        busy: [12, 25, 40][(seed / 3 % 3) as usize],
        durability,
        replicas: [3, 3, 2, 4][(seed / 5 % 4) as usize],
        min_in_sync: least(seed),
        ..Faults::none()
    }
}

/// What several families have, with replicas that prove what they wrote. Where bits flip on such a disk is another
/// matter: see the tests of the store.
fn proving(seed: u64) -> Faults {
    const OF: [&str; 8] =
        ["everything", "deltas", "sizes", "disks", "handovers", "swarm", "ages", "recoveries"];
    let of = family(OF[(seed % 8) as usize]).expect("there is one");
    let faults = (of.faults)(seed / 8);
    let (rot, rotten, scrub, flip) = (false, false, false, false);
    Faults { proving: true, rot, rotten, scrub, flip, ..faults }
}

/// Log that is let go for its age, while replicas are away and while they are brought what they missed.
fn ages(seed: u64) -> Faults {
    Faults {
        ages: AGES[(seed % 3) as usize],
        cold: seed % 4 != 3,
        loss: seed / 2 % 4,
        repeat: seed % 5 * 2,
        slow: seed / 3 % 3 * 5,
        crash: seed % 4 != 1,
        power: seed % 5 == 2,
        partition: seed % 4 == 1,
        blink: seed % 6 == 2,
        whim: seed % 4 == 3,
        leader: seed % 8 == 6,
        disk: seed / 2 % 3 == 1,
        slow_link: seed % 10 > 6,
        drift: seed % 7 == 5,
        jump: seed % 7 == 6,
        resize: seed % 9 == 4,
        busy: [12, 25, 40][(seed / 3 % 3) as usize],
        durability: [Durability::SyncAll, Durability::SyncAll, Durability::SyncQuorum]
            [(seed / 2 % 3) as usize],
        replicas: [3, 3, 2, 4][(seed / 5 % 4) as usize],
        min_in_sync: 1 + (seed / 7 % 2) as u32 * u32::from(seed / 2 % 3 != 2),
        ..Faults::none()
    }
}

/// Disks that fail for good while their nodes go on.
fn failed_disks(seed: u64) -> Faults {
    Faults {
        disk_loss: true,
        loss: seed % 3,
        repeat: seed % 4 / 3 * 5,
        slow: seed % 7,
        crash: seed.is_multiple_of(2),
        power: seed.is_multiple_of(4),
        partition: seed.is_multiple_of(5),
        blink: seed % 6 == 1,
        leader: seed % 4 == 1,
        disk: seed % 8 == 7,
        short_wal: (seed / 2).is_multiple_of(2),
        hasty: seed % 3 != 1,
        handover: seed % 9 == 4,
        moves: seed % 7 == 3,
        lost: seed % 10 == 9,
        delete: seed % 6 == 3,
        durability: MODES[(seed / 2 % 4) as usize],
        replicas: [3, 2, 3, 4, 5][(seed / 3 % 5) as usize],
        min_in_sync: least(seed),
        spares: [0, 0, 1, 2][(seed / 5 % 4) as usize],
        ..Faults::none()
    }
}

/// Every family, the default first.
pub const FAMILIES: &[Family] = &[
    Family { name: "swarm", faults: swarm },
    Family { name: "small", faults: |seed| Faults { small: true, ..swarm(seed) } },
    Family { name: "quiet", faults: |_| Faults::none() },
    Family { name: "lossy", faults: |_| Faults { loss: 3, repeat: 5, slow: 10, ..Faults::none() } },
    Family {
        name: "crashes",
        faults: |seed| Faults {
            crash: true,
            power: true,
            blink: seed % 2 == 0,
            min_in_sync: 1 + (seed % 2) as u32,
            ..Faults::none()
        },
    },
    Family {
        name: "partitions",
        faults: |seed| Faults {
            partition: true,
            whim: true,
            hasty: true,
            drift: true,
            impatient: seed % 2 == 0,
            min_in_sync: 1 + (seed % 2) as u32,
            ..Faults::none()
        },
    },
    Family {
        name: "coups",
        faults: |seed| Faults {
            coup: true,
            drift: seed % 2 == 0,
            repeat: seed % 3,
            replicas: [3, 3, 2, 4][(seed / 4 % 4) as usize],
            min_in_sync: 1 + (seed / 2 % 2) as u32,
            ..Faults::none()
        },
    },
    Family {
        name: "plots",
        faults: |seed| Faults {
            plot: true,
            blink: seed % 4 == 1,
            drift: seed % 3 == 0,
            slow: seed % 2 * 15,
            min_in_sync: 1 + (seed / 2 % 2) as u32,
            ..Faults::none()
        },
    },
    Family {
        name: "echoes",
        faults: |seed| Faults {
            loss: seed % 3,
            repeat: 30,
            echo_ms: 3_000,
            slow: seed % 20,
            blink: true,
            short_wal: seed % 2 == 0,
            min_in_sync: 1 + (seed / 2 % 2) as u32,
            ..Faults::none()
        },
    },
    Family {
        name: "masters",
        faults: |seed| Faults {
            leader: true,
            quorum: seed % 3 == 0,
            loss: seed % 4,
            repeat: seed % 10,
            echo_ms: 3_000,
            crash: seed % 2 == 0,
            whim: true,
            hasty: true,
            min_in_sync: 1 + (seed / 4 % 2) as u32,
            ..Faults::none()
        },
    },
    Family {
        name: "disks",
        faults: |seed| Faults {
            crash: seed % 2 == 0,
            power: seed % 3 == 0,
            blink: seed % 5 == 0,
            disk: true,
            short_wal: seed / 2 % 2 == 0,
            min_in_sync: 1 + (seed / 4 % 2) as u32,
            ..Faults::none()
        },
    },
    Family {
        name: "disasters",
        faults: |seed| Faults {
            loss: seed % 3,
            repeat: seed % 2 * 2,
            slow: seed % 7,
            crash: seed % 2 == 0,
            power: seed % 4 == 0,
            partition: seed % 5 == 0,
            short_wal: seed % 3 == 0,
            impatient: seed % 4 == 1,
            disaster: true,
            replicas: [3, 2, 4][(seed / 2 % 3) as usize],
            min_in_sync: 1 + (seed / 3 % 2) as u32,
            ..Faults::none()
        },
    },
    Family {
        name: "recoveries",
        faults: |seed| Faults {
            loss: seed % 3,
            repeat: seed % 4 * 5,
            echo_ms: 300 + 1_000 * (seed % 3),
            slow: seed % 5 * 8,
            crash: seed % 3 != 0,
            power: seed % 4 == 0,
            partition: seed % 5 < 2,
            blink: seed % 4 == 1,
            leader: seed % 6 == 1,
            disk: seed % 8 == 3,
            short_wal: seed % 3 != 1,
            hasty: seed % 4 != 2,
            impatient: seed % 7 == 1,
            handover: seed % 9 == 4,
            exclusive: seed % 10 == 7,
            disaster: true,
            parting: seed % 2 == 0,
            lost: seed % 3 == 0,
            moves: seed % 9 == 0,
            spares: u128::from(seed % 3 == 0) * (1 + u128::from(seed / 3 % 2)),
            durability: MODES[(seed / 2 % 4) as usize],
            write_ack: match seed / 2 % 4 {
                2 => WriteAck::Written,
                _ => WriteAck::Durable,
            },
            replicas: [3, 2, 3, 5, 3, 4][(seed / 3 % 6) as usize],
            min_in_sync: least(seed),
            busy: 20,
            ..Faults::none()
        },
    },
    Family {
        name: "best-effort",
        faults: |seed| Faults {
            loss: seed % 4,
            repeat: seed % 3,
            slow: seed % 20,
            crash: true,
            power: seed % 2 == 0,
            disk: seed % 4 == 0,
            partition: seed % 3 != 0,
            coup: seed % 5 == 0,
            blink: seed % 7 == 0,
            short_wal: seed % 2 == 0,
            drift: seed % 3 == 0,
            impatient: seed % 4 == 0,
            disaster: seed % 6 == 5,
            durability: Durability::BestEffort,
            replicas: [3, 2, 4][(seed / 2 % 3) as usize],
            min_in_sync: 1,
            ..Faults::none()
        },
    },
    Family {
        name: "attachments",
        faults: |seed| Faults {
            exclusive: true,
            loss: seed % 3,
            repeat: seed % 2 * 2,
            slow: seed % 20,
            crash: seed % 2 == 0,
            power: seed % 4 == 0,
            partition: seed % 3 == 0,
            coup: seed % 3 == 1,
            blink: seed % 5 == 0,
            leader: seed % 7 == 0,
            short_wal: seed % 4 == 1,
            drift: seed % 4 == 3,
            impatient: seed % 6 == 5,
            disaster: seed % 11 == 7,
            busy: [12, 25][(seed / 5 % 2) as usize],
            durability: [
                Durability::SyncAll,
                Durability::SyncAll,
                Durability::SyncQuorum,
                Durability::BestEffort,
            ][(seed / 3 % 4) as usize],
            replicas: [3, 3, 2, 4][(seed / 2 % 4) as usize],
            min_in_sync: 1,
            ..Faults::none()
        },
    },
    Family {
        name: "written",
        faults: |seed| Faults {
            loss: seed % 4,
            repeat: seed % 3,
            slow: seed % 20,
            crash: true,
            power: seed % 4 != 3,
            disk: seed % 4 == 1,
            partition: seed % 3 != 0,
            whim: seed % 2 == 0,
            hasty: seed % 3 == 1,
            leader: seed % 5 == 1,
            coup: seed % 5 == 0,
            blink: seed % 7 == 0,
            short_wal: seed % 2 == 0,
            drift: seed % 3 == 0,
            impatient: seed % 4 == 0,
            write_ack: WriteAck::Written,
            replicas: [3, 2, 3, 4, 1][(seed / 3 % 5) as usize],
            min_in_sync: 1 + (seed / 2 % 2) as u32 * u32::from(seed / 3 % 5 != 4),
            ..Faults::none()
        },
    },
    Family {
        name: "blackouts",
        faults: |seed| Faults {
            crash: seed % 2 == 0,
            power: true,
            blackout: true,
            blink: seed % 3 == 1,
            leader: seed % 2 == 1,
            partition: seed % 8 > 5,
            hasty: seed % 8 == 7,
            loss: seed % 3,
            disk: seed % 4 == 2,
            coup: seed % 4 == 0,
            whim: seed % 5 == 1,
            busy: 20,
            write_ack: WriteAck::Written,
            replicas: [3, 2, 2, 4][(seed / 2 % 4) as usize],
            min_in_sync: 1 + (seed / 5 % 2) as u32,
            ..Faults::none()
        },
    },
    Family {
        name: "unsynced",
        faults: |seed| Faults {
            unsynced: true,
            power: true,
            loss: seed % 3,
            slow: seed % 4 * 5,
            crash: seed % 5 == 4,
            blackout: seed % 4 == 3,
            disk: seed % 7 == 5,
            drift: seed % 3 == 1,
            short_wal: seed % 6 == 2,
            busy: [12, 25][(seed / 2 % 2) as usize],
            write_ack: WriteAck::Written,
            replicas: [2, 3, 2, 4][(seed / 3 % 4) as usize],
            min_in_sync: 1,
            ..Faults::none()
        },
    },
    Family {
        name: "everything",
        faults: |seed| Faults {
            loss: seed % 4,
            repeat: seed % 3,
            echo_ms: 300 + 1_000 * (seed % 3),
            slow: seed % 20,
            crash: true,
            power: seed % 2 == 0,
            disk: seed % 4 < 2,
            partition: true,
            whim: true,
            hasty: seed % 2 == 0,
            leader: seed % 3 == 1,
            coup: seed % 5 == 0,
            plot: false,
            blink: seed % 7 == 0,
            short_wal: seed % 2 == 0,
            drift: seed % 3 == 0,
            impatient: seed % 4 == 0,
            replicas: [3, 3, 2, 4, 5][(seed / 6 % 5) as usize],
            min_in_sync: 1 + (seed / 3 % 2) as u32,
            ..Faults::none()
        },
    },
    Family {
        name: "quorum",
        faults: |seed| Faults {
            loss: seed % 4,
            repeat: seed % 3,
            echo_ms: 300 + 1_000 * (seed % 3),
            slow: seed % 20,
            crash: true,
            power: seed % 2 == 0,
            disk: seed % 4 < 2,
            partition: seed % 4 != 1,
            whim: seed % 4 != 1,
            hasty: seed % 2 == 0,
            leader: seed % 3 == 1,
            coup: seed % 5 == 0,
            blink: seed % 7 == 0,
            short_wal: seed % 2 == 0,
            drift: seed % 3 == 0,
            impatient: seed % 4 == 0,
            durability: Durability::SyncQuorum,
            replicas: [3, 5, 3, 4, 3, 5, 2][(seed % 7) as usize],
            ..Faults::none()
        },
    },
    Family {
        name: "moves",
        faults: |seed| Faults {
            loss: seed % 3,
            repeat: seed % 2 * 3,
            slow: seed % 11,
            crash: seed % 3 != 0,
            power: seed % 2 == 0,
            partition: seed % 4 == 1,
            leader: seed % 5 < 2,
            blink: seed % 7 == 0,
            disk: seed % 6 == 5,
            short_wal: seed % 2 == 0,
            hasty: seed % 3 == 1,
            moves: true,
            delete: seed % 4 == 2,
            durability: MODES[(seed / 2 % 4) as usize],
            replicas: [3, 2, 3, 5, 3, 2][(seed / 3 % 6) as usize],
            min_in_sync: least(seed),
            spares: [1, 2, 3, 0][(seed / 5 % 4) as usize],
            ..Faults::none()
        },
    },
    Family {
        name: "replacements",
        faults: |seed| Faults {
            loss: seed % 3,
            slow: seed % 7,
            crash: seed % 2 == 0,
            power: seed % 4 == 0,
            partition: seed % 5 == 0,
            leader: seed % 4 == 1,
            disk: seed % 8 == 7,
            short_wal: seed % 2 == 0,
            hasty: seed % 3 != 1,
            moves: seed % 3 == 0,
            lost: true,
            delete: seed % 4 == 3,
            durability: MODES[(seed / 2 % 4) as usize],
            replicas: [3, 2, 3, 4][(seed / 3 % 4) as usize],
            min_in_sync: least(seed),
            spares: 1 + u128::from(seed / 5 % 3),
            ..Faults::none()
        },
    },
    Family {
        name: "in-place",
        faults: |seed| Faults {
            loss: seed % 4,
            slow: seed % 20,
            crash: seed % 2 == 0,
            partition: seed % 3 == 0,
            slow_link: seed % 4 == 1,
            moves: true,
            busy: 25,
            durability: Durability::SyncQuorum,
            replicas: [4, 5, 4, 3][(seed / 2 % 4) as usize],
            ..Faults::none()
        },
    },
    Family {
        name: "ambushes",
        faults: |seed| Faults {
            loss: seed % 4,
            crash: true,
            power: seed % 3 == 0,
            blink: seed % 2 == 0,
            short_wal: true,
            slow: seed % 5,
            ambush: true,
            busy: 25,
            durability: [Durability::SyncQuorum, Durability::SyncAll][(seed / 3 % 2) as usize],
            min_in_sync: 1,
            replicas: [3, 5, 4][(seed / 2 % 3) as usize],
            ..Faults::none()
        },
    },
    Family {
        name: "elections",
        faults: |seed| Faults {
            coup: true,
            crash: seed % 3 == 0,
            disk: seed % 5 == 1,
            drift: seed % 2 == 0,
            repeat: seed % 3,
            durability: Durability::SyncQuorum,
            replicas: [3, 3, 5, 4][(seed / 4 % 4) as usize],
            ..Faults::none()
        },
    },
    Family { name: "handovers", faults: Faults::handovers },
    Family { name: "rotten", faults: rotten },
    Family { name: "failed-disks", faults: failed_disks },
    Family { name: "deltas", faults: deltas },
    Family { name: "ages", faults: ages },
    Family { name: "proving", faults: proving },
    Family {
        name: "sizes",
        faults: |seed| Faults {
            resize: true,
            loss: seed % 3,
            repeat: seed % 2 * 5,
            echo_ms: 300 + 1_000 * (seed % 3),
            slow: seed % 5 * 4,
            crash: seed % 3 != 2,
            power: seed % 4 == 0,
            partition: seed % 5 < 2,
            coup: seed % 7 == 3,
            whim: seed % 6 == 2,
            blink: seed % 4 == 1,
            leader: seed % 6 == 1,
            handover: seed % 5 == 4,
            impatient: seed % 8 == 5,
            disk: seed % 9 == 3,
            short_wal: seed % 2 == 0,
            hasty: seed % 4 == 2,
            moves: seed % 6 == 5,
            spares: u128::from(seed % 6 == 5),
            busy: [12, 25][(seed / 2 % 2) as usize],
            durability: [Durability::SyncAll, Durability::SyncAll, Durability::SyncQuorum]
                [(seed / 2 % 3) as usize],
            replicas: [3, 3, 2, 4][(seed / 3 % 4) as usize],
            min_in_sync: 1 + (seed / 5 % 2) as u32 * u32::from(seed / 2 % 3 != 2),
            ..Faults::none()
        },
    },
    Family {
        name: "space",
        faults: |seed| Faults {
            space: true,
            // Clients that trim what they wrote.
            resize: seed % 8 != 7,
            full: seed % 4 == 3,
            loss: seed % 3,
            repeat: seed % 2 * 15,
            echo_ms: 300 + 1_000 * (seed % 3),
            slow: seed % 5 * 4,
            crash: seed % 3 != 2,
            power: seed % 4 == 0,
            partition: seed % 5 < 2,
            whim: seed % 6 == 2,
            blink: seed % 4 == 1,
            leader: seed % 7 == 1,
            handover: seed % 5 == 4,
            impatient: seed % 8 == 5,
            short_wal: seed % 2 == 0,
            hasty: seed % 4 == 2,
            moves: seed % 6 == 5,
            spares: u128::from(seed % 6 == 5),
            busy: [12, 25][(seed / 2 % 2) as usize],
            durability: if seed % 8 == 7 {
                Durability::BestEffort
            } else {
                [Durability::SyncAll, Durability::SyncAll, Durability::SyncQuorum]
                    [(seed / 2 % 3) as usize]
            },
            replicas: [3, 3, 2, 4, 5][(seed / 3 % 5) as usize],
            min_in_sync: 1 + (seed / 5 % 2) as u32 * u32::from(seed / 2 % 3 != 2 && seed % 8 != 7),
            ..Faults::none()
        },
    },
    Family {
        name: "hangs",
        faults: |seed| Faults {
            hang: true,
            loss: seed % 3,
            slow: seed % 4 * 5,
            crash: seed % 4 == 3,
            leader: seed % 5 == 1,
            short_wal: seed % 2 == 0,
            busy: [12, 25][(seed / 2 % 2) as usize],
            replicas: [3, 2, 3, 4][(seed / 2 % 4) as usize],
            min_in_sync: 1 + (seed / 3 % 2) as u32,
            ..Faults::none()
        },
    },
    Family {
        name: "eights",
        faults: |seed| Faults {
            eight: true,
            busy: 40,
            drift: seed % 3 == 0,
            slow: seed % 4,
            durability: Durability::SyncQuorum,
            ..Faults::none()
        },
    },
    Family {
        name: "flips",
        faults: |seed| Faults {
            flip: true,
            loss: seed % 5 / 3,
            slow: seed % 7 / 5 * 10,
            crash: seed % 3 == 0,
            power: seed % 2 == 0,
            blink: seed % 4 == 1,
            disk: seed % 8 == 5,
            partition: seed % 6 == 4,
            leader: seed % 9 == 7,
            short_wal: seed / 2 % 2 == 0,
            durability: MODES[(seed / 2 % 4) as usize],
            replicas: [3, 3, 4, 5, 3][(seed / 3 % 5) as usize],
            // Of four voters none can be replaced in its place.
            spares: u128::from(seed / 3 % 5 == 2),
            min_in_sync: if MODES[(seed / 2 % 4) as usize] == Durability::SyncAll { 2 } else { 1 },
            ..Faults::none()
        },
    },
];
