//! What must be there after a crash.

use std::fmt;
use std::sync::Arc;

use sbk_engine::replication::io::Opened;
use sbk_engine::replication::log::{BlockRange, LogState};
use sbk_engine::types::{Epoch, Lba, LossGeneration, Lsn, REGION_BLOCKS};
use sbk_store::Store;
use sbk_wal::{Storage, crc32c};

use super::content::{
    BLOCK, BLOCKS, MAX_BLOCKS, Made, Tag, apply, base_image, bytes_of, delta_image, make,
};
use super::driver;
use super::events::Event;

/// A volume as of an LSN.
#[derive(Clone)]
struct Volume {
    lsn: u64,
    image: Vec<Tag>,
    state: LogState,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "as of {}: {:?}", self.lsn, self.state)
    }
}

impl Volume {
    fn apply(&mut self, entry: &Made) {
        apply(&mut self.image, entry, self.state.blocks);
        self.state.apply(&entry.header);
        self.lsn = entry.header.lsn.0;
    }
}

/// What a driver was about to do when it was last heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Promise { epoch: u64 },
    Cut { end: u64, epoch: u64 },
    Wipe { base: u64, epoch: u64 },
    Delta { base: u64, epoch: u64, from: u64 },
    Finish,
}

/// See the module's documentation. `Err` of its methods says what is wrong with the store.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    seed: u64,
    /// Which replica of the volume.
    pub(crate) n: u64,
    /// The create was confirmed. Until then it is repeated.
    pub(crate) created: bool,
    /// The volume as of an LSN that nothing can take back.
    floor: Volume,
    /// The entries behind it, durable or not.
    entries: Vec<Made>,
    /// The log's state behind the last of them.
    tip: LogState,
    /// The store said that this was durable.
    pub(crate) durable: u64,
    /// The highest LSN that the store was told to be committed.
    committed: u64,
    /// What the last opening found to be committed, which it made durable.
    known_committed: u64,
    checkpoint: u64,
    fenced: u64,
    /// A rebuild was begun and is not finished.
    incomplete: bool,
    doing: Option<Doing>,
}

impl Model {
    /// A replica that was just made.
    pub(crate) fn new(seed: u64, n: u64) -> Self {
        let image = vec![0; MAX_BLOCKS as usize];
        Self {
            seed,
            n,
            created: false,
            floor: Volume { lsn: 0, image, state: LogState::new(BLOCKS) },
            entries: Vec::new(),
            tip: LogState::new(BLOCKS),
            durable: 0,
            committed: 0,
            known_committed: 0,
            checkpoint: 0,
            fenced: 0,
            incomplete: false,
            doing: None,
        }
    }

    fn end(&self) -> u64 {
        self.floor.lsn + self.entries.len() as u64
    }

    /// The volume as of `lsn`.
    fn at(&self, lsn: u64) -> Volume {
        let mut volume = self.floor.clone();
        let count = lsn.checked_sub(volume.lsn).expect("not below the floor") as usize;
        self.entries[..count].iter().for_each(|entry| volume.apply(entry));
        volume
    }

    /// The blocks as of `lsn`.
    pub(crate) fn image(&self, lsn: Lsn) -> Vec<Tag> {
        self.at(lsn.0).image
    }

    fn truncate(&mut self, end: u64) {
        self.tip = self.at(end).state;
        self.entries.truncate((end - self.floor.lsn) as usize);
    }

