//! What outlives the process that serves a kernel device: which device it is, and as whom the volume was
//! attached.
//!
//! The device's user (a file system, say) believes that the volume holds what it read and wrote. So a process
//! goes on with a device only if it is the one that was connected for this volume, and if the attachment of the
//! process before has held the volume ever since and no loss was counted. The first is told by an identifier that the kernel keeps with the
//! device, the second by the attachment that the new one [follows](sbk_datanode::frontend::Frontends::attach_as).
//!
//! The record is written before a session asks to attach, and again when its attachment stands, before it
//! serves a request: whenever the process is killed, the next one knows what the volume's log may hold of it.
//! [It was killed when its attachment was logged and not yet noted; the next one named the attachment of before,
//! and was refused for its own.]

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sbk_datanode::frontend::Attachment;
use sbk_engine::types::{SessionId, VolumeId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::kernel;

/// A device of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hold {
    /// The volume's name.
    pub(super) volume: String,
    /// Its UUID.
    pub(super) id: VolumeId,
    /// What the kernel was told with the device, and tells: the device is the one that has it.
    pub(super) identifier: String,
    /// The newest session that attached, or may have asked to.
    pub(super) session: SessionId,
    /// Whose place it was to take.
    pub(super) follows: Option<Attachment>,
    /// Its attachment; none if it is not known to stand, and then nothing was asked for in its name.
    pub(super) stands: Option<Attachment>,
}

impl Hold {
    /// For a device that is yet to be connected.
    pub(super) fn new(volume: &str, id: VolumeId) -> Self {
        Self {
            volume: volume.to_owned(),
            id,
            // The kernel may have a device of this volume that is not ours to go on with.
            identifier: format!("sbk:{id}:{}", Uuid::new_v4()),
            session: SessionId(Uuid::new_v4()),
            follows: None,
            stands: None,
        }
    }

    /// For the next process: a session of its own takes the place of the one whose attachment stands. One
    /// that is not known to is asked for again, under its name.
    pub(super) fn next(&self) -> Self {
        match self.stands {
            None => self.clone(),
            Some(stands) => Self {
                session: SessionId(Uuid::new_v4()),
                follows: Some(stands),
                stands: None,
                ..self.clone()
            },
        }
    }

    /// Its device, if the kernel still has it.
    pub(super) fn device(&self) -> anyhow::Result<Option<u32>> {
        kernel::find(&self.identifier).context("looking for the device in /sys/block")
    }

    /// Notes it. A reader sees all of a record or nothing of it.
    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let path = path(dir, self.id);
        let new = path.with_extension("device-new");
        let bytes = serde_json::to_vec(self).context("writing the device's record")?;
        let put = std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, &path));
        put.with_context(|| format!("writing {}", path.display()))
    }

    /// Forgets it: the kernel has no such device any more.
    pub(super) fn remove(&self, dir: &Path) -> anyhow::Result<()> {
        let path = path(dir, self.id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// What was noted of a volume.
    pub(super) fn read(dir: &Path, id: VolumeId) -> anyhow::Result<Option<Self>> {
        let path = path(dir, id);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("reading {}", path.display()))?,
        };
        let hold = serde_json::from_slice(&bytes);
        // Without it nobody knows whether the device may be gone on with.
        Ok(Some(hold.with_context(|| format!("{} is no record of a device", path.display()))?))
    }

    /// What was noted of the volume of that name or UUID.
    pub(super) fn find(dir: &Path, volume: &str) -> anyhow::Result<Option<Self>> {
        let listed =
            std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
        for entry in listed {
            let path = entry.context("reading the run directory")?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let id = name.and_then(|name| name.strip_suffix(".device")?.parse().ok());
            let Some(hold) = id.map(|id| Self::read(dir, id)).transpose()?.flatten() else {
                continue;
            };
            if hold.volume == volume || hold.id.to_string() == volume {
                return Ok(Some(hold));
            }
        }
        Ok(None)
    }
}

fn path(dir: &Path, id: VolumeId) -> PathBuf {
    dir.join(format!("{id}.device"))
}

#[cfg(test)]
mod tests {
    use sbk_engine::types::{AttachGeneration, LossGeneration};

    use super::*;

    fn attachment(session: SessionId, generation: u64) -> Attachment {
        let (generation, loss_generation) = (AttachGeneration(generation), LossGeneration(1));
        Attachment { session, generation, loss_generation }
    }

    #[test]
    fn the_next_process_follows_what_stands_and_repeats_what_may_not() {
        let first = Hold::new("db", VolumeId(Uuid::from_u128(7)));
        assert_ne!(first.identifier, Hold::new("db", first.id).identifier);
        let own = attachment(first.session, 5);
        let stands = Hold { stands: Some(own), ..first.clone() };
        let next = stands.next();
        assert_eq!((next.follows, next.stands), (Some(own), None));
        assert_ne!(next.session, first.session);
        assert_eq!(next.identifier, first.identifier);
        // Killed before it knew: whatever the log holds of that session, no other may ask.
        assert_eq!(next.next(), next);
    }

    #[test]
    fn a_record_is_found_by_name_and_id_until_it_is_removed() {
        let dir = tempfile::tempdir().expect("dir");
        let dir = dir.path();
        let hold = Hold::new("db", VolumeId(Uuid::from_u128(7)));
        assert_eq!(Hold::read(dir, hold.id).expect("reads"), None);
        hold.write(dir).expect("writes");
        std::fs::write(dir.join("other.json"), "{}").expect("writes");
        for name in ["db", &hold.id.to_string()] {
            assert_eq!(Hold::find(dir, name).expect("reads"), Some(hold.clone()));
        }
        assert_eq!(Hold::find(dir, "d").expect("reads"), None);
        assert_eq!(hold.device().expect("looks"), None, "no kernel has that device");
        std::fs::write(path(dir, hold.id), "{").expect("writes");
        Hold::read(dir, hold.id).expect_err("a damaged record is not taken for none");
        hold.remove(dir).expect("removes");
        assert_eq!(Hold::find(dir, "db").expect("reads"), None);
    }
}
