//! `docs/on-disk-format.md` against the bytes of a replica: each field of each layout that it gives.
//! And files that are not the replica's own, or not of this version.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sbk_engine::replication::log::{EntryHeader, EntryKind, Origin, RequestTag};
use sbk_engine::types::{AttachGeneration, Epoch, Lba, Lsn, REGION_BLOCKS, SessionId};
use sbk_store::entry::entry_crc;
use sbk_store::{DataDir, Store};
use sbk_wal::{Memory, Storage, crc32c, is_zero};
use uuid::Uuid;

use super::backend::{Backend, Disk};
use super::content::{BLOCK, bytes_of};
use super::{driver, no_fork_meanwhile};

const DOCUMENT: &str = include_str!("../../../../docs/on-disk-format.md");

fn storage(disk: &Memory) -> Arc<dyn Storage> {
    Arc::new(disk.clone())
}

/// One field of a layout.
#[derive(Debug)]
struct Field {
    at: usize,
    bytes: usize,
    name: String,
    example: String,
}

/// The layouts that the document gives, by name.
fn layouts() -> BTreeMap<String, Vec<Field>> {
    let mut layouts: BTreeMap<String, Vec<Field>> = BTreeMap::new();
    let mut current = None;
    for line in DOCUMENT.lines() {
        if let Some(name) = line.strip_prefix("<!-- layout: ") {
            let name = name.strip_suffix(" -->").expect("the comment ends").to_owned();
            current = Some(name.clone());
            assert!(layouts.insert(name, Vec::new()).is_none(), "twice: {line}");
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        match (&current, &cells[..]) {
            (Some(name), [at, bytes, field, example]) => {
                if let (Ok(at), Ok(bytes)) = (at.parse(), bytes.parse()) {
                    let (name_of, example) = ((*field).to_owned(), (*example).to_owned());
                    let field = Field { at, bytes, name: name_of, example };
                    layouts.get_mut(name).expect("it was begun").push(field);
                }
            }
            _ => current = None,
        }
    }
    layouts
}

/// The bytes of an example, zeros behind a number.
fn parse(example: &str, bytes: usize) -> Vec<u8> {
    if let Some(text) = example.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        return text.as_bytes().to_vec();
    }
    if let Ok(id) = Uuid::parse_str(example) {
        return id.as_bytes().to_vec();
    }
    let parts: Vec<&str> = example.split(", ").collect();
    let each = bytes / parts.len();
    let mut out = Vec::new();
    for part in parts {
        let number: u64 = part.parse().unwrap_or_else(|_| panic!("no example: {example}"));
        let start = out.len();
        out.extend(number.to_le_bytes());
        out.resize(start + each, 0);
    }
    out
}

/// Compares `found` with a layout. `crcs` are those that it must have, by their offset.
fn compare(name: &str, fields: &[Field], found: &[u8], crcs: &[(usize, u32)]) {
    let mut at = 0;
    for field in fields {
        let context = format!("{name}, byte {}, {}", field.at, field.name);
        assert_eq!(field.at, at, "{context}: a gap");
        at += field.bytes;
        let bytes = &found[field.at..at];
        match &field.example[..] {
            "any" => {}
            "crc" => {
                let crc = crcs.iter().find(|(at, _)| *at == field.at);
                let (_, crc) = crc.unwrap_or_else(|| panic!("{context}: is it a checksum?"));
                assert_eq!(bytes, crc.to_le_bytes(), "{context}");
            }
            example => assert_eq!(bytes, parse(example, field.bytes), "{context}"),
        }
    }
    let behind = found.len() - at;
    assert!(is_zero(&found[at..]), "{name}: {behind} bytes behind the fields");
}

fn append(store: &mut Store, epoch: u64, kind: EntryKind, sequence: u64, payload: &Bytes) {
    let session = SessionId(Uuid::from_u128(0xc0));
    let origin = Some(Origin { tag: RequestTag { session, sequence }, low: 0 });
    let header = EntryHeader { epoch: Epoch(epoch), lsn: store.end().next(), kind, origin };
    let crc = entry_crc(&header, payload);
    store.append(header, crc, payload.clone()).expect("appended");
    while let Some(batch) = store.take_batch() {
        store.batch_done(batch.run()).expect("durable");
    }
}