    /// Takes what the driver says.
    pub(crate) fn hear(&mut self, event: Event) {
        match event {
            Event::Appended { lsn, epoch } => {
                assert_eq!(lsn, self.end() + 1, "the driver appends in order");
                let made = make(self.seed, epoch, lsn, &self.tip);
                self.tip.apply(&made.header);
                self.entries.push(made);
            }
            Event::Durable { lsn } => self.durable = lsn,
            Event::Committed { lsn } => self.committed = self.committed.max(lsn),
            Event::Checkpointed { checkpoint } => self.checkpoint = checkpoint,
            Event::PersistBegins { epoch } => self.doing = Some(Doing::Promise { epoch }),
            Event::CutBegins { end, epoch } => self.doing = Some(Doing::Cut { end, epoch }),
            Event::WipeBegins { base, epoch } => self.doing = Some(Doing::Wipe { base, epoch }),
            Event::DeltaBegins { base, epoch, from } => {
                self.doing = Some(Doing::Delta { base, epoch, from });
            }
            Event::FinishBegins => self.doing = Some(Doing::Finish),
            Event::Persisted { .. } | Event::Cut { .. } | Event::Wiped { .. } | Event::Finished => {
                let doing = self.doing.take().expect("it said that it begins");
                self.did(doing);
            }
            Event::Opened { end } => {
                assert!(self.incomplete || end == self.end(), "it was checked before");
            }
            Event::Created { .. } => self.created = true,
            // What was not in a batch went with the run.
            Event::Closed if !self.incomplete => self.truncate(self.durable),
            Event::CreateBegins { .. }
            | Event::OpenBegins
            | Event::BatchBegins
            | Event::CheckpointBegins
            | Event::RecycleBegins
            | Event::Recycled
            | Event::CloseBegins
            | Event::Closed
            | Event::RemoveBegins
            | Event::Removed => {}
        }
    }

    fn did(&mut self, doing: Doing) {
        match doing {
            Doing::Promise { epoch } => self.fenced = epoch,
            Doing::Cut { end, epoch } => {
                self.truncate(end.min(self.end()));
                self.durable = self.durable.min(end);
                self.committed = self.committed.min(end);
                self.fenced = epoch;
            }
            Doing::Wipe { .. } | Doing::Delta { .. } => {
                let (base, epoch, image) = match doing {
                    Doing::Delta { base, epoch, from } => {
                        let held = self.at(from).image;
                        (base, epoch, delta_image(self.seed, base, &held).0)
                    }
                    Doing::Wipe { base, epoch } => (base, epoch, base_image(self.seed, base)),
                    Doing::Promise { .. } | Doing::Cut { .. } | Doing::Finish => unreachable!(),
                };
                self.floor = Volume { lsn: base, image, state: LogState::new(BLOCKS) };
                self.entries.clear();
                self.tip = LogState::new(BLOCKS);
                self.durable = base;
                self.committed = base;
                self.known_committed = base;
                self.checkpoint = base;
                self.fenced = epoch;
                self.incomplete = true;
            }
            Doing::Finish => self.incomplete = false,
        }
    }

    /// Settles what was under way by what an opening found of it.
    fn settle(&mut self, opened: &Opened) {
        let Some(doing) = self.doing.take() else { return };
        let done = match doing {
            Doing::Promise { epoch } => opened.kept.fenced.0 == epoch,
            // A cut counts from its first superblock on, which does not promise the epoch yet.
            Doing::Cut { end, epoch } => {
                if opened.durable.0 <= end {
                    let promised = opened.kept.fenced.0 == epoch;
                    let epoch = if promised { epoch } else { self.fenced };
                    self.did(Doing::Cut { end, epoch });
                }
                return;
            }
            Doing::Wipe { epoch, .. } | Doing::Delta { epoch, .. } => {
                opened.kept.incomplete.is_some_and(|mark| mark.session.epoch.0 == epoch)
            }
            Doing::Finish => opened.kept.incomplete.is_none(),
        };
        if done {
            self.did(doing);
        }
    }

    /// Opens the store and checks it; what it lost without having promised it is forgotten.
    pub(crate) fn check(&mut self, storage: &Arc<dyn Storage>) -> Result<(Store, Opened), String> {
        let (store, opened) =
            driver::open(storage, self.n).map_err(|error| format!("not opened: {error}"))?;
        self.settle(&opened);
        self.check_opened(&opened)?;
        if !self.incomplete {
            self.check_content(&store, &opened)?;
        }
        Ok((store, opened))
    }

