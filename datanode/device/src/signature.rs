//! What a device that is not ours holds.

/// Bytes at the head and at the end of a device that must be zeros before it is used. What is known keeps something in
/// one of them.
pub(crate) const LOOKED_AT: u64 = 1 << 20;

/// A magic, and where from the head on.
const HEAD: [(usize, &[u8], &str); 20] = [
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, b"XFSB", "an XFS file system"),
    (0, b"hsqs", "a squashfs"),
    (3, b"NTFS    ", "an NTFS file system"),
    (54, b"FAT1", "a FAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (0, b"bluestore block device", "a BlueStore device"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (512, b"LABELONE", "an LVM physical volume"),
    (0, b"LABELONE", "an LVM physical volume"),
    (1024, b"LABELONE", "an LVM physical volume"),
    (1536, b"LABELONE", "an LVM physical volume"),
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcache device"),
    (65_600, b"_BHRfS_M", "a btrfs file system"),
    (510, b"\x55\xaa", "a partition table or boot sector"),
];

/// A magic, and how far before the end.
const TAIL: [(usize, &[u8], &str); 2] = [
    (512, b"EFI PART", "the backup of a GPT partition table"),
    (8192, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
];

fn is_at(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..at + magic.len()) == Some(magic)
}

/// What is in these first and last bytes of a device; `None` if they are zeros.
pub(crate) fn recognise(head: &[u8], tail: &[u8]) -> Option<String> {
    for (at, magic, name) in HEAD {
        if is_at(head, at, magic) {
            return Some(format!("{name} (byte {at})"));
        }
    }
    for (before, magic, name) in TAIL {
        if tail.len().checked_sub(before).is_some_and(|at| is_at(tail, at, magic)) {
            return Some(format!("{name} ({before} bytes before its end)"));
        }
    }
    let other = |bytes: &[u8]| bytes.iter().position(|byte| *byte != 0);
    if let Some(at) = other(head) {
        return Some(format!("something unknown (byte {at} is not zero)"));
    }
    let at = other(tail)?;
    Some(format!(
        "something unknown ({} bytes before its end is one that is not zero)",
        tail.len() - at
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_nothing_and_everything_else_is_something() {
        let (head, tail) = (vec![0; LOOKED_AT as usize], vec![0; LOOKED_AT as usize]);
        assert_eq!(recognise(&head, &tail), None);
        for (at, magic, name) in HEAD {
            let mut head = head.clone();
            head[at..at + magic.len()].copy_from_slice(magic);
            assert!(recognise(&head, &tail).expect("found").starts_with(name));
        }
        for (before, magic, name) in TAIL {
            let mut tail = tail.clone();
            let at = tail.len() - before;
            tail[at..at + magic.len()].copy_from_slice(magic);
            assert!(recognise(&head, &tail).expect("found").starts_with(name));
        }
        for at in [0, 77_777, LOOKED_AT as usize - 1] {
            let mut some = head.clone();
            some[at] = 1;
            assert!(recognise(&some, &tail).expect("found").contains(&at.to_string()));
            assert!(recognise(&head, &some).is_some());
        }
    }
}
