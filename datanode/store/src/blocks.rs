//! Blocks in the image's two homes: read, written, made current, given back.

use std::io;
use std::ops::Range;

use sbk_engine::bugs::{Bug, on};
use sbk_engine::types::{BLOCK_SIZE, Lba, REGION_BLOCKS};
use sbk_wal::{Put, read_exact, write_all};

use super::error::{ReadError, RottenBlock, StoreError};
use super::homes::{Current, Held, Home, Homes, Stamps, runs};
use super::image::{HEADER, Image, bytes};
use super::read::Placed;

/// Most of a payload that is written with one call. [The kernel found the pages for 4 MiB at once so slowly
/// that they took 8 ms to place, and 3 ms in four parts.]
const PART_BLOCKS: usize = 256;
const PART: usize = PART_BLOCKS * BLOCK_SIZE as usize;

/// A block that does not match its stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadBlock {
    pub(super) block: u64,
    pub(super) home: Home,
    pub(super) found: u64,
    pub(super) expected: u64,
}

impl BadBlock {
    pub(super) fn rotten(&self) -> RottenBlock {
        let Self { block, home, found, expected } = *self;
        let (lba, offset, file) = (Lba(block), HEADER + bytes(block), home.file());
        RottenBlock { lba, file, offset, found, expected }
    }
}

impl Image {
    /// How `data` differs from what `expected` says, which is not 0.
    fn check(&self, block: u64, home: Home, data: &[u8], expected: u64) -> Option<BadBlock> {
        let found = self.stamper.of_data(block, data);
        (found != expected).then_some(BadBlock { block, home, found, expected })
    }

    /// The stamps of blocks, as they are now.
    pub(super) fn stamps(&self, range: &Range<u64>) -> io::Result<Vec<Stamps>> {
        let width = self.stamper.width() as usize;
        let mut content = vec![0; (range.end - range.start) as usize * 2 * width];
        read_exact(&*self.checksums.file, &mut content, self.stamps_at(range.start), true)?;
        let word = |at: &[u8]| {
            let mut word = [0; 8];
            word[..width].copy_from_slice(at);
            u64::from_le_bytes(word)
        };
        let both = |at: &[u8]| Stamps { extents: word(&at[..width]), shadow: word(&at[width..]) };
        Ok(content.chunks_exact(2 * width).map(both).collect())
    }

    /// Where the stamps of a block are.
    fn stamps_at(&self, block: u64) -> u64 {
        HEADER + block * 2 * self.stamper.width()
    }

    fn old_stamps(&self, range: &Range<u64>) -> Result<Vec<Stamps>, StoreError> {
        self.stamps(range).map_err(|e| self.error(self.checksums.name, "read", e))
    }

    pub(super) fn read_error(&self, name: &str) -> impl Fn(io::Error) -> ReadError {
        let path = self.describe(name);
        move |source| ReadError::Io { path: path.clone(), source }
    }

    /// The stamps of blocks, for a read.
    pub(super) fn look(&self, range: &Range<u64>) -> Result<Vec<Stamps>, ReadError> {
        self.compare(range)?;
        let mut stamps = self.stamps(range).map_err(self.read_error(self.checksums.name))?;
        self.correct(range.start, &mut stamps);
        Ok(stamps)
    }

    /// Writes stamps of single blocks. Not durable before [`Image::sync`].
    pub(super) fn restamp(&self, stamps: &[(u64, Stamps)]) -> Result<(), StoreError> {
        for (block, stamps) in stamps {
            let mut content = Put::default();
            self.put_stamps(stamps, &mut content);
            write_all(&*self.checksums.file, &[&content.0], self.stamps_at(*block))
                .map_err(|e| self.error(self.checksums.name, "write", e))?;
        }
        Ok(())
    }

    fn put_stamps(&self, stamps: &Stamps, out: &mut Put) {
        for home in Home::BOTH {
            out.bytes(&stamps.of(home).to_le_bytes()[..self.stamper.width() as usize]);
        }
    }

    fn read_run(&self, home: Home, run: &Range<u64>, out: &mut [u8]) -> Result<(), ReadError> {
        let file = &*self.home(home).file;
        read_exact(file, out, HEADER + bytes(run.start), true).map_err(self.read_error(home.file()))
    }

