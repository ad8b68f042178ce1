//! The state of a simulated disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use super::{Fault, OpKind};
use crate::bytes_io::is_zero;

const SECTOR: usize = 512;
const PAGE: usize = 4096;
const PAGE_SECTORS: u64 = (PAGE / SECTOR) as u64;

type Sector = [u8; SECTOR];

/// A file's bytes. A page that is not there is zeros.
#[derive(Clone, Default)]
pub(super) struct Inode {
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    len: u64,
    synced_len: u64,
    /// For each sector written since the last sync: what the disk holds, then what was written.
    dirty: BTreeMap<u64, Vec<Sector>>,
    /// Pages that can't be read, until something is written over all of one.
    bad: BTreeSet<u64>,
    /// Sectors that look clean but whose content never reached the disk, and what it holds.
    lost: BTreeMap<u64, Sector>,
}

impl Inode {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let len = (self.len.saturating_sub(offset) as usize).min(buf.len());
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let within = (at % PAGE as u64) as usize;
            let now = (PAGE - within).min(len - done);
            match self.pages.get(&(at / PAGE as u64)) {
                Some(page) => buf[done..done + now].copy_from_slice(&page[within..within + now]),
                None => buf[done..done + now].fill(0),
            }
            done += now;
        }
        len
    }

    pub(super) fn spoil(&mut self, offset: u64) {
        self.bad.insert(offset / PAGE as u64);
    }

    /// Whether a read meets a page that can't be read.
    pub(super) fn is_bad(&self, offset: u64, len: usize) -> bool {
        let end = (offset + len as u64).min(self.len);
        offset < end
            && self.bad.range(offset / PAGE as u64..end.div_ceil(PAGE as u64)).next().is_some()
    }

    /// Whether a write would have to read a page first that can't be read; those that it covers can be
    /// read from then on.
    pub(super) fn is_blocked(&mut self, offset: u64, len: usize) -> bool {
        let page = PAGE as u64;
        let end = offset + len as u64;
        let touched = self.bad.range(offset / page..end.div_ceil(page)).copied();
        let touched: Vec<u64> = touched.collect();
        if touched.iter().any(|bad| bad * page < offset || (bad + 1) * page > end) {
            return true;
        }
        touched.iter().for_each(|bad| _ = self.bad.remove(bad));
        false
    }

    fn sector(&self, number: u64) -> Sector {
        let mut out = [0; SECTOR];
        if let Some(page) = self.pages.get(&(number / PAGE_SECTORS)) {
            let within = (number % PAGE_SECTORS) as usize * SECTOR;
            out.copy_from_slice(&page[within..within + SECTOR]);
        }
        out
    }

    /// Sets a sector without a trace of what was there.
    fn set_sector(&mut self, number: u64, content: &Sector) {
        let page = self.pages.entry(number / PAGE_SECTORS).or_insert_with(|| Box::new([0; PAGE]));
        let within = (number % PAGE_SECTORS) as usize * SECTOR;
        page[within..within + SECTOR].copy_from_slice(content);
    }

    fn write_sector(&mut self, number: u64, content: Sector) {
        let before = self.sector(number);
        let on_disk = self.lost.remove(&number).unwrap_or(before);
        self.dirty.entry(number).or_insert_with(|| vec![on_disk]).push(content);
        self.set_sector(number, &content);
    }

    pub(super) fn write(&mut self, data: &[u8], offset: u64) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % SECTOR as u64) as usize;
            let now = (SECTOR - within).min(data.len() - done);
            let number = at / SECTOR as u64;
            let mut content = self.sector(number);
            content[within..within + now].copy_from_slice(&data[done..done + now]);
            self.write_sector(number, content);
            done += now;
        }
        if !data.is_empty() {
            self.len = self.len.max(offset + data.len() as u64);
        }
    }

    pub(super) fn punch(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.len);
        if offset >= end {
            return;
        }
        let pages: Vec<u64> = self
            .pages
            .range(offset / PAGE as u64..end.div_ceil(PAGE as u64))
            .map(|(page, _)| *page)
            .collect();
        for page in pages {
            let start = (page * PAGE as u64).max(offset);
            let stop = ((page + 1) * PAGE as u64).min(end);
            if start < stop {
                let before = self.len;
                self.write(&vec![0; (stop - start) as usize], start);
                self.len = before;
            }
            if self.pages.get(&page).is_some_and(|p| is_zero(&p[..])) {
                self.pages.remove(&page);
            }
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.punch(len, self.len - len);
        }
        self.len = len;
    }

    pub(super) fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let (&first, _) = self.pages.range(offset / PAGE as u64..).next()?;
        let mut end = first + 1;
        while self.pages.contains_key(&end) {
            end += 1;
        }
        let start = (first * PAGE as u64).max(offset);
        let stop = (end * PAGE as u64).min(self.len);
        (start < stop).then_some(start..stop)
    }

    /// How many bytes can be written at `offset` without a new page: all, or up to the first one.
    fn allocated(&self, offset: u64, len: usize) -> usize {
        let end = offset + len as u64;
        let pages = offset / PAGE as u64..end.div_ceil(PAGE as u64);
        let missing = pages.into_iter().find(|page| !self.pages.contains_key(page));
        missing.map_or(len, |page| (page * PAGE as u64).saturating_sub(offset) as usize)
    }

    pub(super) fn sync(&mut self) {
        self.dirty.clear();
        self.synced_len = self.len;
    }

    pub(super) fn drop_dirty(&mut self) {
        for (number, versions) in std::mem::take(&mut self.dirty) {
            self.lost.insert(number, versions[0]);
        }
    }

    fn power_loss(&mut self, random: &mut impl FnMut(u64) -> u64) {
        let len = if random(2) == 0 { self.len } else { self.synced_len };
        // Some losses take all, some nothing, most any part.
        let mode = random(4);
        self.lose(len, |versions| match mode {
            0 => 0,
            1 => versions - 1,
            _ => random(versions),
        });
    }

    /// What was not synced is as it was at one time since: `which` chooses of so many.
    fn lose(&mut self, len: u64, mut which: impl FnMut(u64) -> u64) {
        for (number, versions) in std::mem::take(&mut self.dirty) {
            let which = which(versions.len() as u64);
            self.set_sector(number, &versions[which as usize]);
        }
        for (number, content) in std::mem::take(&mut self.lost) {
            self.set_sector(number, &content);
        }
        self.len = len;
        self.synced_len = len;
        let beyond = self.pages.split_off(&len.div_ceil(PAGE as u64));
        drop(beyond);
        if let Some(page) = self.pages.get_mut(&(len / PAGE as u64)) {
            page[(len % PAGE as u64) as usize..].fill(0);
        }
    }
}

