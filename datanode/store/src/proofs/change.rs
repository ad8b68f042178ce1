//! What steps of the checkpoint and sessions do to the table.

use std::collections::BTreeSet;
use std::ops::Range;

use sbk_engine::types::{Lsn, REGION_BLOCKS};

use super::{Change, Changed, Known, REGIONS, State, blocks_of, value};
use crate::error::StoreError;
use crate::homes::Stamps;
use crate::image::Image;
use crate::regions_of;

impl Image {
    /// What a step up to `upto` does to the table, which brings regions that `touched` names to these LSNs. It
    /// replaces stamps by `new`, which ascends.
    pub(crate) fn plan_change(
        &self,
        upto: Lsn,
        table: &[Lsn],
        new: &[(Range<u64>, Values<'_>)],
    ) -> Result<Change, StoreError> {
        let version = self.proofs().version + 1;
        let mut change = Change { version, upto, ..Change::default() };
        let touched: BTreeSet<u64> = new.iter().flat_map(|(range, _)| regions_of(range)).collect();
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
    pub(crate) fn plan_table(&self, upto: Lsn, table: &[Lsn]) -> Result<Change, StoreError> {
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

    /// A session is about to change stamps of these blocks, and brings all others of their regions as well. They come
    /// region by region, as a rule.
    pub(crate) fn bring(&self, range: &Range<u64>) -> Result<(), StoreError> {
        if !self.stamper.has_key() {
            return Ok(());
        }
        for region in regions_of(range) {
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

/// What the stamps of some blocks become.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Values<'a> {
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
