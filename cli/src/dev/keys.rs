//! The key file of a development cluster.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A new key, as it stands in a key file.
fn draw() -> io::Result<String> {
    let mut key = [0; 32];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut key))?;
    Ok(key.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Puts a new key first into a key file. Its node goes by it once it is started again; until then, and for
/// replicas that it did not open since, it needs the others.
pub(crate) fn add(path: &Path) -> io::Result<()> {
    let old = std::fs::read_to_string(path)?;
    replace(path, &format!("{}\n{old}", draw()?))
}

/// Leaves nothing in a key file but its first key.
pub(crate) fn keep_first(path: &Path) -> io::Result<()> {
    let old = std::fs::read_to_string(path)?;
    let first = old.lines().next().unwrap_or_default();
    replace(path, &format!("{first}\n"))
}

/// In one step, for a node may be started at any time.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.to_owned().into_os_string();
    name.push(".new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&name)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&name, path)
}

/// Makes a key file with a key, for its owner alone, unless there is one. Returns its full path.
pub(super) fn make(path: &Path) -> io::Result<PathBuf> {
    let hex = draw()?;
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => writeln!(file, "{hex}")?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e),
    }
    path.canonicalize()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_key_goes_first_and_the_others_can_be_dropped() {
        let dir = tempfile::tempdir().expect("dir");
        let path = make(&dir.path().join("keys")).expect("made");
        let read = || std::fs::read_to_string(&path).expect("reads");
        let first = read();
        add(&path).expect("adds");
        let both = read();
        assert!(both.ends_with(&first) && both.lines().count() == 2, "{both}");
        keep_first(&path).expect("drops");
        assert_eq!(read().lines().collect::<Vec<_>>(), [both.lines().next().expect("two")]);
        let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
