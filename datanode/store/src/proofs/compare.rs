//! Comparing the stamps of regions with their digests.

use std::collections::BTreeMap;
use std::ops::Range;

use sbk_engine::bugs::{Bug, on};
use sbk_engine::types::{BLOCK_SIZE, REGION_BLOCKS};
use sbk_wal::read_exact;

use super::{Known, State, blocks_of, value, values};
use crate::error::{ReadError, StoreError};
use crate::homes::{Current, Home, Stamps};
use crate::image::{HEADER, Image};

impl Image {
    /// Compares the stamps of regions that are read for the first time.
    pub(crate) fn compare(&self, range: &Range<u64>) -> Result<(), ReadError> {
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
    pub(crate) fn correct(&self, first: u64, stamps: &mut [Stamps]) {
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
    pub(super) fn examine(&self, region: u64, digest: u64) -> std::io::Result<Option<Known>> {
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
    pub(super) fn know(&self, proofs: &mut State, region: u64, known: Option<Known>) {
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

    pub(super) fn digest_on_disk(&self, region: u64) -> Result<u64, StoreError> {
        let stamps = self.stamps(&blocks_of(region));
        let stamps = stamps.map_err(|e| self.error("checksums", "read", e))?;
        Ok(self.digest_of(region, &values(&stamps)))
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
