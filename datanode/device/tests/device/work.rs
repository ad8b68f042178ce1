//! Random work on a device, and what must be there after a crash. Shared with `tests/src/bites`, which looks for known
//! bugs so.
//!
//! Everything that is written is 512-byte sectors with one number all over, which no other write has and which says whose
//! it is. So whatever is found where it was not written, or in a file it was not written to, is seen.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sbk_device::{CHUNK, Device, DeviceError, FormatOptions};
use sbk_wal::{Memory, RawFile, Storage, read_exact, write_all};
use uuid::Uuid;

const SECTOR: usize = 512;
/// A few more chunks than the least.
pub(crate) const BYTES: u64 = 5 << 20;
pub(crate) const JOURNAL: u64 = 20 << 10;
/// Longest file, in sectors: six chunks.
const LONGEST: u64 = 3 << 10;
const NAMES: [&str; 6] = ["a", "b", "d/a", "d/b", "d/c", "d/d"];

/// Splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// The simulated disk whose one file is the device.
pub(crate) fn disk(seed: u64) -> Memory {
    let memory = Memory::new(seed);
    let file = memory.create("device").expect("a device");
    file.set_len(BYTES).expect("its size");
    file.sync().and_then(|()| memory.sync_dir("")).expect("it is there");
    memory
}

pub(crate) fn node() -> Uuid {
    Uuid::from_u128(0xd0)
}

/// Opens the device on it, which is set up if it never was.
pub(crate) fn open(memory: &Memory) -> Result<Device, DeviceError> {
    let file = memory.open("device");
    let file =
        file.map_err(|source| DeviceError::Io { doing: "open", path: "device".into(), source })?;
    let file: Arc<dyn RawFile> = Arc::new(Keeps(file));
    let path = Path::new("device");
    if let Some(device) = Device::find(Arc::clone(&file), path, Some(node()))? {
        return Ok(device);
    }
    let options = FormatOptions { journal_bytes: Some(JOURNAL) };
    Device::make(file, path, Uuid::new_v4(), node(), options)
}

/// A device that does not discard: what was there once is there until something is written over it.
#[derive(Debug)]
struct Keeps(Arc<dyn RawFile>);

impl RawFile for Keeps {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn reserve(&self, len: u64) -> io::Result<()> {
        self.0.reserve(len)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, bufs: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.0.write_at(bufs, offset)
    }
    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.0.next_data(offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

/// What a file may hold after a crash, and what it holds now: the last of each.
#[derive(Clone, Debug)]
struct File {
    len: Vec<u64>,
    /// Of each sector; 0 is zeros. What is not there is zeros as well.
    sectors: BTreeMap<u64, Vec<u64>>,
}

impl File {
    fn now(&self, sector: u64) -> u64 {
        self.sectors.get(&sector).map_or(0, |all| *all.last().expect("one"))
    }

    fn may_be(&self, sector: u64, found: u64) -> bool {
        self.sectors.get(&sector).map_or(found == 0, |all| all.contains(&found))
    }

    fn set(&mut self, sector: u64, number: u64) {
        self.sectors.entry(sector).or_insert_with(|| vec![0]).push(number);
    }

    fn set_len(&mut self, len: u64) {
        let gone: Vec<u64> = self.sectors.range(len..).map(|(sector, _)| *sector).collect();
        gone.into_iter().for_each(|sector| self.set(sector, 0));
        self.len.push(len);
    }

    fn length(&self) -> u64 {
        *self.len.last().expect("one")
    }

    fn synced(&mut self) {
        self.len = vec![self.length()];
        self.sectors.values_mut().for_each(|all| *all = vec![*all.last().expect("one")]);
        self.sectors.retain(|_, all| *all != [0]);
    }
}

type Names = BTreeMap<String, u32>;

/// What is known of a device.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    files: BTreeMap<u32, File>,
    /// The names now are the last; those at a time since they were synced come before.
    names: Vec<Names>,
    next: u32,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self { files: BTreeMap::new(), names: vec![Names::new()], next: 1 }
    }

    fn names(&self) -> &Names {
        self.names.last().expect("one")
    }

    fn rename(&mut self, change: impl FnOnce(&mut Names)) {
        let mut names = self.names().clone();
        change(&mut names);
        self.names.push(names);
    }

