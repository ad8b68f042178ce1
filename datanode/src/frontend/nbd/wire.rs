//! Numbers of the protocol, and the messages of the transmission phase.

pub(super) const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
pub(super) const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
pub(super) const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
pub(super) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

pub(super) const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub(super) const FLAG_NO_ZEROES: u16 = 2;

pub(super) const OPT_EXPORT_NAME: u32 = 1;
pub(super) const OPT_ABORT: u32 = 2;
pub(super) const OPT_LIST: u32 = 3;
pub(super) const OPT_STARTTLS: u32 = 5;
pub(super) const OPT_INFO: u32 = 6;
pub(super) const OPT_GO: u32 = 7;
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(super) const OPT_LIST_META_CONTEXT: u32 = 9;
pub(super) const OPT_SET_META_CONTEXT: u32 = 10;
pub(super) const OPT_EXTENDED_HEADERS: u32 = 11;

pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_SERVER: u32 = 2;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_META_CONTEXT: u32 = 4;
pub(super) const REP_ERR_UNSUP: u32 = 0x8000_0001;
pub(super) const REP_ERR_POLICY: u32 = 0x8000_0002;
pub(super) const REP_ERR_INVALID: u32 = 0x8000_0003;
pub(super) const REP_ERR_TLS_REQD: u32 = 0x8000_0005;
pub(super) const REP_ERR_UNKNOWN: u32 = 0x8000_0006;
pub(super) const REP_ERR_TOO_BIG: u32 = 0x8000_0009;
pub(super) const REP_ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_NAME: u16 = 1;
pub(super) const INFO_DESCRIPTION: u16 = 2;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

const TRANSMISSION_HAS_FLAGS: u16 = 1;
const TRANSMISSION_FLUSH: u16 = 1 << 2;
const TRANSMISSION_FUA: u16 = 1 << 3;
const TRANSMISSION_TRIM: u16 = 1 << 5;
const TRANSMISSION_WRITE_ZEROES: u16 = 1 << 6;
const TRANSMISSION_DF: u16 = 1 << 7;
const TRANSMISSION_MULTI_CONN: u16 = 1 << 8;
const TRANSMISSION_CACHE: u16 = 1 << 10;
const TRANSMISSION_FAST_ZERO: u16 = 1 << 11;
const TRANSMISSION_STATUS_PAYLOAD: u16 = 1 << 12;

pub(super) const CMD_READ: u16 = 0;
pub(super) const CMD_WRITE: u16 = 1;
pub(super) const CMD_DISC: u16 = 2;
pub(super) const CMD_FLUSH: u16 = 3;
pub(super) const CMD_TRIM: u16 = 4;
pub(super) const CMD_CACHE: u16 = 5;
pub(super) const CMD_WRITE_ZEROES: u16 = 6;
pub(super) const CMD_BLOCK_STATUS: u16 = 7;

pub(super) const CMD_FLAG_FUA: u16 = 1;
pub(super) const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
pub(super) const CMD_FLAG_DF: u16 = 1 << 2;
pub(super) const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
pub(super) const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;
pub(super) const CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

pub(super) const CHUNK_DONE: u16 = 1;
pub(super) const CHUNK_NONE: u16 = 0;
pub(super) const CHUNK_DATA: u16 = 1;
pub(super) const CHUNK_STATUS: u16 = 5;
pub(super) const CHUNK_STATUS_EXT: u16 = 6;
pub(super) const CHUNK_ERROR: u16 = 0x8001;

/// The only metadata context, and the number that stands for it in replies.
pub(super) const ALLOCATION: &str = "base:allocation";
pub(super) const ALLOCATION_ID: u32 = 1;
/// `base:allocation` of a hole: unallocated, and reads as zeros.
pub(super) const STATE_HOLE_ZERO: u32 = 3;

pub(super) const EIO: u32 = 5;
pub(super) const EINVAL: u32 = 22;
pub(super) const ENOSPC: u32 = 28;
pub(super) const ESHUTDOWN: u32 = 108;

/// How requests and replies look, as it was negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Framing {
    /// 28-byte requests, simple replies.
    #[default]
    Simple,
    /// 28-byte requests; replies in chunks where there is something to say.
    Structured,
    /// 32-byte requests with 64-bit lengths, replies in chunks.
    Extended,
}

