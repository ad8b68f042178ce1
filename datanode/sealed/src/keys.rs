//! The keys that replicas' keys are wrapped with, and what is derived from those.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac};
use sbk_wal::{Authenticator, Tag};
use zeroize::Zeroizing;

/// Most bytes of a key file: some hundreds of keys.
const MAX_FILE: u64 = 64 << 10;
const KEY: usize = 32;
/// What a wrapped key takes: the nonce, the key, and the tag.
pub(crate) const WRAPPED: usize = NONCE_LEN + KEY + 16;

/// Which key of a key file it is: the first 8 bytes of a hash of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId(pub(crate) [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a key file can't be used. None of them tells anything of a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The operating system said no.
    #[error("cannot read the key file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// Others than its owner may read or write it.
    #[error("the key file {path} has mode {mode:04o}: others may read it; `chmod 600` it")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A line is no key.
    #[error(
        "line {line} of the key file {path} is no key: a key is 64 hexadecimal digits, as \
         `openssl rand -hex 32` prints them"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A key stands there twice.
    #[error("line {line} of the key file {path} is a key that stands above it already")]
    Twice {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// There is no key in it.
    #[error("there is no key in the key file {path}; `openssl rand -hex 32` prints one")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It is longer than any key file.
    #[error("{path} has more than {MAX_FILE} bytes: it is no key file")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
}

/// The keys of a key file. Replicas' keys are wrapped with the first; the others open what was wrapped
/// with them before.
pub struct KeyRing {
    keys: Vec<(KeyId, LessSafeKey)>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(id, _)| id)).finish()
    }
}

impl KeyRing {
    /// Reads a key file: a key a line, 64 hexadecimal digits; empty lines and those that begin with `#` count for
    /// nothing. It must be readable by its owner only.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Open { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_FILE {
            return Err(KeyError::TooLong { path: path.to_owned() });
        }
        Self::parse(&text, path)
    }

    /// From what stands in a key file; `path` is for errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self, KeyError> {
        let mut keys: Vec<(KeyId, LessSafeKey)> = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let (line, at) = (line.trim(), at + 1);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key =
                from_hex(line).ok_or_else(|| KeyError::Line { path: path.to_owned(), line: at })?;
            let hash = digest::digest(&digest::SHA256, &[&b"sbk key id"[..], &*key].concat());
            let id = KeyId(hash.as_ref()[..8].try_into().expect("of 32 bytes"));
            if keys.iter().any(|(other, _)| *other == id) {
                return Err(KeyError::Twice { path: path.to_owned(), line: at });
            }
            keys.push((id, wrapping(&key)));
        }
        if keys.is_empty() {
            return Err(KeyError::Empty { path: path.to_owned() });
        }
        Ok(Self { keys })
    }

    /// The key that replicas' keys are wrapped with.
    pub fn first(&self) -> KeyId {
        self.keys[0].0
    }

    /// All of them, in the file's order.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(|(id, _)| *id)
    }

    /// Wraps a key with the first, bound to `context`.
    pub(crate) fn wrap(&self, key: &DataKey, context: &[u8]) -> io::Result<[u8; WRAPPED]> {
        let mut out = [0; WRAPPED];
        random(&mut out[..NONCE_LEN])?;
        let nonce = Nonce::assume_unique_for_key(out[..NONCE_LEN].try_into().expect("its length"));
        let mut sealed = Zeroizing::new(key.0.to_vec());
        let tag = self.keys[0]
            .1
            .seal_in_place_separate_tag(nonce, Aad::from(context), &mut sealed)
            .expect("32 bytes are not too many");
        out[NONCE_LEN..NONCE_LEN + KEY].copy_from_slice(&sealed);
        out[NONCE_LEN + KEY..].copy_from_slice(tag.as_ref());
        Ok(out)
    }

    /// What `wrap` made with the key `id`. `Err` if the ring does not have that; `Ok(None)` if it was not made for `context`, or
    /// not with that key.
    pub(crate) fn unwrap(
        &self,
        id: KeyId,
        wrapped: &[u8; WRAPPED],
        context: &[u8],
    ) -> Result<Option<DataKey>, Unknown> {
        let (_, key) = self.keys.iter().find(|(known, _)| *known == id).ok_or(Unknown)?;
        let nonce = wrapped[..NONCE_LEN].try_into().expect("its length");
        let nonce = Nonce::assume_unique_for_key(nonce);
        let mut sealed = Zeroizing::new(wrapped[NONCE_LEN..].to_vec());
        let opened = key.open_in_place(nonce, Aad::from(context), &mut sealed);
        Ok(opened.ok().map(|key| DataKey(Zeroizing::new((&*key).try_into().expect("its length")))))
    }
}

/// The ring does not have the key.
#[derive(Debug)]
pub(crate) struct Unknown;

/// A replica's key.
pub(crate) struct DataKey(Zeroizing<[u8; KEY]>);

impl DataKey {
    /// A new one.
    pub(crate) fn random() -> io::Result<Self> {
        let mut key = Zeroizing::new([0; KEY]);
        random(&mut *key)?;
        Ok(Self(key))
    }

    /// The two keys of XTS for one kind of file.
    pub(crate) fn of_files(&self, kind: &str) -> Zeroizing<[u8; 64]> {
        self.derived(&[b"sbk files ", kind.as_bytes()])
    }

