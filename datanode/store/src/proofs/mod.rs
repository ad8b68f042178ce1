//! What proves that the stamps of an encrypted replica are the newest that it wrote.
//!
//! A stamp proves a block, and nothing on the disk is as easy to put back as both of them together. So the stamps of
//! each region come to a *digest*, digests and LSNs of regions stand in a table, each sector of which has a tag, and the
//! superblock has the exclusive-or of all the tags, the *root*. Who puts back blocks, stamps and sectors as they were
//! once has the superblock against him; who puts back that as well needs all of the log and of the image: the
//! replica as it was, which is not found here.
//!
//! ```text
//! superblock and logstate: version, root
//!   └─ sector of `regions`, in two slots: version, as of which LSN | LSN and digest of 30 regions | tag
//!        └─ digest of a region: tag over the stamps of its 256 blocks
//!             └─ stamp of a block: tag over its number and its bytes
//! ```
//!
//! # Steps
//! A step of the checkpoint up to LSN u compares what it does not replace of the stamps of each region that it touches
//! with their digest, so nothing that was put back gets a new digest. What the stamps will be is known before: the log has
//! them. So the sectors with the new digests, as of u, are written and synced first, each to the slot that does not
//! hold what the superblock proves; then blocks and stamps; then the log's state, with the new root; then the superblock.
//! An opening believes the one of both whose checkpoint is the later. [The log's state told of a step that the table did
//! not know, because that was put back together with the blocks, and so they were right.]
//!
//! 1. A crash before the superblock leaves all sectors that its root is made of, and newer ones as of u. Stamps may
//!    be old, new, or a mixture: their old digest can't be proven any more, but with those that the log has put in their place they
//!    come to the new one.
//! 2. So the opening does the step once more, exactly up to u, before anybody reads or another step begins: from then on
//!    there are no newer sectors than those that the superblock proves.
//! 3. A newer sector can't be one of long ago: each version is written once, but for one that a crash broke.
//!
//! # Stamps that are not proven
//! Each region is compared when it is read for the first time. If that fails, rot may have done it: stamps
//! are then made anew from what lies in the homes of the blocks whose own don't fit. If the digest is that of these, they
//! are right, whatever `checksums` says. Otherwise nothing is known of any block in the region: all of them count
//! as rotten, and another replica repairs them as it does with rot. The next step writes either down.
//!
//! # Sessions
//! A delta or rebuild changes regions in any order, and a crash in it leaves a replica that counts for nothing. So
//! the table stays as it is until the end, when the digests of what the session changed are made from what is there. A
//! session that follows a broken one is sent all of what that one changed.

mod change;
mod compare;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sbk_engine::bugs::{Bug, on};
use sbk_engine::types::{Lsn, REGION_BLOCKS};
use sbk_wal::{Get, Put, Tag, is_zero, read_exact};

use crate::error::StoreError;
use crate::homes::{Current, Stamps};
use crate::image::{HEADER, Image};
use crate::stamper::TAG;

pub(crate) use self::change::Values;

/// Bytes of a sector, which is in one of two slots.
pub(crate) const SECTOR: u64 = 512;
/// Regions that a sector tells of.
const REGIONS: u64 = 30;

/// What the superblock says of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Proven {
    /// It is made of the newest slots of this version or an older one. Each change of the table has the next.
    pub(crate) version: u64,
    /// The exclusive-or of their tags.
    pub(crate) root: Tag,
}

/// What is known of the stamps of one replica; empty, and not used, if it is not encrypted.
#[derive(Debug, Default)]
pub(crate) struct Proofs(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    version: u64,
    sectors: Vec<Sector>,
    /// By region.
    digests: Vec<u64>,
    /// The regions whose stamps were compared.
    checked: Bits,
    /// What is known of regions whose stamps on the disk are not right.
    known: BTreeMap<u64, Known>,
    /// While a session is under way: the regions that it changed. Their digests mean nothing.
    session: Option<BTreeMap<u64, Changed>>,
    /// The region that it brought last.
    brought: Option<u64>,
}

/// How a session changed a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changed {
    /// A step of the checkpoint may be at it at any time.
    Stepped,
    /// It brought blocks of it. With what its stamps come to, once that was made of them: at the end there would be too
    /// many to do.
    Brought(Option<u64>),
}

/// A sector of the table, and where its slots are.
#[derive(Clone, Copy, Debug, Default)]
struct Sector {
    /// The one that the superblock proves.
    proven: Option<Slot>,
    /// The newest.
    newest: Option<Slot>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    number: u64,
    version: u64,
    tag: Tag,
}

/// What is known of a region.
#[derive(Clone, Debug)]
enum Known {
    /// These stamps are right, and those on the disk are not.
    Stamps(BTreeMap<u64, Stamps>),
    /// Nothing.
    Nothing,
}

#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn has(&self, at: u64) -> bool {
        self.0.get((at / 64) as usize).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    fn set(&mut self, at: u64) {
        let word = (at / 64) as usize;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (at % 64);
    }
}