impl Framing {
    /// What an export can do. A flush on one connection covers all: acknowledged writes are durable
    /// wherever they came from.
    ///
    /// A flush on one connection covers all, but an exclusive export has one: a second would end
    /// the first.
    pub(super) fn transmission_flags(self, exclusive: bool) -> u16 {
        let always = TRANSMISSION_HAS_FLAGS
            | TRANSMISSION_FLUSH
            | TRANSMISSION_FUA
            | TRANSMISSION_TRIM
            | TRANSMISSION_WRITE_ZEROES
            | TRANSMISSION_CACHE
            | TRANSMISSION_FAST_ZERO;
        let several = if exclusive { 0 } else { TRANSMISSION_MULTI_CONN };
        always
            | several
            | match self {
                Framing::Simple => 0,
                Framing::Structured => TRANSMISSION_DF,
                Framing::Extended => TRANSMISSION_DF | TRANSMISSION_STATUS_PAYLOAD,
            }
    }

    /// Bytes of a request's header.
    pub(super) fn request_size(self) -> usize {
        match self {
            Framing::Simple | Framing::Structured => 28,
            Framing::Extended => Request::LONGEST,
        }
    }
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    /// Of the payload, if the flags say so; otherwise of what the request is about.
    pub(super) length: u64,
}

impl Request {
    /// Bytes of the longest header.
    pub(super) const LONGEST: usize = 32;

    /// `None` if it does not begin with the magic number, or is not as long as the framing wants.
    pub(super) fn parse(framing: Framing, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != framing.request_size() {
            return None;
        }
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (flags, rest) = rest.split_first_chunk::<2>()?;
        let (command, rest) = rest.split_first_chunk::<2>()?;
        let (cookie, rest) = rest.split_first_chunk::<8>()?;
        let (offset, rest) = rest.split_first_chunk::<8>()?;
        let (expected, length) = match framing {
            Framing::Simple | Framing::Structured => {
                (REQUEST_MAGIC, u64::from(u32::from_be_bytes(*rest.first_chunk()?)))
            }
            Framing::Extended => (EXTENDED_REQUEST_MAGIC, u64::from_be_bytes(*rest.first_chunk()?)),
        };
        (u32::from_be_bytes(*magic) == expected).then(|| Self {
            flags: u16::from_be_bytes(*flags),
            command: u16::from_be_bytes(*command),
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            length,
        })
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A simple reply's header: 16 bytes.
pub(super) fn simple_reply(error: u32, cookie: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The header of a chunk that is the whole reply, before `length` bytes of its payload. `offset`
/// is the request's.
pub(super) fn chunk(
    framing: Framing,
    kind: u16,
    cookie: u64,
    offset: u64,
    length: u64,
    out: &mut impl bytes::BufMut,
) {
    let extended = framing == Framing::Extended;
    out.put_u32(if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC });
    out.put_u16(CHUNK_DONE);
    out.put_u16(kind);
    out.put_u64(cookie);
    if extended {
        out.put_u64(offset);
        out.put_u64(length);
    } else {
        // A reply carries at most the longest read, which 32 bits count.
        out.put_u32(length as u32);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;

    fn header(framing: Framing, r: &Request) -> Vec<u8> {
        let mut bytes = Vec::new();
        let extended = framing == Framing::Extended;
        bytes.put_u32(if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC });
        bytes.put_u16(r.flags);
        bytes.put_u16(r.command);
        bytes.put_u64(r.cookie);
        bytes.put_u64(r.offset);
        match framing {
            Framing::Simple | Framing::Structured => bytes.put_u32(r.length as u32),
            Framing::Extended => bytes.put_u64(r.length),
        }
        bytes
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
                if let Some(request) = Request::parse(framing, &bytes) {
                    prop_assert_eq!(header(framing, &request), &bytes[..]);
                }
            }
        }

        #[test]
        fn a_header_reads_back(flags: u16, command: u16, cookie: u64, offset: u64, length: u64) {
            let request = Request { flags, command, cookie, offset, length };
            let bytes = header(Framing::Extended, &request);
            prop_assert_eq!(Request::parse(Framing::Extended, &bytes), Some(request));
            prop_assert_eq!(Request::parse(Framing::Simple, &bytes), None);
            let request = Request { length: length & u64::from(u32::MAX), ..request };
            let bytes = header(Framing::Structured, &request);
            prop_assert_eq!(Request::parse(Framing::Simple, &bytes), Some(request));
            prop_assert_eq!(Request::parse(Framing::Extended, &bytes), None);
        }
    }
}