    /// The key that proves what is in them.
    pub(crate) fn of_tags(&self) -> TagKey {
        TagKey(hmac::Key::new(hmac::HMAC_SHA256, &*self.derived(&[b"sbk tags"])))
    }

    fn derived(&self, info: &[&[u8]]) -> Zeroizing<[u8; 64]> {
        struct Len;
        impl KeyType for Len {
            fn len(&self) -> usize {
                64
            }
        }
        let mut out = Zeroizing::new([0; 64]);
        Prk::new_less_safe(HKDF_SHA256, &*self.0)
            .expand(info, Len)
            .and_then(|okm| okm.fill(&mut *out))
            .expect("64 bytes are not too many");
        out
    }
}

/// Tags what a replica writes: HMAC-SHA256, cut to its first 128 bits.
pub(crate) struct TagKey(hmac::Key);

impl fmt::Debug for TagKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TagKey")
    }
}

impl Authenticator for TagKey {
    fn tag(&self, parts: &[&[u8]]) -> Tag {
        let mut context = hmac::Context::with_key(&self.0);
        parts.iter().for_each(|part| context.update(part));
        context.sign().as_ref()[..size_of::<Tag>()].try_into().expect("of 32 bytes")
    }
}

fn random(out: &mut [u8]) -> io::Result<()> {
    SystemRandom::new().fill(out).map_err(|_| io::Error::other("the system gives no random bytes"))
}

fn wrapping(key: &Zeroizing<[u8; KEY]>) -> LessSafeKey {
    // Not the key itself, which may be used for something else as well.
    let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &**key), b"sbk wraps keys");
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, derived.as_ref()).expect("its length"))
}

fn from_hex(text: &str) -> Option<Zeroizing<[u8; KEY]>> {
    let mut out = Zeroizing::new([0; KEY]);
    if text.len() != 2 * KEY || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(digits).expect("ASCII");
        *byte = u8::from_str_radix(digits, 16).expect("two digits");
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn ring(keys: &[&str]) -> KeyRing {
        KeyRing::parse(&keys.join("\n"), Path::new("keys")).expect("keys")
    }

    fn key(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    #[test]
    fn a_key_is_opened_with_the_key_and_the_context_that_it_was_wrapped_with() {
        let (a, b) = (key('a'), key('b'));
        let (old, new) = (ring(&[&a]), ring(&[&b, &a]));
        let data = DataKey::random().expect("random");
        let wrapped = old.wrap(&data, b"here").expect("wrapped");
        let opened = new.unwrap(old.first(), &wrapped, b"here").expect("known").expect("fits");
        assert_eq!(*opened.0, *data.0);
        assert!(new.unwrap(old.first(), &wrapped, b"there").expect("known").is_none());
        assert!(new.unwrap(new.first(), &wrapped, b"here").expect("known").is_none());
        ring(&[&b]).unwrap(old.first(), &wrapped, b"here").map(drop).expect_err("not known");
        for bit in 0..8 * WRAPPED {
            let mut flipped = wrapped;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(old.unwrap(old.first(), &flipped, b"here").expect("known").is_none(), "{bit}");
        }
        assert_ne!(wrapped, old.wrap(&data, b"here").expect("wrapped"), "each has its own nonce");
    }

    #[test]
    fn each_kind_of_file_and_each_replica_has_its_own() {
        let (one, two) = (DataKey::random().expect("random"), DataKey::random().expect("random"));
        let all = [one.of_files("wal"), one.of_files("extents"), two.of_files("wal")];
        assert!(all[0] != all[1] && all[0] != all[2]);
        assert_eq!(one.of_files("wal"), all[0]);
    }

    #[test]
    fn a_key_file_is_refused_with_its_reason() {
        let parse = |text: &str| KeyRing::parse(text, Path::new("keys")).map(drop);
        let (a, upper) = (key('a'), key('A'));
        parse(&format!("# of May\n\n  {a}  \r\n{}", key('0'))).expect("two keys");
        assert!(matches!(parse("# nothing\n"), Err(KeyError::Empty { .. })));
        for line in [&a[1..], &format!("{a}0"), &format!("+{}", &a[1..]), "secret"] {
            let error = parse(&format!("\n{line}")).expect_err("refused");
            assert!(matches!(error, KeyError::Line { line: 2, .. }), "{error}");
            assert!(!error.to_string().contains(line), "{error}");
        }
        assert!(matches!(parse(&format!("{a}\n{upper}")), Err(KeyError::Twice { line: 2, .. })));

        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys");
        assert!(matches!(KeyRing::read(&path), Err(KeyError::Io { .. })));
        std::fs::write(&path, &a).expect("written");
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode));
        for open in [0o640, 0o604, 0o620, 0o610] {
            mode(open).expect("chmod");
            let error = KeyRing::read(&path).expect_err("refused");
            assert!(matches!(error, KeyError::Open { mode, .. } if mode == open), "{error}");
        }
        mode(0o600).expect("chmod");
        assert_eq!(KeyRing::read(&path).expect("read").first(), ring(&[&a]).first());
        std::fs::write(&path, vec![b'#'; MAX_FILE as usize + 1]).expect("written");
        assert!(matches!(KeyRing::read(&path), Err(KeyError::TooLong { .. })));
    }
}