    /// The same, and once more: an opening changes nothing that the next one finds.
    pub(crate) fn check_twice(&mut self, storage: &Arc<dyn Storage>) -> Result<Opened, String> {
        let (store, opened) = self.check(storage)?;
        drop(store);
        let (_, again) =
            driver::open(storage, self.n).map_err(|error| format!("not opened again: {error}"))?;
        if again != opened {
            return Err(format!("opened again it is {again:?}\nbefore it was {opened:?}"));
        }
        Ok(opened)
    }

    fn check_opened(&mut self, opened: &Opened) -> Result<(), String> {
        let told = |what: &str| Err(format!("{what}: {opened:?}\nthe model: {self:?}"));
        let kept = &opened.kept;
        if kept.fenced != Epoch(self.fenced) || kept.loss_generation != LossGeneration(1) {
            return told("another promise");
        }
        if kept.incomplete.is_some() != self.incomplete {
            return told("the mark of a rebuild");
        }
        if self.incomplete {
            return Ok(());
        }
        let (durable, committed) = (opened.durable.0, opened.committed.0);
        if durable < self.durable || durable > self.end() {
            return told("the log's end");
        }
        if committed > self.committed || committed < self.known_committed || committed > durable {
            return told("the committed LSN");
        }
        let checkpoint = opened.checkpoint.0;
        if checkpoint < self.checkpoint || checkpoint > committed {
            return told("the checkpoint");
        }
        if opened.retained.0 > checkpoint + 1 {
            return told("what the WAL retains");
        }
        if opened.state != self.at(committed).state {
            return told("the log's state");
        }
        let count = |lsn: u64| (lsn - self.floor.lsn) as usize;
        let headers: Vec<_> =
            self.entries[count(committed)..count(durable)].iter().map(|e| e.header).collect();
        if opened.uncommitted != headers {
            return told("the uncommitted entries");
        }
        for entry in &self.entries[..count(durable)] {
            if kept.table.epoch_at(entry.header.lsn) != Some(entry.header.epoch) {
                return told("the epoch table");
            }
        }
        self.truncate(durable);
        self.durable = durable;
        self.committed = committed;
        self.known_committed = committed;
        self.checkpoint = checkpoint;
        Ok(())
    }

    /// Compares all that a store says of its volume and its log.
    pub(crate) fn check_content(&mut self, store: &Store, opened: &Opened) -> Result<(), String> {
        let (newest, committed) = (self.at(opened.durable.0), self.at(opened.committed.0));
        if store.blocks() != newest.state.blocks {
            return Err(format!("{} blocks, not {}", store.blocks(), newest.state.blocks));
        }
        let mut first = 0;
        while first < MAX_BLOCKS {
            let blocks = 65.min(MAX_BLOCKS - first);
            let range = BlockRange { lba: Lba(first), blocks: blocks as u32 };
            let data = store.plan_read(range).run().map_err(|e| format!("not read: {e}"))?;
            same(first, &data, &newest.image)?;
            let read = store.plan_read_committed(range).run();
            let (data, upto) = read.map_err(|e| format!("not read as committed: {e}"))?;
            same(first, &data, &committed.image).map_err(|e| format!("as committed: {e}"))?;
            if upto != opened.committed {
                return Err(format!("read as of {upto}, not {}", opened.committed));
            }
            first += blocks;
        }
        self.check_holes(store, &newest.image)?;
        self.check_zeros(store, &newest.image)?;
        self.check_log(store, opened)?;
        self.check_regions(store, opened)?;
        self.raise_floor(opened.committed.0);
        Ok(())
    }