#[derive(Clone)]
enum NameOp {
    Create(String, u64),
    Rename(String, String, u64),
    Remove(String),
}

impl NameOp {
    fn dir(&self) -> &str {
        match self {
            NameOp::Create(path, _) | NameOp::Rename(_, path, _) | NameOp::Remove(path) => {
                parent(path)
            }
        }
    }

    fn apply(self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameOp::Create(path, inode) => {
                names.insert(path, inode);
            }
            NameOp::Rename(from, to, inode) => {
                names.remove(&from);
                names.insert(to, inode);
            }
            NameOp::Remove(path) => {
                names.remove(&path);
            }
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

#[derive(Clone)]
struct Armed {
    kind: OpKind,
    after: u64,
    path: String,
    fault: Fault,
}

#[derive(Clone)]
pub(super) struct Disk {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    pending_names: Vec<NameOp>,
    /// Those that a failed sync left behind. They look durable, and are with the next change of their
    /// directory that is.
    lost_names: Vec<NameOp>,
    dirs: BTreeSet<String>,
    next_inode: u64,
    operations: u64,
    pub(super) bytes_read: u64,
    crash_at: Option<u64>,
    crashed: bool,
    armed: Vec<Armed>,
    /// Allocations left before the disk is full.
    room: Option<u64>,
    ran_full: bool,
    /// Raised by every restart: files opened before are dead.
    epoch: u64,
    random: u64,
}

fn not_found(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no such file: {path}"))
}

impl Disk {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            lost_names: Vec::new(),
            dirs: BTreeSet::new(),
            next_inode: 1,
            operations: 0,
            bytes_read: 0,
            crash_at: None,
            crashed: false,
            armed: Vec::new(),
            room: None,
            ran_full: false,
            epoch: 0,
            random: seed,
        }
    }