    /// Compares what is there after a crash with what may be, and takes it for what is there from now on.
    fn settle(&mut self, found: &BTreeMap<String, Vec<u64>>) -> Result<(), String> {
        let fits = |names: &&Names| names.keys().eq(found.keys());
        let mut why = format!("no names fit {:?}: {:?}", found.keys(), self.names);
        // Newer ones first: the same paths may have stood for other files.
        for names in self.names.iter().rev().filter(fits) {
            let checked = names.iter().try_for_each(|(path, id)| {
                self.check(&self.files[id], &found[path]).map_err(|e| format!("{path}: {e}"))
            });
            match checked {
                Ok(()) => {
                    self.names = vec![names.clone()];
                    for (path, sectors) in found {
                        let file = self.files.get_mut(&self.names[0][path]).expect("it is known");
                        file.set_len(sectors.len() as u64);
                        for (at, number) in sectors.iter().enumerate() {
                            if file.now(at as u64) != *number {
                                file.set(at as u64, *number);
                            }
                        }
                    }
                    return Ok(());
                }
                Err(error) => why = format!("{why}\n{error}, as {names:?}"),
            }
        }
        Err(why)
    }

    fn check(&self, file: &File, found: &[u64]) -> Result<(), String> {
        if !file.len.contains(&(found.len() as u64)) {
            return Err(format!("{} sectors, not {:?}", found.len(), file.len));
        }
        for (at, number) in found.iter().enumerate() {
            if !file.may_be(at as u64, *number) {
                let expected = file.sectors.get(&(at as u64));
                return Err(format!("sector {at} is {number:x}, not {expected:x?}"));
            }
        }
        Ok(())
    }
}

fn read(file: &dyn RawFile) -> Result<Vec<u64>, Stop> {
    let mut bytes = vec![1; file.len()? as usize];
    read_exact(file, &mut bytes, 0, false)?;
    let number = |sector: &[u8]| {
        let number = u64::from_le_bytes(sector[..8].try_into().expect("eight"));
        // The same again and again, if it is equal to itself eight bytes on.
        let whole = sector[8..] == sector[..SECTOR - 8];
        whole.then_some(number).ok_or_else(|| Stop::Wrong("a torn sector".to_owned()))
    };
    bytes.chunks_exact(SECTOR).map(number).collect()
}

fn read_all(storage: &dyn Storage) -> Result<BTreeMap<String, Vec<u64>>, String> {
    let mut out = BTreeMap::new();
    for dir in ["", "d"] {
        let names = match storage.list(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|e| e.to_string())?,
        };
        for name in names {
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if path == "d" {
                continue;
            }
            let file = storage.open(&path).map_err(|e| format!("{path}: {e}"))?;
            out.insert(path.clone(), read(&*file).map_err(|e| format!("{path}: {e:?}"))?);
        }
    }
    Ok(out)
}

/// Opens the device and compares what is on it with what may be there.
pub(crate) fn check(memory: &Memory, model: &mut Model) -> Result<Device, String> {
    let device = open(memory).map_err(|e| format!("not opened: {e}"))?;
    let storage = device.directory("").map_err(|e| e.to_string())?;
    model.settle(&read_all(&storage)?)?;
    Ok(device)
}

/// What comes of work.
pub(crate) enum Outcome {
    Done,
    /// An I/O failed.
    Failed(String),
    /// Something was not as it had been written.
    Wrong(String),
}

fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(28)
}

/// A file that is open.
struct Open {
    id: u32,
    file: Arc<dyn RawFile>,
}

struct Worker<'a> {
    storage: &'a dyn Storage,
    model: &'a mut Model,
    random: Random,
    open: Vec<Open>,
    number: u64,
    /// What is under way is a sync.
    syncing: bool,
}

