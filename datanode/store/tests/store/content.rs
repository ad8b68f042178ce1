//! The entries that the tests log: functions of a seed, the epoch, the LSN and the log before it.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use sbk_engine::replication::log::{EntryHeader, EntryKind, LogState, Origin, RequestTag};
use sbk_engine::types::{AttachGeneration, Epoch, Lba, Lsn, REGION_BLOCKS, SessionId};
use sbk_store::entry::entry_crc;
use uuid::Uuid;

pub(crate) const BLOCK: usize = 4096;
const SECTOR: usize = 512;
/// The sizes that a volume takes, in blocks.
const SIZES: [u64; 4] = [200, 256, 300, 520];
/// The largest of them.
pub(crate) const MAX_BLOCKS: u64 = 520;
/// The size that a volume is created with.
pub(crate) const BLOCKS: u64 = 300;

/// Random numbers that a seed determines (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `below`, which is not 0.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.next() % below
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn mixed(parts: &[u64]) -> Random {
    let mut random = Random(0);
    for part in parts {
        random = Random(random.next() ^ part);
    }
    random.next();
    random
}

/// What a block holds, as a number: 0 is zeros; every other number is other bytes.
pub(crate) type Tag = u64;

/// The bytes of blocks. Each sector of a block is another one, so a torn block is none.
pub(crate) fn bytes_of(tags: &[Tag]) -> Bytes {
    let mut out = BytesMut::zeroed(tags.len() * BLOCK);
    for (tag, block) in tags.iter().zip(out.chunks_exact_mut(BLOCK)).filter(|(tag, _)| **tag != 0) {
        let mut word = *tag;
        for sector in block.chunks_exact_mut(SECTOR) {
            sector.copy_from_slice(&word.to_le_bytes().repeat(SECTOR / 8));
            word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        }
    }
    out.freeze()
}

/// What whole blocks hold, of which none is torn.
pub(crate) fn tags_of(data: &[u8]) -> Vec<Tag> {
    let tag = |block: &[u8]| Tag::from_le_bytes(block[..8].try_into().expect("eight bytes"));
    data.chunks_exact(BLOCK).map(tag).collect()
}

/// An entry, its payload as tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) header: EntryHeader,
    pub(crate) tags: Vec<Tag>,
}

impl Made {
    pub(crate) fn payload(&self) -> Bytes {
        bytes_of(&self.tags)
    }

    pub(crate) fn crc(&self) -> u32 {
        entry_crc(&self.header, &self.payload())
    }
}

/// The entry `lsn` of a log whose state before it is `before`.
pub(crate) fn make(seed: u64, epoch: u64, lsn: u64, before: &LogState) -> Made {
    let mut random = mixed(&[seed, epoch, lsn]);
    let (kind, session) = match random.below(24) {
        0 if before.sessions.len() < 3 => {
            let id = SessionId(Uuid::from_u128(u128::from(random.next()) << 64 | u128::from(lsn)));
            let generation = AttachGeneration(before.attach.0 + random.below(2));
            let exclusive = generation > before.attach && random.below(2) == 0;
            (EntryKind::Attach { generation, exclusive }, Some(id))
        }
        1 if before.sessions.len() > 1 => {
            let id = before.sessions.keys().next().copied().expect("there are two");
            (EntryKind::Close { session: id }, None)
        }
        2 => (EntryKind::Resize { blocks: SIZES[random.below(4) as usize] }, None),
        what => {
            let blocks = match random.below(40) {
                0 => 24,
                n => 1 + n % 5,
            };
            let lba = Lba(random.below(before.blocks - blocks));
            let blocks = blocks as u32;
            let kind = match what {
                3 | 4 => EntryKind::Trim { lba, blocks: blocks * 4 % 32 + 1 },
                5 => EntryKind::Zero { lba, blocks },
                _ => EntryKind::Write { lba, blocks },
            };
            let sessions: Vec<_> = before.sessions.keys().copied().collect();
            let session = (!sessions.is_empty())
                .then(|| sessions[random.below(sessions.len() as u64) as usize]);
            (clipped(kind, before.blocks), session)
        }
    };
    let origin = session.map(|session| {
        let known = before.sessions.get(&session).cloned().unwrap_or_default();
        let newest = known.logged.keys().next_back().copied().unwrap_or(known.low);
        let low = known.low.max(newest.saturating_sub(random.below(4)));
        Origin { tag: RequestTag { session, sequence: newest + 1 }, low }
    });
    let header = EntryHeader { epoch: Epoch(epoch), lsn: Lsn(lsn), kind, origin };
    let tags = match kind {
        EntryKind::Write { blocks, .. } => {
            // Some data is zeros although it was written.
            (0..blocks).map(|_| if random.one_in(12) { 0 } else { random.next() | 1 }).collect()
        }
        _ => Vec::new(),
    };
    Made { header, tags }
}

fn clipped(kind: EntryKind, size: u64) -> EntryKind {
    match kind {
        EntryKind::Trim { lba, blocks } => {
            EntryKind::Trim { lba, blocks: u64::from(blocks).min(size - lba.0) as u32 }
        }
        other => other,
    }
}

/// The image that the base lane of a rebuild brings, as of LSN `base`.
pub(crate) fn base_image(seed: u64, base: u64) -> Vec<Tag> {
    let mut random = mixed(&[seed, base, 7]);
    (0..MAX_BLOCKS)
        .map(|block| {
            let tag = random.next() | 1;
            if block >= BLOCKS || block % 7 < 3 { 0 } else { tag }
        })
        .collect()
}

/// The image that a delta makes of `held`, as of LSN `base`, and the regions that it brings: some, and
/// those where there is anything beyond the volume's end as of it.
pub(crate) fn delta_image(seed: u64, base: u64, held: &[Tag]) -> (Vec<Tag>, BTreeSet<u64>) {
    let (mut image, new) = (held.to_vec(), base_image(seed, base));
    let mut regions = BTreeSet::new();
    for region in 0..MAX_BLOCKS.div_ceil(REGION_BLOCKS) {
        let end = MAX_BLOCKS.min((region + 1) * REGION_BLOCKS);
        let blocks = (region * REGION_BLOCKS) as usize..end as usize;
        let beyond = blocks.clone().any(|block| block as u64 >= BLOCKS && held[block] != 0);
        if beyond || mixed(&[seed, base, region, 9]).one_in(2) {
            image[blocks.clone()].copy_from_slice(&new[blocks]);
            regions.insert(region);
        }
    }
    (image, regions)
}

/// Applies an entry to an image; `blocks` is the volume's size before it.
pub(crate) fn apply(image: &mut [Tag], entry: &Made, blocks: u64) {
    match entry.header.kind {
        EntryKind::Write { lba, .. } => {
            let start = lba.0 as usize;
            image[start..start + entry.tags.len()].copy_from_slice(&entry.tags);
        }
        EntryKind::Trim { lba, blocks } | EntryKind::Zero { lba, blocks } => {
            image[lba.0 as usize..lba.0 as usize + blocks as usize].fill(0);
        }
        EntryKind::Resize { blocks: new } if new < blocks => {
            image[new as usize..blocks as usize].fill(0);
        }
        EntryKind::Resize { .. } | EntryKind::Attach { .. } | EntryKind::Close { .. } => {}
    }
}