/// What a step does to the table.
#[derive(Debug, Default)]
pub(crate) struct Change {
    version: u64,
    upto: Lsn,
    digests: Vec<(u64, u64)>,
    sectors: Vec<(u64, Slot, Vec<u8>)>,
    /// Stamps that are to be written because those on the disk are not right.
    pub(crate) stamps: Vec<(u64, Stamps)>,
}

impl Change {
    /// Sectors, and where in the file they are to be written.
    pub(crate) fn writes(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.sectors.iter().map(|(n, slot, bytes)| (place(*n, slot.number), &bytes[..]))
    }
}

fn place(sector: u64, slot: u64) -> u64 {
    HEADER + (2 * sector + slot) * SECTOR
}

fn blocks_of(region: u64) -> Range<u64> {
    region * REGION_BLOCKS..(region + 1) * REGION_BLOCKS
}

/// What is stamped of a block, wherever it lies: a stamp fits what lies in no other place.
fn value(stamps: &Stamps) -> u64 {
    match stamps.current() {
        Current::Zeros => 0,
        Current::In(home) => stamps.of(home),
        Current::Unclear => 1,
    }
}

fn values(stamps: &[Stamps]) -> Vec<u64> {
    stamps.iter().map(value).collect()
}

impl State {
    fn digest(&self, region: u64) -> u64 {
        self.digests.get(region as usize).copied().unwrap_or(0)
    }

    fn in_session(&self, region: u64) -> bool {
        self.session.as_ref().is_some_and(|session| session.contains_key(&region))
    }

    fn stepped(&mut self, region: u64) {
        if let Some(session) = &mut self.session {
            session.insert(region, Changed::Stepped);
        }
    }

    /// Whether the region's digest is one that the step that a crash broke has made.
    fn is_ahead(&self, region: u64) -> bool {
        let sector = self.sectors.get((region / REGIONS) as usize);
        sector.and_then(|sector| sector.newest).is_some_and(|slot| slot.version > self.version)
    }

    fn root(&self) -> Tag {
        let mut root = Tag::default();
        for slot in self.sectors.iter().filter_map(|sector| sector.proven) {
            root.iter_mut().zip(slot.tag).for_each(|(root, tag)| *root ^= tag);
        }
        root
    }

    /// What is known better than it stands on the disk.
    fn correct(&self, region: u64, stamps: &mut [Stamps], first: u64) {
        match self.known.get(&region) {
            None => {}
            Some(Known::Nothing) => stamps.fill(Stamps::UNKNOWN),
            Some(Known::Stamps(right)) => {
                for (block, right) in right.range(first..first + stamps.len() as u64) {
                    stamps[(block - first) as usize] = *right;
                }
            }
        }
    }
}

/// A slot of a sector.
struct Content {
    slot: Slot,
    as_of: Lsn,
    lsns: Vec<Lsn>,
    digests: Vec<u64>,
}

impl Image {
    fn proofs(&self) -> MutexGuard<'_, State> {
        self.proofs.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn digest_of(&self, region: u64, values: &[u64]) -> u64 {
        self.stamper.of_region(region, values)
    }

    /// What the superblock is to say of the table; `None` if the replica is not encrypted.
    pub(crate) fn proven(&self) -> Option<Proven> {
        let proofs = self.proofs();
        self.stamper.has_key().then(|| Proven { version: proofs.version, root: proofs.root() })
    }

    /// The same once this has changed.
    pub(crate) fn proven_with(&self, change: &Change) -> Proven {
        let proofs = self.proofs();
        let mut root = proofs.root();
        for (number, slot, _) in &change.sectors {
            let before = proofs.sectors.get(*number as usize).and_then(|sector| sector.proven);
            let before = before.map_or(Tag::default(), |before| before.tag);
            for (at, byte) in root.iter_mut().enumerate() {
                *byte ^= before[at] ^ slot.tag[at];
            }
        }
        let version = if proofs.session.is_some() { proofs.version } else { change.version };
        Proven { version, root }
    }

    /// The table is to be made anew by a session. Its versions go on: one that was there before is none of those to
    /// come. [They began anew, and a sector from before a rebuild was taken for a newer one than those behind it.]
    pub(crate) fn forget_proofs(&self) {
        let mut proofs = self.proofs();
        let version = proofs.version;
        *proofs = State { version, session: Some(BTreeMap::new()), ..State::default() };
    }

    /// There is no table, for a rebuild was not finished.
    pub(crate) fn without_table(&self, proven: Proven) {
        self.proofs().version = proven.version;
    }

    /// A delta begins. What one before it has changed is changed still.
    pub(crate) fn begin_session(&self) {
        self.proofs().session.get_or_insert_default();
    }

