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

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sbk_engine::bugs::{Bug, on};
use sbk_engine::types::{BLOCK_SIZE, Lsn, REGION_BLOCKS};
use sbk_wal::{Get, Put, Tag, is_zero, read_exact};

use super::error::{ReadError, StoreError};
use super::homes::{Current, Home, Stamps};
use super::image::{HEADER, Image};
use super::stamper::TAG;

/// Bytes of a sector, which is in one of two slots.
pub(super) const SECTOR: u64 = 512;
/// Regions that a sector tells of.
const REGIONS: u64 = 30;

/// What the superblock says of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Proven {
    /// It is made of the newest slots of this version or an older one. Each change of the table has the next.
    pub(super) version: u64,
    /// The exclusive-or of their tags.
    pub(super) root: Tag,
}

/// What is known of the stamps of one replica; empty, and not used, if it is not encrypted.
#[derive(Debug, Default)]
pub(super) struct Proofs(Mutex<State>);

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
pub(super) struct Change {
    version: u64,
    upto: Lsn,
    digests: Vec<(u64, u64)>,
    sectors: Vec<(u64, Slot, Vec<u8>)>,
    /// Stamps that are to be written because those on the disk are not right.
    pub(super) stamps: Vec<(u64, Stamps)>,
}

impl Change {
    /// Sectors, and where in the file they are to be written.
    pub(super) fn writes(&self) -> impl Iterator<Item = (u64, &[u8])> {
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
    pub(super) fn proven(&self) -> Option<Proven> {
        let proofs = self.proofs();
        self.stamper.has_key().then(|| Proven { version: proofs.version, root: proofs.root() })
    }

    /// The same once this has changed.
    pub(super) fn proven_with(&self, change: &Change) -> Proven {
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

    /// The table is to be made anew by a session.
    pub(super) fn forget_proofs(&self) {
        *self.proofs() = State { session: Some(BTreeMap::new()), ..State::default() };
    }

    /// A delta begins. What one before it has changed is changed still.
    pub(super) fn begin_session(&self) {
        self.proofs().session.get_or_insert_default();
    }

    /// Reads the table. Returns the LSN of each region, and that of the newest step in it, which may be one that was not
    /// finished; with `proven_only` it is as the superblock tells.
    pub(super) fn read_proofs(
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

    /// Compares the stamps of regions that are read for the first time.
    pub(super) fn compare(&self, range: &Range<u64>) -> Result<(), ReadError> {
        if !self.stamper.has_key() || range.is_empty() {
            return Ok(());
        }
        for region in range.start / REGION_BLOCKS..range.end.div_ceil(REGION_BLOCKS) {
            let digest = {
                let proofs = self.proofs();
                if proofs.checked.has(region) || proofs.in_session(region) {
                    continue;
                }
                proofs.digest(region)
            };
            // Whoever changes stamps has checked them before. So if nobody has by now, these are from before.
            let known = self.examine(region, digest).map_err(self.read_error("checksums"))?;
            let mut proofs = self.proofs();
            if !proofs.checked.has(region) && !proofs.in_session(region) {
                self.know(&mut proofs, region, known);
            }
        }
        Ok(())
    }

    /// Puts what is known better in place of stamps from `first` on.
    pub(super) fn correct(&self, first: u64, stamps: &mut [Stamps]) {
        if !self.stamper.has_key() {
            return;
        }
        let proofs = self.proofs();
        if proofs.known.is_empty() {
            return;
        }
        let mut at = first;
        let mut rest = stamps;
        while !rest.is_empty() {
            let region = at / REGION_BLOCKS;
            let count = (blocks_of(region).end - at).min(rest.len() as u64);
            let (now, behind) = rest.split_at_mut(count as usize);
            proofs.correct(region, now, at);
            (rest, at) = (behind, at + count);
        }
    }

    /// Compares the stamps of a region, which nobody changes meanwhile, with their digest.
    fn examine(&self, region: u64, digest: u64) -> std::io::Result<Option<Known>> {
        let stamps = self.stamps(&blocks_of(region))?;
        if self.digest_of(region, &values(&stamps)) == digest || on(Bug::TrustAnyStamp) {
            return Ok(None);
        }
        let in_homes = self.stamps_in_homes(region)?;
        // What lies in a home of a block of zeros is the log's, as a rule, unless its stamps became zeros; and where
        // both homes have something, one of them is.
        for zeros in [false, true] {
            for first in Home::BOTH {
                let right = made_anew(region, &stamps, &in_homes, first, zeros);
                let mut all = values(&stamps);
                for (block, right) in &right {
                    all[(block % REGION_BLOCKS) as usize] = value(right);
                }
                if self.digest_of(region, &all) == digest {
                    return Ok(Some(Known::Stamps(right)));
                }
            }
        }
        Ok(Some(Known::Nothing))
    }

    /// What was found out about a region that is not as it should be.
    fn know(&self, proofs: &mut State, region: u64, known: Option<Known>) {
        proofs.checked.set(region);
        let Some(known) = known else { return };
        let path = self.describe("checksums");
        let path = path.display();
        match &known {
            _ if proofs.session.is_some() => {
                // What a session that was broken has changed, it looks just so, and is brought again.
                tracing::debug!(%path, region, "stamps are not those of the table");
            }
            Known::Stamps(right) => {
                let blocks = right.len();
                tracing::warn!(%path, region, blocks, "stamps are not as they were written, but known");
            }
            Known::Nothing => tracing::error!(
                %path, region,
                "stamps are not those that were written last: all blocks of the region count as damaged"
            ),
        }
        proofs.known.insert(region, known);
    }

    /// The stamps of what lies in both homes of the blocks of a region.
    fn stamps_in_homes(&self, region: u64) -> std::io::Result<Vec<Stamps>> {
        let range = blocks_of(region);
        let mut out = vec![Stamps::default(); REGION_BLOCKS as usize];
        let mut data = vec![0; (REGION_BLOCKS * BLOCK_SIZE) as usize];
        for home in Home::BOTH {
            read_exact(&*self.home(home).file, &mut data, HEADER + range.start * BLOCK_SIZE, true)?;
            let blocks = range.clone().zip(data.chunks_exact(BLOCK_SIZE as usize));
            for ((block, data), out) in blocks.zip(&mut out) {
                let stamp = self.stamper.of_block(block, data);
                match home {
                    Home::Extents => out.extents = stamp,
                    Home::Shadow => out.shadow = stamp,
                }
            }
        }
        Ok(out)
    }

    /// What a step up to `upto` does to the table, which brings regions that `touched` names to these LSNs. It
    /// replaces stamps by `new`, which ascends.
    pub(super) fn plan_change(
        &self,
        upto: Lsn,
        table: &[Lsn],
        new: &[(Range<u64>, Values<'_>)],
    ) -> Result<Change, StoreError> {
        let version = self.proofs().version + 1;
        let mut change = Change { version, upto, ..Change::default() };
        let touched: BTreeSet<u64> =
            new.iter().flat_map(|(range, _)| super::regions_of(range)).collect();
        let mut at = 0;
        for region in touched {
            let range = blocks_of(region);
            while new[at].0.end <= range.start {
                at += 1;
            }
            let mut placed: Vec<Option<u64>> = vec![None; REGION_BLOCKS as usize];
            for (blocks, values) in &new[at..] {
                if blocks.start >= range.end {
                    break;
                }
                for block in blocks.start.max(range.start)..blocks.end.min(range.end) {
                    placed[(block - range.start) as usize] =
                        Some(values.at((block - blocks.start) as usize));
                }
            }
            self.change_region(region, &placed, &mut change)
                .map_err(|e| self.error("checksums", "read", e))?;
        }
        self.change_sectors(table, &mut change);
        Ok(change)
    }

    fn change_region(
        &self,
        region: u64,
        placed: &[Option<u64>],
        change: &mut Change,
    ) -> std::io::Result<()> {
        let (digest, ahead, known) = {
            let mut proofs = self.proofs();
            if proofs.in_session(region) {
                proofs.stepped(region);
                return Ok(());
            }
            if placed.iter().all(Option::is_some) {
                proofs.checked.set(region);
                if proofs.session.is_some() {
                    proofs.known.remove(&region);
                    proofs.stepped(region);
                    return Ok(());
                }
                let all: Vec<u64> = placed.iter().flatten().copied().collect();
                change.digests.push((region, self.digest_of(region, &all)));
                return Ok(());
            }
            let known = proofs.known.contains_key(&region).then_some(());
            (proofs.digest(region), proofs.is_ahead(region), known)
        };
        let with = |stamps: &[Stamps]| -> Vec<u64> {
            stamps.iter().zip(placed).map(|(old, new)| new.unwrap_or(value(old))).collect()
        };
        let mut stamps = self.stamps(&blocks_of(region))?;
        let found = match known {
            Some(_) => None,
            // A part of it may be as the step before the crash wrote it.
            None if ahead => match self.digest_of(region, &with(&stamps)) == digest {
                true => None,
                false => Some(Known::Nothing),
            },
            None => self.examine(region, digest)?,
        };
        let first = blocks_of(region).start;
        let mut proofs = self.proofs();
        if proofs.session.is_some() {
            // What the session brings makes it right, and may be at it by now. If it brings nothing, it is told then. What
            // was known of stamps before is not true of those that the step writes.
            if !proofs.in_session(region) {
                let found = known.or(found.map(|_| ())).map(|()| Known::Nothing);
                self.know(&mut proofs, region, found);
            }
            proofs.stepped(region);
            return Ok(());
        }
        self.know(&mut proofs, region, found);
        proofs.correct(region, &mut stamps, first);
        if proofs.known.contains_key(&region) {
            let right = (first..).zip(&stamps).zip(placed).filter(|(_, new)| new.is_none());
            change.stamps.extend(right.map(|((block, stamps), _)| (block, *stamps)));
        }
        change.digests.push((region, self.digest_of(region, &with(&stamps))));
        Ok(())
    }

    /// Makes the sectors of the regions whose digests change.
    fn change_sectors(&self, table: &[Lsn], change: &mut Change) {
        let mut at = 0;
        while at < change.digests.len() {
            let number = change.digests[at].0 / REGIONS;
            let mut digests = self.digests_of(number);
            while let Some((region, digest)) = change.digests.get(at)
                && region / REGIONS == number
            {
                digests[(region % REGIONS) as usize] = *digest;
                at += 1;
            }
            let (slot, bytes) = self.encode(number, (change.version, change.upto), table, &digests);
            change.sectors.push((number, slot, bytes));
        }
    }

    fn digests_of(&self, number: u64) -> Vec<u64> {
        let proofs = self.proofs();
        (number * REGIONS..(number + 1) * REGIONS).map(|region| proofs.digest(region)).collect()
    }

    /// The whole table at the end of a session, as of `upto`.
    pub(super) fn plan_table(&self, upto: Lsn, table: &[Lsn]) -> Result<Change, StoreError> {
        let version = self.proofs().version + 1;
        let mut change = Change { version, upto, ..Change::default() };
        let (session, sectors) = {
            let proofs = self.proofs();
            (proofs.session.clone().unwrap_or_default(), proofs.sectors.len() as u64)
        };
        for (region, changed) in session {
            let digest = match changed {
                Changed::Brought(Some(digest)) => digest,
                Changed::Brought(None) | Changed::Stepped => self.digest_on_disk(region)?,
            };
            // What was not proven when a step came to it, and was not brought, is not proven by that.
            let is_unknown = self.proofs().known.contains_key(&region);
            change.digests.push((region, if is_unknown { !digest } else { digest }));
        }
        let regions = change.digests.last().map_or(0, |(last, _)| last + 1).max(table.len() as u64);
        let mut new = change.digests.iter().copied().peekable();
        for number in 0..regions.div_ceil(REGIONS).max(sectors) {
            let mut digests = self.digests_of(number);
            while let Some((region, digest)) = new.next_if(|(r, _)| r / REGIONS == number) {
                digests[(region % REGIONS) as usize] = digest;
            }
            let (slot, bytes) = self.encode(number, (version, upto), table, &digests);
            change.sectors.push((number, slot, bytes));
        }
        Ok(change)
    }

    /// What was planned is on the disk, with all that it tells of, durably.
    pub(super) fn changed(&self, change: Change) {
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
    pub(super) fn end_session(&self) {
        let mut proofs = self.proofs();
        (proofs.session, proofs.brought) = (None, None);
    }

    fn digest_on_disk(&self, region: u64) -> Result<u64, StoreError> {
        let stamps = self.stamps(&blocks_of(region));
        let stamps = stamps.map_err(|e| self.error("checksums", "read", e))?;
        Ok(self.digest_of(region, &values(&stamps)))
    }

    /// A session is about to change stamps of these blocks, and brings all others of their regions as well. They come
    /// region by region, as a rule.
    pub(super) fn bring(&self, range: &Range<u64>) -> Result<(), StoreError> {
        if !self.stamper.has_key() {
            return Ok(());
        }
        for region in super::regions_of(range) {
            let before = {
                let mut proofs = self.proofs();
                proofs.known.remove(&region);
                let State { session: Some(session), brought, .. } = &mut *proofs else { continue };
                let changed = session.entry(region).or_insert(Changed::Brought(None));
                if *changed != Changed::Stepped {
                    *changed = Changed::Brought(None);
                }
                let before = brought.replace(region).filter(|before| *before != region);
                before.filter(|before| session.get(before) == Some(&Changed::Brought(None)))
            };
            let Some(before) = before else { continue };
            let digest = self.digest_on_disk(before)?;
            // A step that is at it by now has said so.
            let mut proofs = self.proofs();
            if let Some(Changed::Brought(made)) =
                proofs.session.as_mut().and_then(|session| session.get_mut(&before))
            {
                *made = Some(digest);
            }
        }
        Ok(())
    }
}

/// The stamps that blocks of a region would have whose own don't fit what lies in their homes: of what is in the home
/// `first`, or, if there are zeros, in the other. With `zeros` also of blocks that are zeros, if their stamps are right.
fn made_anew(
    region: u64,
    stamps: &[Stamps],
    in_homes: &[Stamps],
    first: Home,
    zeros: bool,
) -> BTreeMap<u64, Stamps> {
    let fits = |stamps: &Stamps, there: &Stamps| match stamps.current() {
        Current::Zeros => !zeros || *there == Stamps::default(),
        Current::In(home) => stamps.of(home) == there.of(home),
        Current::Unclear => false,
    };
    let all = blocks_of(region).zip(stamps.iter().zip(in_homes));
    all.filter(|(_, (stamps, there))| !fits(stamps, there))
        .map(|(block, (_, there))| {
            let home = if there.of(first) == 0 { first.other() } else { first };
            let stamp = there.of(home);
            (block, Stamps::new((stamp != 0).then_some(home), stamp))
        })
        .collect()
}

/// What the stamps of some blocks become.
#[derive(Clone, Copy, Debug)]
pub(super) enum Values<'a> {
    /// These.
    Stamps(&'a [u64]),
    /// Zeros, all of them.
    Zeros,
}

impl Values<'_> {
    fn at(&self, at: usize) -> u64 {
        match self {
            Values::Stamps(stamps) => stamps[at],
            Values::Zeros => 0,
        }
    }
}