    /// Every hole is of zeros, also where a stamp is damaged: a client that copies skips it.
    fn check_holes(&self, store: &Store, image: &[Tag]) -> Result<(), String> {
        let all = BlockRange { lba: Lba(0), blocks: MAX_BLOCKS as u32 };
        let runs =
            store.plan_allocation(all).run(usize::MAX).map_err(|e| format!("no runs: {e}"))?;
        let mut at = 0;
        let mut data = None;
        for run in runs {
            let end = at + run.blocks as usize;
            if !run.hole {
                data.get_or_insert(Lba(at as u64));
            }
            if let Some(block) = (at..end).find(|block| run.hole && image[*block] != 0) {
                return Err(format!("block {block} is called a hole"));
            }
            at = end;
        }
        if at as u64 != MAX_BLOCKS {
            return Err(format!("the runs cover {at} blocks"));
        }
        // A volume shrinks to where this finds nothing.
        let find = |first| store.plan_find_data(Lba(first), MAX_BLOCKS).run();
        let found = find(0).map_err(|e| format!("no data sought: {e}"))?;
        if found != data {
            return Err(format!("data is found at {found:?}, not {data:?}"));
        }
        let last = image.iter().rposition(|tag| *tag != 0).map_or(0, |last| last as u64);
        for first in [last.saturating_sub(1), last, last + 1] {
            let found = find(first).map_err(|e| format!("no data sought: {e}"))?;
            let expected = (first as usize..image.len()).find(|block| image[*block] != 0);
            if expected.is_some_and(|block| found.is_none_or(|found| found.0 > block as u64)) {
                return Err(format!("data is found at {found:?}, not {expected:?}"));
            }
        }
        Ok(())
    }

    /// On a sound disk all zeros are holes, before their checkpoint as after it: what a write takes of a disk is told
    /// by that, and must not change with a checkpoint.
    fn check_zeros(&self, store: &Store, image: &[Tag]) -> Result<(), String> {
        let all = BlockRange { lba: Lba(0), blocks: MAX_BLOCKS as u32 };
        let runs =
            store.plan_allocation(all).run(usize::MAX).map_err(|e| format!("no runs: {e}"))?;
        let data = runs.iter().flat_map(|run| std::iter::repeat_n(!run.hole, run.blocks as usize));
        match data.zip(image).position(|(data, tag)| data && *tag == 0) {
            Some(block) => Err(format!("block {block} is zeros, and no hole")),
            None => Ok(()),
        }
    }

    /// Reads everything of a store whose files may be damaged. Returns what it refused to give and
    /// why; what it gave must be right.
    pub(crate) fn survey(&self, store: &Store, opened: &Opened) -> Result<Vec<String>, String> {
        let mut refused = Vec::new();
        let newest = self.at(opened.durable.0);
        for first in 0..MAX_BLOCKS {
            let range = BlockRange { lba: Lba(first), blocks: 1 };
            match store.plan_read(range).run() {
                Ok(data) => same(first, &data, &newest.image)?,
                Err(error) => refused.push(error.to_string()),
            }
        }
        self.check_holes(store, &newest.image)?;
        let first = opened.retained.0.max(self.floor.lsn + 1);
        for lsn in first..=opened.durable.0 {
            let made = &self.entries[(lsn - self.floor.lsn - 1) as usize];
            let read = store.read_log(Lsn(lsn), Lsn(lsn)).and_then(|mut plan| plan.next(1, 1));
            match read {
                Ok(read) => {
                    let right = read.len() == 1
                        && read[0].header == made.header
                        && read[0].payload == made.payload();
                    if !right {
                        return Err(format!("entry {lsn} is another one"));
                    }
                }
                Err(error) => refused.push(error.to_string()),
            }
        }
        let same_facts = opened.kept.fenced == Epoch(self.fenced)
            && opened.state == self.at(opened.committed.0).state
            && opened.committed.0 <= self.committed
            && opened.checkpoint.0 <= opened.committed.0;
        if !same_facts {
            return Err(format!("it says {opened:?}, the model {self:?}"));
        }
        Ok(refused)
    }