    /// Reads blocks from their current homes into `out`, each checked against its stamp. A block that
    /// does not match is named in the result; its bytes in `out` mean nothing.
    pub(super) fn read(
        &self,
        range: &Range<u64>,
        stamps: &[Stamps],
        out: &mut [u8],
    ) -> Result<Vec<BadBlock>, ReadError> {
        let mut bad = Vec::new();
        let place = |stamps: &Stamps| match stamps.current() {
            Current::Zeros => None,
            Current::In(home) => Some((home, false)),
            // It must not be read, whatever lies there.
            Current::Unclear => Some((stamps.vacant(), true)),
        };
        for (run, place) in runs(range.start, stamps.iter().map(place)) {
            let (from, to) = ((run.start - range.start) as usize, (run.end - range.start) as usize);
            let out = &mut out[bytes(from as u64) as usize..bytes(to as u64) as usize];
            let Some((home, unclear)) = place else {
                out.fill(0);
                continue;
            };
            self.read_run(home, &run, out)?;
            let data = out.chunks_exact(BLOCK_SIZE as usize).zip(&stamps[from..to]);
            bad.extend(run.zip(data).filter_map(|(block, (data, stamps))| {
                let expected = stamps.of(home);
                let found = || {
                    let found = self.stamper.of_data(block, data);
                    BadBlock { block, home, found, expected }
                };
                self.check(block, home, data, expected).or_else(|| unclear.then(found))
            }));
        }
        Ok(bad)
    }

    /// Reads blocks of an entry from where it has them, each checked. As [`Image::read`].
    pub(super) fn read_placed(
        &self,
        range: &Range<u64>,
        placed: &Placed,
        out: &mut [u8],
    ) -> Result<Vec<BadBlock>, ReadError> {
        let mut bad = Vec::new();
        let at = |block: u64| (block - range.start) as usize;
        let home = |i: usize| (placed.stamps[i] != 0).then(|| placed.home(i));
        for (run, home) in runs(range.start, (0..placed.stamps.len()).map(home)) {
            let out = &mut out[at(run.start) * BLOCK_SIZE as usize..]
                [..bytes(run.end - run.start) as usize];
            let Some(home) = home else {
                out.fill(0);
                continue;
            };
            self.read_run(home, &run, out)?;
            let data = run.clone().zip(out.chunks_exact(BLOCK_SIZE as usize));
            let check = |(b, data)| self.check(b, home, data, placed.stamps[at(b)]);
            bad.extend(data.filter_map(check));
        }
        Ok(bad)
    }

    fn write_blocks(&self, home: Home, first: u64, data: &[&[u8]]) -> Result<(), StoreError> {
        write_all(&*self.home(home).file, data, HEADER + bytes(first))
            .map_err(|e| self.error(home.file(), "write", e))
    }

    /// Gives back what lies in a home of these blocks.
    fn punch(&self, home: Home, range: &Range<u64>) -> Result<(), StoreError> {
        self.home(home)
            .file
            .punch(HEADER + bytes(range.start), bytes(range.end - range.start))
            .map_err(|e| self.error(home.file(), "punch", e))
    }

    /// Writes the stamps of blocks, and gives back the homes that are not theirs any more, but for those
    /// that are `held`. `all`: also such as were not theirs before.
    fn settle(
        &self,
        first: u64,
        old: &[Stamps],
        new: &[Stamps],
        held: &Held,
        all: bool,
    ) -> Result<(), StoreError> {
        let mut content = Put::default();
        for (old, new) in old.iter().zip(new) {
            let kept = |home: Home| {
                let forgets =
                    on(Bug::KeepOldStamp) && new.of(home) == 0 && new.of(home.other()) != 0;
                if forgets { old.of(home) } else { new.of(home) }
            };
            let kept = Stamps { extents: kept(Home::Extents), shadow: kept(Home::Shadow) };
            self.put_stamps(&kept, &mut content);
        }
        write_all(&*self.checksums.file, &[&content.0], self.stamps_at(first))
            .map_err(|e| self.error(self.checksums.name, "write", e))?;
        for home in Home::BOTH {
            let gone = (first..).zip(old.iter().zip(new)).map(|(block, (old, new))| {
                let was = all || old.of(home) != 0 || *new == Stamps::default();
                was && new.of(home) == 0 && held.at(block) != Some(home)
            });
            for (run, _) in runs(first, gone).into_iter().filter(|(_, gone)| *gone) {
                self.punch(home, &run)?;
            }
        }
        Ok(())
    }