    /// A number below `below`, by splitmix64.
    fn random(state: &mut u64, below: u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    pub(super) fn operations(&self) -> u64 {
        self.operations
    }

    pub(super) fn crash_after(&mut self, n: u64) {
        self.crash_at = Some(self.operations + n);
    }

    pub(super) fn crashed(&self) -> bool {
        self.crashed
    }

    pub(super) fn arm(&mut self, kind: OpKind, after: u64, path: &str, fault: Fault) {
        self.armed.push(Armed { kind, after, path: path.to_owned(), fault });
    }

    pub(super) fn faults(&self) -> usize {
        self.armed.len()
    }

    pub(super) fn fill_up_after(&mut self, room: Option<u64>) {
        self.room = room;
        self.ran_full = false;
    }

    pub(super) fn ran_full(&self) -> bool {
        self.ran_full
    }

    /// Takes space from what is left. `fits`: bytes that need none.
    pub(super) fn allocate(&mut self, fits: usize) -> io::Result<usize> {
        match &mut self.room {
            Some(0) => {
                self.ran_full = true;
                if fits > 0 { Ok(fits) } else { Err(Self::error(Fault::NoSpace)) }
            }
            Some(room) => {
                *room -= 1;
                Ok(usize::MAX)
            }
            None => Ok(usize::MAX),
        }
    }

    /// The part of `data` that has room at `offset`.
    pub(super) fn fitting<'a>(
        &mut self,
        inode: u64,
        data: &'a [u8],
        offset: u64,
    ) -> io::Result<&'a [u8]> {
        let fits = self.inodes[&inode].allocated(offset, data.len());
        if fits == data.len() {
            return Ok(data);
        }
        let fits = self.allocate(fits)?;
        Ok(&data[..fits.min(data.len())])
    }

    pub(super) fn check_epoch(&self, epoch: u64) -> io::Result<()> {
        if self.crashed || epoch != self.epoch {
            return Err(io::Error::other("the machine has stopped"));
        }
        Ok(())
    }

    pub(super) fn inode(&self, inode: u64) -> &Inode {
        &self.inodes[&inode]
    }

    pub(super) fn inode_mut(&mut self, inode: u64) -> &mut Inode {
        self.inodes.get_mut(&inode).expect("an open file has an inode")
    }

    fn fault(&mut self, kind: OpKind, path: &str) -> Option<Fault> {
        let mut hit = None;
        self.armed.retain_mut(|armed| {
            if armed.kind != kind || !path.contains(&armed.path) {
                return true;
            }
            if armed.after > 0 || hit.is_some() {
                armed.after = armed.after.saturating_sub(1);
                return true;
            }
            hit = Some(armed.fault);
            false
        });
        hit
    }

    fn error(fault: Fault) -> io::Error {
        match fault {
            Fault::Io | Fault::Short(_) => io::Error::from_raw_os_error(5),
            Fault::NoSpace => io::Error::from_raw_os_error(28),
        }
    }

    pub(super) fn read_allowed(&mut self, path: &str) -> io::Result<()> {
        match self.fault(OpKind::Read, path) {
            Some(fault) => Err(Self::error(fault)),
            None => Ok(()),
        }
    }

    /// Counts a changing operation; it fails where the machine stops or a fault is due.
    pub(super) fn change(&mut self, kind: OpKind, path: &str) -> io::Result<()> {
        if self.crashed {
            return Err(io::Error::other("the machine has stopped"));
        }
        let now = self.operations;
        self.operations += 1;
        if self.crash_at == Some(now) {
            self.crashed = true;
            return Err(io::Error::other("the machine stopped"));
        }
        match self.fault(kind, path) {
            Some(fault) => Err(Self::error(fault)),
            None => Ok(()),
        }
    }

    /// How much of a write of `len` bytes at `offset` happens, and whether it fails after that.
    pub(super) fn write_allowed(
        &mut self,
        path: &str,
        offset: u64,
        len: usize,
    ) -> Result<usize, (usize, io::Error)> {
        let before = self.crashed;
        let short = match self.armed.iter().position(|a| {
            a.kind == OpKind::Write
                && a.after == 0
                && path.contains(&a.path)
                && matches!(a.fault, Fault::Short(_))
        }) {
            Some(at) => match self.armed.remove(at).fault {
                Fault::Short(bytes) => Some(bytes.min(len)),
                Fault::Io | Fault::NoSpace => None,
            },
            None => None,
        };
        match self.change(OpKind::Write, path) {
            Ok(()) => Ok(short.unwrap_or(len)),
            Err(error) if self.crashed && !before => {
                // The write that was under way happened in part. A sector is written whole or not
                // at all; the page cache is filled in larger pieces still.
                let within = offset % SECTOR as u64;
                let sectors = (within + len as u64).div_ceil(SECTOR as u64);
                let part = Self::random(&mut self.random, sectors + 1) * SECTOR as u64;
                Err((part.saturating_sub(within).min(len as u64) as usize, error))
            }
            Err(error) => Err((0, error)),
        }
    }

    pub(super) fn create_dir(&mut self, path: &str) -> io::Result<()> {
        self.change(OpKind::Meta, path)?;
        // Directories are made once, at a replica's creation, which is repeated until it is
        // confirmed; their loss is not simulated.
        self.dirs.insert(path.to_owned());
        Ok(())
    }

    pub(super) fn create(&mut self, path: &str) -> io::Result<(u64, u64)> {
        if self.names.contains_key(path) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, path.to_owned()));
        }
        if !parent(path).is_empty() && !self.dirs.contains(parent(path)) {
            return Err(not_found(parent(path)));
        }
        self.change(OpKind::Meta, path)?;
        self.allocate(0)?;
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::default());
        self.change_name(NameOp::Create(path.to_owned(), inode));
        Ok((inode, self.epoch))
    }

    pub(super) fn open(&mut self, path: &str) -> io::Result<(u64, u64)> {
        if self.crashed {
            return Err(io::Error::other("the machine has stopped"));
        }
        let inode = *self.names.get(path).ok_or_else(|| not_found(path))?;
        Ok((inode, self.epoch))
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let inode = *self.names.get(from).ok_or_else(|| not_found(from))?;
        self.change(OpKind::Meta, from)?;
        self.change_name(NameOp::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &str) -> io::Result<()> {
        self.names.get(path).ok_or_else(|| not_found(path))?;
        self.change(OpKind::Meta, path)?;
        self.change_name(NameOp::Remove(path.to_owned()));
        Ok(())
    }

    pub(super) fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        if self.crashed {
            return Err(io::Error::other("the machine has stopped"));
        }
        if !dir.is_empty() && !self.dirs.contains(dir) {
            return Err(not_found(dir));
        }
        let names = self.names.keys().chain(&self.dirs).filter(|p| parent(p) == dir);
        let mut names: Vec<String> = names
            .map(|p| p.rsplit_once('/').map_or(p.as_str(), |(_, name)| name).to_owned())
            .collect();
        names.sort();
        Ok(names)
    }

    fn change_name(&mut self, op: NameOp) {
        // The directory is written as a whole.
        let lost = std::mem::take(&mut self.lost_names);
        let (again, lost): (Vec<_>, _) = lost.into_iter().partition(|lost| lost.dir() == op.dir());
        self.lost_names = lost;
        self.pending_names.extend(again);
        self.pending_names.push(op.clone());
        op.apply(&mut self.names);
    }

    pub(super) fn sync_dir(&mut self, dir: &str) -> io::Result<()> {
        let allowed = self.change(OpKind::Meta, dir);
        if self.crashed {
            return allowed;
        }
        let (now, later): (Vec<NameOp>, _) =
            std::mem::take(&mut self.pending_names).into_iter().partition(|op| op.dir() == dir);
        self.pending_names = later;
        if allowed.is_err() {
            self.lost_names.extend(now);
            return allowed;
        }
        for op in now {
            op.apply(&mut self.durable_names);
        }
        Ok(())
    }

    pub(super) fn power_loss(&mut self) {
        self.lost_names.clear();
        let mut state = self.random;
        for op in std::mem::take(&mut self.pending_names) {
            if Self::random(&mut state, 2) == 0 {
                op.apply(&mut self.durable_names);
            }
        }
        for inode in self.inodes.values_mut() {
            inode.power_loss(&mut |below| Self::random(&mut state, below));
        }
        self.random = state;
        self.names = self.durable_names.clone();
        self.restart();
    }

    pub(super) fn lose_unsynced(&mut self) {
        self.pending_names.clear();
        self.lost_names.clear();
        for inode in self.inodes.values_mut() {
            let len = inode.synced_len;
            inode.lose(len, |_| 0);
        }
        self.names = self.durable_names.clone();
        self.restart();
    }

    pub(super) fn restart(&mut self) {
        self.epoch += 1;
        self.crashed = false;
        self.disarm();
    }

    pub(super) fn disarm(&mut self) {
        self.crash_at = None;
        self.armed.clear();
    }

    pub(super) fn flip(&mut self, path: &str, bit: u64) -> bool {
        let Some(inode) = self.names.get(path).and_then(|i| self.inodes.get_mut(i)) else {
            return false;
        };
        if bit / 8 >= inode.len {
            return false;
        }
        let number = bit / 8 / SECTOR as u64;
        let mut content = inode.sector(number);
        content[(bit / 8 % SECTOR as u64) as usize] ^= 1 << (bit % 8);
        inode.set_sector(number, &content);
        true
    }

    pub(super) fn spoil(&mut self, path: &str, offset: u64) -> bool {
        let inode = self.names.get(path).and_then(|i| self.inodes.get_mut(i));
        let inode = inode.filter(|inode| offset < inode.len);
        inode.map(|inode| inode.spoil(offset)).is_some()
    }

    /// What reads and writes that meet a page that can't be read end with.
    pub(super) fn unreadable() -> io::Error {
        Self::error(Fault::Io)
    }

    pub(super) fn content(&self, path: &str) -> Option<Vec<u8>> {
        let inode = self.inodes.get(self.names.get(path)?)?;
        let mut out = vec![0; inode.len as usize];
        inode.read(&mut out, 0);
        Some(out)
    }

    pub(super) fn paths(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }
}
