//! A device as a whole: whose it is, and the directories on it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sbk_wal::{Authenticator, RawFile, Storage, is_zero, read_exact, write_all};
use uuid::Uuid;

use crate::error::DeviceError;
use crate::file::OpenFile;
use crate::layout::{CHUNK, Found, Header, Layout, PAGE, last_header};
use crate::load::load;
use crate::signature::{LOOKED_AT, recognise};
use crate::volume::Volume;

/// How a device is set up, where that is not known from its size.
#[derive(Clone, Copy, Debug, Default)]
pub struct FormatOptions {
    /// Bytes of the journal; small ones are for tests.
    pub journal_bytes: Option<u64>,
}

/// A device that holds files of one node.
#[derive(Debug)]
pub struct Device {
    bottom: Arc<dyn RawFile>,
    path: PathBuf,
    header: Header,
    volume: Mutex<Arc<Volume>>,
}

impl Device {
    /// Opens the device in `bottom`, known to people as `path`, if it was set up; for whichever node that was, unless `node` says for
    /// whom. `None` if it may be set up: its first and last MiB are zeros. Takes time in proportion to the map: 16 bytes for each chunk
    /// of 256 KiB in use, and the journal. Blocks.
    ///
    /// # Errors
    /// It holds something else, is another node's, of a newer version, smaller than it was, too small, or damaged; then nothing on it
    /// is changed. Or it can't be read or written.
    pub fn find(
        bottom: Arc<dyn RawFile>,
        path: &Path,
        node: Option<Uuid>,
    ) -> Result<Option<Self>, DeviceError> {
        let opening = Opening { bottom: &*bottom, path };
        let Some(header) = opening.header(node)? else { return Ok(None) };
        Self::load(bottom, path, header).map(Some)
    }

    /// Sets a device up for `node`, and opens it. It is called `id` from then on. One that was set up before, for whomever,
    /// and on which nothing was ever made (for that was cut short) is set up anew. Blocks.
    ///
    /// # Errors
    /// As [`Device::find`]'s; or there are files on it.
    pub fn make(
        bottom: Arc<dyn RawFile>,
        path: &Path,
        id: Uuid,
        node: Uuid,
        options: FormatOptions,
    ) -> Result<Self, DeviceError> {
        if let Some(found) = Self::find(Arc::clone(&bottom), path, None)?
            && !found.is_empty()
        {
            let (path, found) = (path.to_owned(), format!("files of node {}", found.node()));
            return Err(DeviceError::Foreign { path, found });
        }
        let header = Opening { bottom: &*bottom, path }.format(id, node, options)?;
        Self::load(bottom, path, header)
    }

    fn load(bottom: Arc<dyn RawFile>, path: &Path, header: Header) -> Result<Self, DeviceError> {
        // The copy that may be missing.
        Opening { bottom: &*bottom, path }.write_header(&header)?;
        let loaded = load(&bottom, &header, path)?;
        let volume = Volume::new(Arc::clone(&bottom), path.to_owned(), loaded);
        let path = path.to_owned();
        let device = Self { bottom, path, header, volume: Mutex::new(Arc::new(volume)) };
        let (free, used) = device.space();
        let shown = device.path.display();
        tracing::info!(path = %shown, device = %header.device, free, used, "opened a device");
        Ok(device)
    }

    /// What it was called when it was set up.
    pub fn id(&self) -> Uuid {
        self.header.device
    }

    /// Whose it is.
    pub fn node(&self) -> Uuid {
        self.header.node
    }

    /// Whether nothing has a name on it.
    pub fn is_empty(&self) -> bool {
        self.volume().is_empty()
    }

    /// The device's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn volume(&self) -> Arc<Volume> {
        Arc::clone(&self.volume.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// After a failure everything that is open on the device fails, and only what is durable counts. This reads it again, so
    /// that files can be opened anew. Blocks for as long as an opening if there was one.
    fn revived(&self) -> io::Result<Arc<Volume>> {
        let mut volume = self.volume.lock().unwrap_or_else(PoisonError::into_inner);
        if volume.has_failed() {
            // What was under way may write to what is somebody else's then.
            volume.drain();
            let loaded =
                load(&self.bottom, &self.header, &self.path).map_err(|error| match error {
                    DeviceError::Io { source, .. } => source,
                    other => io::Error::other(other),
                })?;
            *volume = Arc::new(Volume::new(Arc::clone(&self.bottom), self.path.clone(), loaded));
            let path = self.path.display();
            tracing::warn!(%path, "a write or a sync of the device had failed; it was read again");
        }
        Ok(Arc::clone(&volume))
    }

    /// The files below a directory; `""` is the root. Valid until the device fails: whoever is told of a failure asks again.
    ///
    /// # Errors
    /// The device failed before, and can't be read again.
    pub fn directory(&self, dir: &str) -> io::Result<Directory> {
        Ok(Directory { volume: self.revived()?, dir: dir.to_owned() })
    }

    /// Makes a directory in the root, durably, unless it is there.
    pub fn create_dir(&self, dir: &str) -> io::Result<()> {
        let volume = self.revived()?;
        volume.create_dir(dir)?;
        volume.sync_names("")
    }

    /// Removes a directory in the root and all that is in it, at once and durably. Does nothing if there is none.
    pub fn remove_dir(&self, dir: &str) -> io::Result<()> {
        self.revived()?.remove_tree(dir)
    }

    /// Looks whether the device is still as large as it was. [One that had become shorter took all that lay at its beginning, and
    /// passed for one that works.]
    ///
    /// # Errors
    /// It is not, or can't be asked.
    pub fn check_size(&self) -> Result<(), DeviceError> {
        Opening { bottom: &*self.bottom, path: &self.path }.check_size(&self.header)
    }

    /// Bytes that are free, and bytes that files take, both in whole chunks.
    pub fn space(&self) -> (u64, u64) {
        let volume = self.volume();
        let free = u64::from(volume.chunks.free()) + u64::from(volume.chunks.waiting());
        let used = u64::from(volume.chunks.count()) - free;
        (free * CHUNK, used * CHUNK)
    }
}

/// A device before it is known what it holds.
struct Opening<'a> {
    bottom: &'a dyn RawFile,
    path: &'a Path,
}