    /// Reads the table. Returns the LSN of each region, and that of the newest step in it, which may be one that was not
    /// finished; with `proven_only` it is as the superblock tells.
    pub(crate) fn read_proofs(
        &self,
        proven: Proven,
        proven_only: bool,
    ) -> Result<(Vec<Lsn>, Lsn), StoreError> {
        let (name, file) = self.table();
        let error = |e| self.error(name, "read", e);
        let len = file.len().map_err(error)?.saturating_sub(HEADER);
        let mut content = vec![0; len as usize];
        read_exact(file, &mut content, HEADER, true).map_err(error)?;
        let mut state = State { version: proven.version, ..State::default() };
        let mut regions = Vec::new();
        let mut upto = Lsn(0);
        for (number, both) in (0..).zip(content.chunks(2 * SECTOR as usize)) {
            let mut found = Vec::with_capacity(2);
            for (slot, bytes) in (0..).zip(both.chunks_exact(SECTOR as usize)) {
                if is_zero(bytes) {
                    continue;
                }
                let content = self.decode(number, slot, bytes).ok_or_else(|| {
                    let at = place(number, slot);
                    let what = format!("the sector at byte {at} does not match its tag");
                    StoreError::Damaged { path: self.describe(name), what }
                })?;
                if content.slot.version > proven.version + 1 {
                    // Not even a change that a crash broke.
                    let (version, expected) = (content.slot.version, proven.version);
                    let at = place(number, slot);
                    let what = format!(
                        "the sector at byte {at} is of version {version}, behind {expected}"
                    );
                    return Err(StoreError::Damaged { path: self.describe(name), what });
                }
                found.push(content);
            }
            found.sort_by_key(|content| content.slot.version);
            let is_proven = |content: &&Content| content.slot.version <= proven.version;
            let of_superblock = found.iter().rfind(is_proven);
            let newest = if proven_only { of_superblock } else { found.last() };
            state.sectors.push(Sector {
                proven: of_superblock.map(|content| content.slot),
                newest: newest.map(|content| content.slot),
            });
            if let Some(newest) = newest {
                upto = upto.max(newest.as_of);
                state.digests.resize((number * REGIONS) as usize, 0);
                state.digests.extend(&newest.digests);
                regions.resize((number * REGIONS) as usize, Lsn(0));
                regions.extend(&newest.lsns);
            }
        }
        if state.root() != proven.root && !on(Bug::TrustAnyTable) {
            let version = proven.version;
            let what = format!(
                "header and tags are right, but it is not version {version} of the table that the superblock tells of: it \
                 was put back as it was before, or the superblock was"
            );
            return Err(StoreError::Damaged { path: self.describe(name), what });
        }
        *self.proofs() = state;
        Ok((regions, upto))
    }

    fn decode(&self, number: u64, slot: u64, bytes: &[u8]) -> Option<Content> {
        let (record, tag) = bytes.split_last_chunk::<TAG>()?;
        if self.stamper.of_sector(number, record)? != *tag {
            return None;
        }
        let mut get = Get(record);
        let (version, as_of) = (get.u64()?, Lsn(get.u64()?));
        let (mut lsns, mut digests) = (Vec::new(), Vec::new());
        for _ in 0..REGIONS {
            lsns.push(Lsn(get.u64()?));
            digests.push(get.u64()?);
        }
        Some(Content { slot: Slot { number: slot, version, tag: *tag }, as_of, lsns, digests })
    }

    /// A sector with what `change` says of its regions, for the slot that is not proven.
    fn encode(
        &self,
        number: u64,
        (version, upto): (u64, Lsn),
        table: &[Lsn],
        digests: &[u64],
    ) -> (Slot, Vec<u8>) {
        let mut out = Put(Vec::with_capacity(SECTOR as usize));
        out.u64(version).u64(upto.0);
        for at in 0..REGIONS {
            let region = (number * REGIONS + at) as usize;
            out.u64(table.get(region).map_or(0, |lsn| lsn.0)).u64(digests[at as usize]);
        }
        let tag = self.stamper.of_sector(number, &out.0).expect("there is a key");
        out.bytes(&tag);
        let proofs = self.proofs();
        let proven = proofs.sectors.get(number as usize).and_then(|sector| sector.proven);
        let number = proven.map_or(0, |slot| 1 - slot.number);
        (Slot { number, version, tag }, out.0)
    }

    /// What was planned is on the disk, with all that it tells of, durably.
    pub(crate) fn changed(&self, change: Change) {
        let mut proofs = self.proofs();
        let in_session = proofs.session.is_some() && change.sectors.is_empty();
        for (region, digest) in change.digests {
            if proofs.session.is_none() {
                proofs.known.remove(&region);
            }
            let at = region as usize;
            if proofs.digests.len() <= at {
                proofs.digests.resize(at + 1, 0);
            }
            proofs.digests[at] = digest;
        }
        for (number, slot, _) in change.sectors {
            let at = number as usize;
            if proofs.sectors.len() <= at {
                proofs.sectors.resize(at + 1, Sector::default());
            }
            proofs.sectors[at] = Sector { proven: Some(slot), newest: Some(slot) };
        }
        if !in_session {
            proofs.version = change.version;
        }
    }

    /// The session is over, and the table is that of what it brought.
    pub(crate) fn end_session(&self) {
        let mut proofs = self.proofs();
        (proofs.session, proofs.brought) = (None, None);
    }
}
