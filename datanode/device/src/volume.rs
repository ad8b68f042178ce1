//! The files of a device while it is open, and how their changes become durable.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use sbk_wal::RawFile;

use crate::alloc::{Chunks, no_space};
use crate::change::{Change, MAX_PATH};
use crate::flush::{Flush, failed};
use crate::journal::{self, Journal};
use crate::layout::{CHUNK, Layout, NAME_RECORD};
use crate::load::Loaded;
use crate::map::Map;

/// A file. Whoever has it open, and its name, share it.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) id: u32,
    map: RwLock<Map>,
    chunks: Arc<Chunks>,
    /// Nothing has its name any more.
    gone: AtomicBool,
    /// The version of the map that is durable.
    durable: AtomicU64,
}

impl Inode {
    fn new(id: u32, map: Map, chunks: &Arc<Chunks>) -> Arc<Self> {
        let (gone, durable) = (AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self { id, map: RwLock::new(map), chunks: Arc::clone(chunks), gone, durable })
    }

    pub(crate) fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn map_mut(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}

impl Drop for Inode {
    /// The last who had it is gone. If it has no name any more that is durable, for [`Names::gone`] kept it until then.
    fn drop(&mut self) {
        if self.is_gone() {
            let mut map = self.map_mut();
            let all = map.take_all();
            self.chunks.discard(all);
        }
    }
}

#[derive(Debug)]
enum Node {
    Dir,
    File(Arc<Inode>),
}

#[derive(Debug, Default)]
pub(crate) struct Names {
    nodes: BTreeMap<String, Node>,
    /// What they take in a snapshot.
    bytes: u64,
    next_id: u32,
    /// Paths that changed since the last record.
    changed: BTreeSet<String>,
    /// Files that lost their names since.
    gone: Vec<Arc<Inode>>,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn not_found(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no such file or directory: {path}"))
}

impl Names {
    /// Looks whether there is room for one more, whose directory there is.
    fn make_way(&self, path: &str, room: u64) -> io::Result<()> {
        let dir = parent(path);
        if !dir.is_empty() && !matches!(self.nodes.get(dir), Some(Node::Dir)) {
            return Err(not_found(dir));
        }
        if path.len() > MAX_PATH || path.is_empty() {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        match self.bytes + path.len() as u64 + NAME_RECORD > room {
            true => Err(no_space()),
            false => Ok(()),
        }
    }

    fn insert(&mut self, path: &str, node: Node) {
        self.bytes += path.len() as u64 + NAME_RECORD;
        let replaced = self.nodes.insert(path.to_owned(), node);
        self.changed.insert(path.to_owned());
        if let Some(replaced) = replaced {
            self.forget(path, replaced);
        }
    }

    fn remove(&mut self, path: &str) -> Option<Node> {
        let node = self.nodes.remove(path)?;
        self.changed.insert(path.to_owned());
        Some(node)
    }

    /// A node lost its name.
    fn forget(&mut self, path: &str, node: Node) {
        self.bytes -= path.len() as u64 + NAME_RECORD;
        if let Node::File(inode) = node {
            inode.gone.store(true, Ordering::SeqCst);
            self.gone.push(inode);
        }
    }

    fn file(&self, path: &str) -> io::Result<&Arc<Inode>> {
        match self.nodes.get(path) {
            Some(Node::File(inode)) => Ok(inode),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(not_found(path)),
        }
    }
}

/// One life of the device's map: from a load to a failure, or to the end.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) bottom: Arc<dyn RawFile>,
    /// The device.
    pub(crate) path: PathBuf,
    pub(crate) layout: Layout,
    pub(crate) chunks: Arc<Chunks>,
    flush: Flush,
    failed: AtomicBool,
    /// Held shared by whoever does I/O, so that one can wait for the last of them.
    gate: RwLock<()>,
    names: Mutex<Names>,
    /// Files whose maps changed since the last record.
    dirty: Mutex<BTreeMap<u32, Arc<Inode>>>,
    /// Held while changes become durable. Taken before `names`, and that before a map.
    journal: Mutex<Journal>,
    /// The device can't discard.
    keeps: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic left half done is not made durable: whoever panicked held the gate's promise of nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Volume {
    pub(crate) fn new(bottom: Arc<dyn RawFile>, path: PathBuf, loaded: Loaded) -> Self {
        let Loaded { names: paths, mut files, chunks, journal } = loaded;
        let chunks = Arc::new(chunks);
        let next_id = files.keys().last().map_or(1, |id| id + 1);
        let mut names = Names { next_id, ..Names::default() };
        for (path, id) in paths {
            names.bytes += path.len() as u64 + NAME_RECORD;
            let node = match id {
                Some(id) => {
                    let map = files.remove(&id).expect("a loaded name has a file");
                    Node::File(Inode::new(id, map, &chunks))
                }
                None => Node::Dir,
            };
            names.nodes.insert(path, node);
        }
        Self {
            flush: Flush::new(Arc::clone(&bottom)),
            bottom,
            path,
            layout: journal.layout,
            chunks,
            failed: AtomicBool::new(false),
            gate: RwLock::new(()),
            names: Mutex::new(names),
            dirty: Mutex::default(),
            journal: Mutex::new(journal),
            keeps: AtomicBool::new(false),
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// Nothing is done any more on what is open.
    fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
        self.flush.fail();
    }

    /// Waits for the last I/O after a failure.
    pub(crate) fn drain(&self) {
        drop(self.gate.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// What every operation holds. Once only: a second time could wait for [`Volume::drain`], which waits for it.
    pub(crate) fn enter(&self) -> io::Result<RwLockReadGuard<'_, ()>> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        if self.has_failed() { Err(failed()) } else { Ok(gate) }
    }

    // Names.

    pub(crate) fn create_dir(&self, path: &str) -> io::Result<()> {
        let _io = self.enter()?;
        let mut names = lock(&self.names);
        match names.nodes.get(path) {
            Some(Node::Dir) => return Ok(()),
            Some(Node::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            None => {}
        }
        names.make_way(path, self.layout.names())?;
        names.insert(path, Node::Dir);
        Ok(())
    }

    pub(crate) fn create(&self, path: &str) -> io::Result<Arc<Inode>> {
        let _io = self.enter()?;
        let mut names = lock(&self.names);
        if names.nodes.contains_key(path) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, path.to_owned()));
        }
        names.make_way(path, self.layout.names())?;
        let id = names.next_id;
        names.next_id = id.checked_add(1).ok_or_else(no_space)?;
        let inode = Inode::new(id, Map::new(), &self.chunks);
        names.insert(path, Node::File(Arc::clone(&inode)));
        lock(&self.dirty).insert(id, Arc::clone(&inode));
        Ok(inode)
    }