    fn check_log(&self, store: &Store, opened: &Opened) -> Result<(), String> {
        let first = opened.retained.0.max(self.floor.lsn + 1);
        if first > opened.durable.0 {
            return Ok(());
        }
        let mut plan =
            store.read_log(Lsn(first), opened.durable).map_err(|e| format!("not read: {e}"))?;
        let mut expected = self.entries[(first - self.floor.lsn - 1) as usize..].iter();
        loop {
            let entries = plan.next(30_000, 7).map_err(|e| format!("not read: {e}"))?;
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                let made = expected.next().ok_or("more entries than there are")?;
                if entry.header != made.header || entry.payload != made.payload() {
                    return Err(format!("entry {:?} is not {:?}", entry.header, made.header));
                }
                if entry.crc != made.crc() {
                    return Err(format!("the CRC of entry {}", entry.header.lsn));
                }
            }
        }
        match expected.next() {
            None => Ok(()),
            Some(made) => Err(format!("entry {} is missing", made.header.lsn)),
        }
    }

    /// The region table names at least the last LSN that wrote a region, and the digests are those
    /// of the committed image.
    fn check_regions(&self, store: &Store, opened: &Opened) -> Result<(), String> {
        let committed = self.at(opened.committed.0);
        let mut plan = store.plan_digest(0, 0);
        let mut region = 0;
        while let Some(found) = plan.next_region() {
            let found = found.map_err(|e| format!("no digest: {e}"))?;
            let found = found.ok_or("a digest that no checkpoint overtakes")?;
            let first = (region * REGION_BLOCKS) as usize;
            let end = (first + REGION_BLOCKS as usize).min(committed.state.blocks as usize);
            let data = bytes_of(&committed.image[first..end]);
            if !found.damaged.is_empty() || found.digest != crc32c(&data) {
                return Err(format!("region {region} has the digest {found:?}"));
            }
            if found.lsn == Lsn(0) && data.iter().any(|byte| *byte != 0) {
                return Err(format!("region {region} counts as never written"));
            }
            region += 1;
        }
        if region != committed.state.blocks.div_ceil(REGION_BLOCKS) {
            return Err(format!("{region} regions"));
        }
        let table = store.regions();
        if table.iter().any(|lsn| *lsn > opened.committed) {
            return Err(format!("a region is newer than {}: {table:?}", opened.committed));
        }
        for entry in &self.entries {
            if entry.header.lsn > opened.committed {
                break;
            }
            let Some(range) = entry.header.kind.range() else { continue };
            for region in range.lba.0 / REGION_BLOCKS..range.end().div_ceil(REGION_BLOCKS) {
                let found = table.get(region as usize).copied().unwrap_or_default();
                // A region behind the end of a volume that shrank is not in the table.
                if found < entry.header.lsn && (region as usize) < table.len() {
                    return Err(format!(
                        "region {region} says {found}, entry {}",
                        entry.header.lsn
                    ));
                }
            }
        }
        Ok(())
    }

    /// Forgets what can't be taken back.
    fn raise_floor(&mut self, lsn: u64) {
        // Some entries stay, for the log to be compared.
        let lsn = lsn.min(self.checkpoint).saturating_sub(200).max(self.floor.lsn);
        let volume = self.at(lsn);
        self.entries.drain(..(lsn - self.floor.lsn) as usize);
        self.floor = volume;
    }
}

/// Whether `data`, from block `first` on, is what `image` says.
fn same(first: u64, data: &[u8], image: &[Tag]) -> Result<(), String> {
    for (at, block) in data.chunks_exact(BLOCK).enumerate() {
        let number = first as usize + at;
        if block != &bytes_of(&image[number..number + 1])[..] {
            return Err(format!("block {number} has other bytes than tag {:x}", image[number]));
        }
    }
    Ok(())
}