/// The replica of the document's examples.
fn example() -> (Memory, Bytes) {
    let disk = Memory::new(1);
    let data = write_example(&storage(&disk));
    (disk, data)
}

fn write_example(storage: &Arc<dyn Storage>) -> Bytes {
    driver::create(storage, 0).expect("a replica");
    let (mut store, _) = driver::open(storage, 0).expect("a store");
    let data = bytes_of(&[77]);
    let attach = EntryKind::Attach { generation: AttachGeneration(5), exclusive: true };
    append(&mut store, 2, attach, 1, &Bytes::new());
    append(&mut store, 2, EntryKind::Write { lba: Lba(7), blocks: 1 }, 2, &data);
    store.set_committed(Lsn(2));
    let plan = store.plan_checkpoint(u64::MAX).expect("a checkpoint");
    store.checkpoint_done(plan.run()).expect("checkpointed");
    let mut kept = store.kept().clone();
    kept.fenced = Epoch(3);
    store.persist(&kept).expect("promised");
    append(&mut store, 3, EntryKind::Write { lba: Lba(8), blocks: 1 }, 3, &data);
    append(&mut store, 3, EntryKind::Write { lba: Lba(20), blocks: 3 }, 4, &bytes_of(&[78, 0, 79]));
    store.close_clean().expect("closed");
    data
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The newer slot of a file: its header, and its record.
fn newer_slot(content: &[u8]) -> (&[u8], &[u8]) {
    let (a, b) = content.split_at(content.len() / 2);
    let generation = |slot: &[u8]| u64::from_le_bytes(slot[16..24].try_into().expect("eight"));
    let slot = if generation(a) > generation(b) { a } else { b };
    (&slot[..32], &slot[32..32 + u32_at(slot, 24) as usize])
}

fn crc_of(parts: &[&[u8]]) -> u32 {
    crc32c(&parts.concat())
}

#[test]
fn the_document_describes_the_bytes() {
    let mut layouts = layouts();
    let mut check = |name: &str, found: &[u8], crcs: &[(usize, u32)]| {
        let fields = layouts.remove(name).unwrap_or_else(|| panic!("no layout {name}"));
        compare(name, &fields, found, crcs);
    };
    let (disk, data) = example();
    let file = |path: &str| disk.content(path).unwrap_or_else(|| panic!("no file {path}"));

    let content = file("superblock");
    assert_eq!(content.len(), 2 * 4096);
    let (slot, record) = newer_slot(&content);
    check("slot", slot, &[(12, crc_of(&[&slot[..12], &slot[16..], record]))]);
    check("superblock", record, &[]);
    let content = file("logstate");
    assert_eq!(content.len(), 2 * (1088 << 10));
    let (slot, record) = newer_slot(&content);
    assert_eq!(&slot[..8], b"SBKLGSTA");
    assert_eq!(u32_at(slot, 8), 2, "its version");
    check("logstate", record, &[]);

    let content = file("extents");
    check("image header", &content[..4096], &[(44, crc32c(&content[..44]))]);
    let others: [(&str, &[u8; 8]); 3] =
        [("shadow", b"SBKSHADW"), ("checksums", b"SBKCHKSM"), ("regions", b"SBKREGNS")];
    for (name, magic) in others {
        assert_eq!(&file(name)[..8], magic);
        assert_eq!(file(name)[8..44], content[8..44]);
    }
    assert_eq!(content[4096 + 7 * BLOCK..4096 + 8 * BLOCK], data);
    let stamps = file("checksums");
    let stamps_of = |block: usize| [0, 4].map(|home| u32_at(&stamps, 4096 + block * 8 + home));
    assert_eq!(stamps_of(7), [crc32c(&data), 0], "it is in the extents, and not in the shadow");
    assert_eq!(stamps_of(8), [0, 0], "block 8 is in the log only");
    // The payload of the last entry is in its place, and not current yet.
    let large = bytes_of(&[78, 0, 79]);
    assert_eq!(content[4096 + 20 * BLOCK..4096 + 23 * BLOCK], large);
    assert_eq!(stamps_of(20), [0, 0]);
    let sector = &file("regions")[4096..4096 + 512];
    check("regions sector", sector, &[(504, crc32c(&sector[..504]))]);

    let content = file("wal/0000000000000001.seg");
    let owner = content[16..48].to_vec();
    let header_crc = crc_of(&[&content[..12], &content[16..72]]);
    check("segment header", &content[..512], &[(12, header_crc)]);
    let frame = &content[512..512 + 56];
    let frame_crc = crc_of(&[&owner, &frame[8..]]);
    let record_crc = crc32c(&content[568..568 + 80]);
    check("frame", frame, &[(4, frame_crc), (8, header_crc), (12, record_crc)]);
    let second = &content[1024..];
    assert_eq!(u32_at(second, 8), frame_crc, "the second frame names the first");
    check("entry", &second[56..56 + 80], &[]);
    assert_eq!(second[136..136 + BLOCK], data);
    let reference = &content[10240 + 56..10240 + 512];
    let session = SessionId(Uuid::from_u128(0xc0));
    let origin = Some(Origin { tag: RequestTag { session, sequence: 4 }, low: 0 });
    let kind = EntryKind::Write { lba: Lba(20), blocks: 3 };
    let header = EntryHeader { epoch: Epoch(3), lsn: Lsn(4), kind, origin };
    let stamp = |block: usize| crc32c(&large[block * BLOCK..(block + 1) * BLOCK]);
    let crcs = [(80, entry_crc(&header, &large)), (84, stamp(0)), (92, stamp(2))];
    check("reference", reference, &crcs);

    let _alone = no_fork_meanwhile();
    let dir = tempfile::tempdir().expect("a directory");
    drop(DataDir::open(dir.path()).expect("made"));
    drop(DataDir::open(dir.path()).expect("started again"));
    let content = std::fs::read(dir.path().join("node")).expect("the file");
    let (slot, record) = newer_slot(&content);
    assert_eq!(&slot[..8], b"SBKNODE\0");
    check("node", record, &[]);

    let sealed = Disk::new(Backend::Sealed, 1);
    write_example(&sealed.storage().expect("a disk"));
    let storage = sealed.storage().expect("a disk");
    let mut sector = vec![0; 512];
    let regions = storage.open("regions").expect("it");
    sbk_wal::read_exact(&*regions, &mut sector, 4096, false).expect("read");
    check("proven sector", &sector, &[]);
    let tags = storage.authenticator().expect("it is encrypted");
    assert_eq!(sector[496..], tags.tag(&[b"sector  ", &0u64.to_le_bytes(), &sector[..496]]));
    let mut stamps = vec![0; 256 * 16];
    let checksums = storage.open("checksums").expect("it");
    sbk_wal::read_exact(&*checksums, &mut stamps, 4096, true).expect("read");
    let stamp = &tags.tag(&[b"block   ", &7u64.to_le_bytes(), &data])[..8];
    assert_eq!((&stamps[7 * 16..][..8], &stamps[7 * 16 + 8..][..8]), (stamp, &[0; 8][..]));
    let values: Vec<u8> = stamps.chunks(16).flat_map(|both| both[..8].to_vec()).collect();
    let digest = tags.tag(&[b"region  ", &0u64.to_le_bytes(), &values]);
    assert_eq!(sector[24..32], digest[..8]);

    let disk = Disk::new(Backend::Device, 1);
    drop(disk.storage().expect("a device"));
    let content = disk.content("device").expect("it");
    let header = &content[..4096];
    assert_eq!(header, &content[content.len() - 4096..]);
    check("device header", header, &[(12, crc_of(&[&header[..12], &header[16..88]]))]);
    let journal = 4096 + 2 * u32_at(header, 64) as usize;
    let record = &content[journal..journal + 4096];
    let crc = crc_of(&[&header[16..32], &record[..8], &record[12..49]]);
    check("device record", record, &[(8, crc)]);
    assert!(layouts.is_empty(), "nobody compares {layouts:?}");
}

#[test]
fn the_document_names_every_file() {
    let (disk, _) = example();
    for path in disk.paths() {
        let known = match path.split_once('/') {
            None => DOCUMENT.contains(&format!("    {path} ")),
            Some(("wal", name)) => name.ends_with(".seg") || name.ends_with(".spare"),
            Some(_) => false,
        };
        assert!(known, "{path} is in no document");
    }
    // The memory of the region table.
    let table = 8 * (1 << 30) / (REGION_BLOCKS * 4096);
    assert!(DOCUMENT.contains(&format!("8 for each region: {table} for each GiB of volume")));
}

/// A file of another replica is refused by name, whichever it is, and so is one of a newer version.
#[test]
fn files_of_others_and_of_newer_versions_are_refused() {
    let (disk, _) = example();
    let other = Memory::new(2);
    driver::create(&storage(&other), 1).expect("another replica");
    let (store, _) = driver::open(&storage(&other), 1).expect("a store");
    let mut store = store;
    let trim = EntryKind::Trim { lba: Lba(1), blocks: 1 };
    append(&mut store, 1, trim, 1, &Bytes::new());
    store.close_clean().expect("closed");

    let replace = |path: &str, content: &[u8]| {
        let disk = disk.fork();
        disk.remove(path).expect("it was there");
        let file = disk.create(path).expect("made");
        sbk_wal::write_all(&*file, &[content], 0).expect("written");
        disk
    };
    let refused = |disk: &Memory| match driver::open(&storage(disk), 0) {
        Ok(_) => panic!("it was taken"),
        Err(error) => error.to_string(),
    };
    let segment = "wal/0000000000000001.seg";
    for path in ["superblock", "logstate", "extents", "shadow", "checksums", "regions", segment] {
        let theirs = other.content(path).expect("it is there");
        let message = refused(&replace(path, &theirs));
        let ids = [0, 1].map(|n| driver::identity(n).replica.to_string());
        assert!(message.contains(path), "{path}: {message}");
        assert!(ids.iter().all(|id| message.contains(id)), "{path}: {message}");

        // A newer version, with the checksums that it would have.
        let mut newer = disk.content(path).expect("it is there");
        let image = |path| ["extents", "shadow", "checksums", "regions"].contains(&path);
        let ours = if path == "logstate" || image(path) { 2 } else { 1 };
        let version = ours + 1;
        match path {
            "superblock" | "logstate" => {
                let half = newer.len() / 2;
                for slot in newer.chunks_mut(half) {
                    let end = 32 + u32_at(slot, 24) as usize;
                    slot[8] = version;
                    let crc = crc_of(&[&slot[..12], &slot[16..end]]);
                    slot[12..16].copy_from_slice(&crc.to_le_bytes());
                }
            }
            _ if path == segment => {
                newer[8] = version;
                let crc = crc_of(&[&newer[..12], &newer[16..72]]);
                newer[12..16].copy_from_slice(&crc.to_le_bytes());
            }
            _ => {
                newer[8] = version;
                let crc = crc32c(&newer[..44]);
                newer[44..48].copy_from_slice(&crc.to_le_bytes());
            }
        }
        let message = refused(&replace(path, &newer));
        let told = message.contains(path) && message.contains(&format!("version {version}"));
        assert!(told && message.contains(&format!("up to {ours}")), "{path}: {message}");
        // The image of version 1 had one home for each block, and other stamps.
        if image(path) {
            newer[8] = 1;
            let crc = crc32c(&newer[..44]);
            newer[44..48].copy_from_slice(&crc.to_le_bytes());
            let message = refused(&replace(path, &newer));
            let told = message.contains(path) && message.contains("version 1");
            assert!(told && message.contains("reads only 2"), "{path}: {message}");
        }
    }
}