    pub(crate) fn open(&self, path: &str) -> io::Result<Arc<Inode>> {
        let _io = self.enter()?;
        lock(&self.names).file(path).cloned()
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let _io = self.enter()?;
        let mut names = lock(&self.names);
        names.file(from)?;
        if from == to {
            return Ok(());
        }
        if matches!(names.nodes.get(to), Some(Node::Dir)) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        // Room for both, for a moment: a rename never fails for want of the last byte then.
        names.make_way(to, self.layout.names() + to.len() as u64 + NAME_RECORD)?;
        let node = names.remove(from).expect("it was found");
        names.bytes -= from.len() as u64 + NAME_RECORD;
        names.insert(to, node);
        Ok(())
    }

    pub(crate) fn remove(&self, path: &str) -> io::Result<()> {
        let _io = self.enter()?;
        let mut names = lock(&self.names);
        names.file(path)?;
        let node = names.remove(path).expect("it was found");
        names.forget(path, node);
        Ok(())
    }

    /// Removes a directory with all that is in it, at once and durably; nothing if there is none.
    pub(crate) fn remove_tree(&self, dir: &str) -> io::Result<()> {
        let _io = self.enter()?;
        let mut names = lock(&self.names);
        let below = format!("{dir}/");
        let paths = names.nodes.keys().filter(|path| *path == dir || path.starts_with(&below));
        for path in paths.cloned().collect::<Vec<_>>() {
            let node = names.remove(&path).expect("it was found");
            names.forget(&path, node);
        }
        drop(names);
        self.commit()
    }

    pub(crate) fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let _io = self.enter()?;
        let names = lock(&self.names);
        if !dir.is_empty() && !matches!(names.nodes.get(dir), Some(Node::Dir)) {
            return Err(not_found(dir));
        }
        let found = names.nodes.keys().filter(|path| parent(path) == dir);
        Ok(found.map(|path| path.rsplit('/').next().unwrap_or(path).to_owned()).collect())
    }

    /// Whether nothing has a name.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.names).nodes.is_empty()
    }

    /// Makes all names durable.
    pub(crate) fn sync_names(&self, dir: &str) -> io::Result<()> {
        let _io = self.enter()?;
        let names = lock(&self.names);
        if !dir.is_empty() && !matches!(names.nodes.get(dir), Some(Node::Dir)) {
            return Err(not_found(dir));
        }
        drop(names);
        self.commit()
    }

    // What makes changes durable.

