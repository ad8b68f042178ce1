//! Changes of the map, as journal and snapshots hold them.

use sbk_wal::{Get, Put};

use crate::map::Chunk;

/// One change. Each says what is so from now on, not what is different: doing one twice is doing it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// There is a directory.
    Dir(String),
    /// There is a file of this name.
    File(String, u32),
    /// Nothing has this name.
    Nothing(String),
    /// A file has this length.
    Length(u32, u64),
    /// A file is gone, with all that it had.
    Gone(u32),
    /// A file has these chunks, by their place in it.
    Chunks(u32, Vec<(u32, Chunk)>),
    /// A file has no chunks there.
    Holes(u32, Vec<u32>),
}

const DIR: u8 = 1;
const FILE: u8 = 2;
const NOTHING: u8 = 3;
const LENGTH: u8 = 4;
const GONE: u8 = 5;
const CHUNKS: u8 = 6;
const HOLES: u8 = 7;

/// Longest path, in bytes.
pub(crate) const MAX_PATH: usize = 255;

fn put_path(out: &mut Put, path: &str) {
    debug_assert!(path.len() <= MAX_PATH);
    out.bytes(&[path.len() as u8]).bytes(path.as_bytes());
}

fn get_path(get: &mut Get<'_>) -> Option<String> {
    let len = get.array::<1>()?[0];
    String::from_utf8(get.slice(usize::from(len))?.to_vec()).ok()
}

impl Change {
    pub(crate) fn put(&self, out: &mut Put) {
        match self {
            Self::Dir(path) => put_path(out.bytes(&[DIR]), path),
            Self::File(path, id) => {
                put_path(out.bytes(&[FILE]), path);
                out.u32(*id);
            }
            Self::Nothing(path) => put_path(out.bytes(&[NOTHING]), path),
            Self::Length(id, len) => _ = out.bytes(&[LENGTH]).u32(*id).u64(*len),
            Self::Gone(id) => _ = out.bytes(&[GONE]).u32(*id),
            Self::Chunks(id, chunks) => {
                out.bytes(&[CHUNKS]).u32(*id).u32(chunks.len() as u32);
                for (index, chunk) in chunks {
                    out.u32(*index).u32(chunk.at).u64(chunk.written);
                }
            }
            Self::Holes(id, holes) => {
                out.bytes(&[HOLES]).u32(*id).u32(holes.len() as u32);
                holes.iter().for_each(|index| _ = out.u32(*index));
            }
        }
    }

    /// The next one; `None` if it makes no sense.
    pub(crate) fn get(get: &mut Get<'_>) -> Option<Self> {
        Some(match get.array::<1>()?[0] {
            DIR => Self::Dir(get_path(get)?),
            FILE => Self::File(get_path(get)?, get.u32()?),
            NOTHING => Self::Nothing(get_path(get)?),
            LENGTH => Self::Length(get.u32()?, get.u64()?),
            GONE => Self::Gone(get.u32()?),
            CHUNKS => {
                let (id, count) = (get.u32()?, get.u32()?);
                let mut chunk =
                    || Some((get.u32()?, Chunk { at: get.u32()?, written: get.u64()? }));
                Self::Chunks(id, (0..count).map(|_| chunk()).collect::<Option<_>>()?)
            }
            HOLES => {
                let (id, count) = (get.u32()?, get.u32()?);
                Self::Holes(id, (0..count).map(|_| get.u32()).collect::<Option<_>>()?)
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_as_they_were_written() {
        let path = || "a/b".to_owned();
        let chunk = Chunk { at: 7, written: 1 << 63 | 5 };
        let all = [
            Change::Dir(path()),
            Change::File(path(), 3),
            Change::Nothing(path()),
            Change::Length(3, 1 << 40),
            Change::Gone(3),
            Change::Chunks(3, vec![(0, chunk), (9, chunk)]),
            Change::Holes(3, vec![1, 2]),
        ];
        let mut out = Put::default();
        all.iter().for_each(|change| change.put(&mut out));
        let mut get = Get(&out.0);
        for change in &all {
            assert_eq!(Change::get(&mut get).as_ref(), Some(change));
        }
        assert!(get.0.is_empty());
        for len in 1..out.0.len() {
            let mut get = Get(&out.0[..len]);
            let count = std::iter::from_fn(|| Change::get(&mut get)).count();
            assert!(count < all.len());
        }
    }
}