impl Opening<'_> {
    fn io(&self, doing: &'static str) -> impl Fn(io::Error) -> DeviceError + use<> {
        let path = self.path.to_owned();
        move |source| DeviceError::Io { doing, path: path.clone(), source }
    }

    fn size(&self) -> Result<u64, DeviceError> {
        self.bottom.len().map_err(self.io("ask the size of"))
    }

    fn read(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        read_exact(self.bottom, &mut bytes, at, true)?;
        Ok(bytes)
    }

    /// The header, from one of its places, if it is the node's; `None` if the device may be set up.
    fn header(&self, node: Option<Uuid>) -> Result<Option<Header>, DeviceError> {
        let size = self.size()?;
        let path = || self.path.to_owned();
        let looked = |at| self.read(at, PAGE).map(|bytes| Header::decode(&bytes));
        let (first, last) = (looked(0), looked(last_header(size)));
        let first_zeros = || self.read(0, PAGE).is_ok_and(|bytes| is_zero(&bytes));
        let found = match (first, last) {
            (Ok(Found::Valid(header)), _) => header,
            (Ok(Found::Newer(found)), _) => {
                let expected = Header::version();
                return Err(DeviceError::Newer { path: path(), found, expected });
            }
            // Only where it would have been written for this size, and not if somebody else's things are at the head: a
            // file system that was made over ours leaves the end as it was.
            (Ok(Found::Damaged) | Err(_), Ok(Found::Valid(header))) if header.ends_at(size) => {
                header
            }
            (Ok(Found::Other), Ok(Found::Valid(header)))
                if header.ends_at(size) && first_zeros() =>
            {
                header
            }
            (Err(error), _) | (_, Err(error)) => return Err(self.io("read")(error)),
            (Ok(Found::Damaged), _) => {
                let what = "neither its first nor its last page is a whole header".to_owned();
                return Err(DeviceError::Damaged { path: path(), what });
            }
            (Ok(Found::Other), _) => {
                let head = self.read(0, LOOKED_AT).map_err(self.io("read"))?;
                let tail = self.read(size.saturating_sub(LOOKED_AT), LOOKED_AT);
                let tail = tail.map_err(self.io("read"))?;
                return match recognise(&head, &tail) {
                    Some(found) => Err(DeviceError::Foreign { path: path(), found }),
                    // With no medium in it a device has no bytes.
                    None => Layout::new(size, Some(2 * PAGE), self.path).map(|_| None),
                };
            }
        };
        if let Some(expected) = node.filter(|node| *node != found.node) {
            let found = found.node;
            return Err(DeviceError::OtherNode { path: path(), found, expected });
        }
        self.check_size(&found)?;
        Ok(Some(found))
    }

    fn check_size(&self, header: &Header) -> Result<(), DeviceError> {
        let (found, expected) = (self.size()?, header.layout.bytes);
        match found < expected {
            true => Err(DeviceError::Shrunk { path: self.path.to_owned(), found, expected }),
            false => Ok(()),
        }
    }

    /// Makes the device the node's. It is from the first copy of its header on: generation 0 of its map begins with
    /// nothing, and what lies where records will be has no checksum of this device's.
    fn format(
        &self,
        device: Uuid,
        node: Uuid,
        options: FormatOptions,
    ) -> Result<Header, DeviceError> {
        let layout = Layout::new(self.size()?, options.journal_bytes, self.path)?;
        let header = Header { device, node, layout };
        self.write_header(&header)?;
        self.bottom.sync().map_err(self.io("sync"))?;
        let path = self.path.display();
        tracing::info!(%path, device = %header.device, bytes = layout.bytes, "set up a device");
        Ok(header)
    }

    fn write_header(&self, header: &Header) -> Result<(), DeviceError> {
        let bytes = header.encode();
        for at in header.layout.headers() {
            write_all(self.bottom, &[&bytes], at).map_err(self.io("write"))?;
        }
        Ok(())
    }
}

/// The files below one directory of a device.
#[derive(Clone, Debug)]
pub struct Directory {
    volume: Arc<Volume>,
    dir: String,
}

impl Directory {
    fn path(&self, path: &str) -> String {
        match (self.dir.as_str(), path) {
            ("", path) => path.to_owned(),
            (dir, "") => dir.to_owned(),
            (dir, path) => format!("{dir}/{path}"),
        }
    }

    fn file(&self, inode: Arc<crate::volume::Inode>) -> Arc<dyn RawFile> {
        Arc::new(OpenFile::new(Arc::clone(&self.volume), inode))
    }
}

impl Storage for Directory {
    fn unit(&self) -> u64 {
        CHUNK
    }

    fn authenticator(&self) -> Option<Arc<dyn Authenticator>> {
        None
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.volume.create_dir(&self.path(path))
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn RawFile>> {
        Ok(self.file(self.volume.create(&self.path(path))?))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn RawFile>> {
        Ok(self.file(self.volume.open(&self.path(path))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.volume.rename(&self.path(from), &self.path(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.volume.remove(&self.path(path))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.volume.list(&self.path(dir))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.volume.sync_names(&self.path(dir))
    }

    fn describe(&self, path: &str) -> PathBuf {
        self.volume.path.join(self.path(path))
    }
}