    /// A file's map changed.
    pub(crate) fn changed(&self, inode: &Arc<Inode>) {
        if !inode.is_gone() {
            lock(&self.dirty).entry(inode.id).or_insert_with(|| Arc::clone(inode));
        }
    }

    /// Makes what was written to a file durable, and what its map was at the call.
    pub(crate) fn sync(&self, inode: &Inode) -> io::Result<()> {
        let version = inode.map().version;
        if inode.durable.load(Ordering::SeqCst) >= version {
            return self.sync_data();
        }
        // Also if the file has lost its name. [A crash brought the name back, for its removal was not durable, and not what
        // was synced since.] That is durable then, and the file gone.
        self.commit()
    }

    fn sync_data(&self) -> io::Result<()> {
        let synced = self.flush.run();
        if synced.is_err() && !bug!(FailedSyncOfOne) {
            self.fail();
        }
        synced
    }

    /// Makes everything durable that was done before the call. The device fails if that fails.
    pub(crate) fn commit(&self) -> io::Result<()> {
        let mut journal = lock(&self.journal);
        if self.has_failed() {
            return Err(failed());
        }
        self.commit_to(&mut journal).inspect_err(|_| self.fail())
    }

    fn commit_to(&self, journal: &mut Journal) -> io::Result<()> {
        let mut changes = Vec::new();
        let mut names = lock(&self.names);
        for path in std::mem::take(&mut names.changed) {
            changes.push(match names.nodes.get(&path) {
                Some(Node::Dir) => Change::Dir(path),
                Some(Node::File(inode)) => Change::File(path, inode.id),
                None => Change::Nothing(path),
            });
        }
        let gone = std::mem::take(&mut names.gone);
        changes.extend(gone.iter().map(|inode| Change::Gone(inode.id)));
        let (mut freed, mut done) = (Vec::new(), Vec::new());
        // Whoever holds a map takes this lock: not held while maps are taken.
        let dirty = std::mem::take(&mut *lock(&self.dirty));
        for (id, inode) in dirty {
            if inode.is_gone() {
                continue;
            }
            // Whoever writes holds the map until the data is where a sync finds it.
            let mut map = inode.map_mut();
            freed.extend(map.take_changes(id, &mut changes));
            let version = map.version;
            drop(map);
            done.push((inode, version));
        }
        if changes.is_empty() {
            drop(names);
            return self.flush.run();
        }
        let body = journal::encode(&changes);
        let snapshot = (!journal.fits(body.len())).then(|| Self::snapshot(&names));
        drop(names);
        // What is mapped must not be what was there before.
        if !bug!(MapBeforeData) {
            self.flush.run()?;
        }
        match snapshot {
            Some(body) => {
                journal.write_snapshot(&body)?;
                self.flush.run()?;
                // Says that the snapshot was durable: without it nobody falls back to the one before unnoticed.
                journal.append(&[])?;
            }
            None => journal.append(&body)?,
        }
        self.flush.run()?;
        for (inode, version) in done {
            inode.durable.fetch_max(version, Ordering::SeqCst);
        }
        self.chunks.discard(freed);
        drop(gone);
        self.clear_garbage();
        Ok(())
    }

    /// Everything there is, as a record out of nothing.
    fn snapshot(names: &Names) -> Vec<u8> {
        let mut changes = Vec::new();
        for (path, node) in &names.nodes {
            match node {
                Node::Dir => changes.push(Change::Dir(path.clone())),
                Node::File(inode) => {
                    changes.push(Change::File(path.clone(), inode.id));
                    inode.map().all(inode.id, &mut changes);
                }
            }
        }
        journal::encode(&changes)
    }

    /// Tells the device which chunks hold nothing any more, as far as it wants to know, and makes them free.
    fn clear_garbage(&self) {
        self.chunks.clear_garbage(|first, count| {
            if self.keeps.load(Ordering::Relaxed) {
                return;
            }
            let len = u64::from(count) * CHUNK;
            if let Err(error) = self.bottom.punch(self.layout.data(first), len) {
                // It only costs the device's own housekeeping.
                let path = self.path.display();
                tracing::info!(%path, %error, "what is free is not discarded on this device");
                self.keeps.store(true, Ordering::Relaxed);
            }
        });
    }

    /// Looks whether `wanted` chunks can be had once what was let go is free. Nobody may hold a map.
    pub(crate) fn make_room(&self, wanted: u64) -> io::Result<()> {
        self.clear_garbage();
        if u64::from(self.chunks.free()) < wanted {
            self.commit()?;
        }
        match u64::from(self.chunks.free()) < wanted {
            true => Err(no_space()),
            false => Ok(()),
        }
    }
}