/// Does `steps` steps of work, which `salt` tells from others.
pub(crate) fn work(memory: &Memory, model: &mut Model, salt: u64, steps: u64) -> Outcome {
    let device = match open(memory) {
        Ok(device) => device,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    let storage = match device.directory("") {
        Ok(storage) => storage,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    let mut worker = Worker {
        storage: &storage,
        model,
        random: Random(salt),
        open: Vec::new(),
        number: salt << 32,
        syncing: false,
    };
    let worked = (0..steps).try_for_each(|_| worker.step());
    match worked.and_then(|()| worker.settle()) {
        Ok(()) => Outcome::Done,
        Err(Stop::Io(_)) if worker.syncing && worker.goes_on() => {
            Outcome::Wrong("a sync failed, and that of another file did not".to_owned())
        }
        Err(Stop::Io(error)) => Outcome::Failed(error.to_string()),
        Err(Stop::Wrong(what)) => Outcome::Wrong(what),
    }
}

#[derive(Debug)]
enum Stop {
    Io(io::Error),
    Wrong(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Worker<'_> {
    fn below(&mut self, below: u64) -> u64 {
        self.random.below(below)
    }

    fn range(&mut self) -> Range<u64> {
        let start = self.below(LONGEST - 1);
        // Pages, parts of pages, and chunks.
        let most = [7, 40, 700][self.below(3) as usize];
        let end = start + 1 + self.below(most);
        match self.below(3) {
            0 => start / 8 * 8..end.next_multiple_of(8).min(LONGEST),
            _ => start..end.min(LONGEST),
        }
    }

    /// A name that there is, and its directory synced now and then.
    fn step(&mut self) -> Result<(), Stop> {
        let what = self.below(100);
        if what < 12 {
            return self.make();
        }
        if what < 24 {
            return self.rename_or_remove();
        }
        if what < 30 {
            self.storage.sync_dir("")?;
            self.storage.create_dir("d")?;
            self.storage.sync_dir("d")?;
            let now = self.model.names().clone();
            self.model.names = vec![now];
            return Ok(());
        }
        if self.open.is_empty() || what < 34 {
            return self.reopen();
        }
        let at = self.below(self.open.len() as u64) as usize;
        let (id, file) = (self.open[at].id, Arc::clone(&self.open[at].file));
        match what {
            34..60 => self.write(id, &*file),
            60..68 => self.punch(id, &*file),
            68..73 => self.set_len(id, &*file),
            73..76 => self.reserve(id, &*file),
            76..94 => {
                self.syncing = true;
                file.sync()?;
                self.syncing = false;
                self.model.files.get_mut(&id).expect("it is known").synced();
                Ok(())
            }
            94..98 => self.compare(id, &*file),
            _ => {
                self.open.swap_remove(at);
                Ok(())
            }
        }
    }

    fn make(&mut self) -> Result<(), Stop> {
        let path = NAMES[self.below(NAMES.len() as u64) as usize];
        if path.starts_with("d/") {
            self.storage.create_dir("d")?;
        }
        match self.storage.create(path) {
            Ok(file) => {
                let id = self.model.next;
                self.model.next += 1;
                let made = File { len: vec![0], sectors: BTreeMap::new() };
                self.model.files.insert(id, made);
                self.model.rename(|names| _ = names.insert(path.to_owned(), id));
                self.open.push(Open { id, file });
                Ok(())
            }
            Err(error) if self.model.names().contains_key(path) => {
                assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn reopen(&mut self) -> Result<(), Stop> {
        let count = self.model.names().len() as u64;
        if count == 0 {
            return self.make();
        }
        let at = self.below(count) as usize;
        let (path, id) = self.model.names().iter().nth(at).expect("it is there");
        let open = Open { id: *id, file: self.storage.open(path)? };
        self.open.push(open);
        Ok(())
    }

    fn rename_or_remove(&mut self) -> Result<(), Stop> {
        let count = self.model.names().len() as u64;
        if count == 0 {
            return Ok(());
        }
        let at = self.below(count) as usize;
        let (from, id) = self.model.names().iter().nth(at).expect("it is there");
        let (from, id) = (from.clone(), *id);
        if self.below(2) == 0 {
            self.storage.remove(&from)?;
            self.model.rename(|names| _ = names.remove(&from));
            return Ok(());
        }
        let dir = from.rsplit_once('/').map_or("", |(dir, _)| dir);
        let others: Vec<&str> = NAMES
            .into_iter()
            .filter(|name| name.rsplit_once('/').map_or("", |(dir, _)| dir) == dir)
            .collect();
        let to = others[self.below(others.len() as u64) as usize];
        self.storage.rename(&from, to)?;
        self.model.rename(|names| {
            names.remove(&from);
            names.insert(to.to_owned(), id);
        });
        Ok(())
    }

    fn write(&mut self, id: u32, file: &dyn RawFile) -> Result<(), Stop> {
        let range = self.range();
        let mut data = Vec::new();
        let known = self.model.files.get_mut(&id).expect("it is known");
        let before = known.clone();
        // What is written while the machine stops may be there.
        for sector in range.clone() {
            self.number += 1;
            known.set(sector, self.number);
            data.extend(self.number.to_le_bytes().repeat(SECTOR / 8));
        }
        // One call writes to one chunk, and its part may become durable with what another file is synced for, or
        // to make room for the rest.
        let step = CHUNK / SECTOR as u64;
        for len in (known.length() + 1..range.end).filter(|len| len.is_multiple_of(step)) {
            known.len.push(len);
        }
        if range.end > known.length() {
            known.set_len(range.end);
        }
        let half = data.len() / 2 / 100 * 100;
        let result = write_all(file, &[&data[..half], &data[half..]], range.start * SECTOR as u64);
        match result {
            Err(error) if is_full(&error) => self.took_part(id, file, &before),
            other => Ok(other?),
        }
    }

    /// A write stopped somewhere, for the device is full.
    fn took_part(&mut self, id: u32, file: &dyn RawFile, before: &File) -> Result<(), Stop> {
        let found = read(file)?;
        let known = self.model.files.get_mut(&id).expect("it is known");
        let len = found.len() as u64;
        if len < before.length() || len > known.length() {
            return Err(Stop::Wrong(format!("a full device: {len} sectors")));
        }
        for (at, number) in found.iter().enumerate() {
            let at = at as u64;
            if *number != before.now(at) && *number != known.now(at) {
                return Err(Stop::Wrong(format!("a full device: sector {at} is {number:x}")));
            }
            if *number != known.now(at) {
                known.set(at, *number);
            }
        }
        known.set_len(len);
        Ok(())
    }

    fn punch(&mut self, id: u32, file: &dyn RawFile) -> Result<(), Stop> {
        let range = self.range();
        let known = self.model.files.get_mut(&id).expect("it is known");
        for sector in range.start..range.end.min(known.length()) {
            known.set(sector, 0);
        }
        let (offset, len) = (range.start * 512, (range.end - range.start) * 512);
        Ok(file.punch(offset, len)?)
    }

    fn set_len(&mut self, id: u32, file: &dyn RawFile) -> Result<(), Stop> {
        let len = if self.below(3) == 0 { self.below(9) } else { self.range().end };
        self.model.files.get_mut(&id).expect("it is known").set_len(len);
        Ok(file.set_len(len * 512)?)
    }

    fn reserve(&mut self, id: u32, file: &dyn RawFile) -> Result<(), Stop> {
        let len = self.range().end;
        let known = self.model.files.get_mut(&id).expect("it is known");
        let before = known.length();
        if len > before {
            known.set_len(len);
        }
        match file.reserve(len * 512) {
            Err(error) if is_full(&error) => {
                known.set_len(before);
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn compare(&mut self, id: u32, file: &dyn RawFile) -> Result<(), Stop> {
        let found = read(file)?;
        let known = &self.model.files[&id];
        if found.len() as u64 != known.length() {
            let expected = known.length();
            return Err(Stop::Wrong(format!("{} sectors, not {expected}", found.len())));
        }
        let wrong = found.iter().enumerate().find(|(at, found)| known.now(*at as u64) != **found);
        match wrong {
            Some((at, found)) => {
                let expected = known.now(at as u64);
                Err(Stop::Wrong(format!("file {id}: sector {at} is {found:x}, not {expected:x}")))
            }
            None => Ok(()),
        }
    }

    /// After a sync that failed: whether another one succeeds.
    fn goes_on(&self) -> bool {
        self.open.iter().any(|open| open.file.sync().is_ok())
    }

    /// Compares all that is open, and syncs all that has a name.
    fn settle(&mut self) -> Result<(), Stop> {
        for Open { id, file } in std::mem::take(&mut self.open) {
            self.compare(id, &*file)?;
        }
        for (path, id) in self.model.names().clone() {
            let file = self.storage.open(&path)?;
            self.compare(id, &*file)?;
            file.sync()?;
            self.model.files.get_mut(&id).expect("it is known").synced();
        }
        self.storage.sync_dir("")?;
        let now = self.model.names().clone();
        self.model.names = vec![now];
        Ok(())
    }
}