    /// Writes consecutive blocks and their stamps: each to the home that it has, unless an entry holds
    /// that, and none that is zeros. Not durable before [`Image::sync`].
    pub(super) fn write(
        &self,
        first: u64,
        data: &[&[u8]],
        stamps: &[u64],
        held: &Held,
    ) -> Result<(), StoreError> {
        let old = self.old_stamps(&(first..first + stamps.len() as u64))?;
        let blocks: Vec<&[u8]> =
            data.iter().flat_map(|part| part.chunks_exact(BLOCK_SIZE as usize)).collect();
        let homes: Vec<Option<Home>> = (first..)
            .zip(old.iter().zip(stamps))
            .map(|(block, (old, stamp))| {
                let home = match (held.at(block), old.current()) {
                    (Some(held), _) if !on(Bug::WriteOverHeld) => held.other(),
                    (_, Current::In(home)) => home,
                    (_, Current::Zeros | Current::Unclear) => Home::Extents,
                };
                (*stamp != 0).then_some(home)
            })
            .collect();
        for (run, home) in runs(first, homes.iter().copied()) {
            let within = (run.start - first) as usize..(run.end - first) as usize;
            if let Some(home) = home {
                self.write_blocks(home, run.start, &blocks[within])?;
            }
        }
        let new: Vec<Stamps> =
            homes.iter().zip(stamps).map(|(home, stamp)| Stamps::new(*home, *stamp)).collect();
        self.settle(first, &old, &new, held, false)
    }

    /// Makes current what an entry has placed. Not durable before [`Image::sync`].
    pub(super) fn adopt(
        &self,
        range: &Range<u64>,
        placed: &Placed,
        held: &Held,
    ) -> Result<(), StoreError> {
        let old = self.old_stamps(range)?;
        let new: Vec<Stamps> = (placed.stamps.iter().enumerate())
            .map(|(at, stamp)| Stamps::new((*stamp != 0).then(|| placed.home(at)), *stamp))
            .collect();
        self.settle(range.start, &old, &new, held, true)
    }

    /// Makes blocks zeros; not durable before [`Image::sync`].
    pub(super) fn zero(&self, range: &Range<u64>, held: &Held) -> Result<(), StoreError> {
        let len = range.end - range.start;
        self.checksums
            .file
            .punch(self.stamps_at(range.start), len * 2 * self.stamper.width())
            .map_err(|e| self.error(self.checksums.name, "punch", e))?;
        for home in Home::BOTH {
            for free in held.free(range, home) {
                self.punch(home, &free)?;
            }
        }
        Ok(())
    }

    /// Writes the payload of an entry to homes that are not current, but for blocks of zeros. Nothing of
    /// what counts changes. Nobody else may write to these blocks meanwhile.
    pub(super) fn place(
        &self,
        first: u64,
        payload: &[u8],
        stamps: &[u64],
    ) -> Result<Homes, StoreError> {
        let old = self.old_stamps(&(first..first + stamps.len() as u64))?;
        let homes: Vec<Home> = old
            .iter()
            .map(|old| match old.current() {
                Current::In(home) if on(Bug::PlaceOverCurrent) => home,
                _ => old.vacant(),
            })
            .collect();
        let wanted = homes.iter().zip(stamps).map(|(home, stamp)| (*stamp != 0).then_some(*home));
        for (run, home) in runs(first, wanted) {
            let within = bytes(run.start - first) as usize..bytes(run.end - first) as usize;
            let Some(home) = home else { continue };
            for (first, part) in
                (run.start..).step_by(PART_BLOCKS).zip(payload[within].chunks(PART))
            {
                self.write_blocks(home, first, &[part])?;
            }
        }
        Ok(Homes::new(&homes))
    }

    /// Gives back whatever lies in homes of these blocks that are neither current nor held.
    pub(super) fn sweep(&self, range: &Range<u64>, held: &Held) -> Result<(), StoreError> {
        let mut at = range.start;
        while at < range.end {
            let part = at..range.end.min(at + REGION_BLOCKS);
            at = part.end;
            let stamps = self.old_stamps(&part)?;
            for home in Home::BOTH {
                let loose = part.clone().zip(&stamps).map(|(block, stamps)| {
                    let elsewhere = stamps.of(home) == 0 && stamps.current() != Current::Unclear;
                    elsewhere && held.at(block) != Some(home)
                });
                for (run, _) in runs(part.start, loose).into_iter().filter(|(_, loose)| *loose) {
                    let data = self.home(home).file.next_data(HEADER + bytes(run.start));
                    let data = data.map_err(|e| self.error(home.file(), "look into", e))?;
                    if data.is_some_and(|data| data.start < HEADER + bytes(run.end)) {
                        self.punch(home, &run)?;
                    }
                }
            }
        }
        Ok(())
    }
}
