//! Structured replies, block status and extended headers: with real clients, and byte for byte
//! where none of them goes so far.

mod support;

use std::process::Command;

use support::nbd::{CACHE, EINVAL, FLUSH, READ, Raw, STATUS, Server, WRITE, WRITE_ZEROES, wish};
use support::{BLOCKS, Cluster};

const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;
const ACK: u32 = 1;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

fn succeeds(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| {
        panic!(
            "{program}: {error}; install it (apt-get install libnbd-bin python3-libnbd qemu-utils)"
        )
    });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}{errors}");
    text
}

#[test]
fn clients_see_which_blocks_are_holes() {
    let cluster = Cluster::start(3, 2);
    let server = Server::start(&cluster);
    let uri = server.uri();
    succeeds(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 7 8192 12288", "-c", "write -z 12288 4096", &uri],
    );
    let map = succeeds("nbdinfo", &["--map", &uri]);
    let runs: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    let rest = (BLOCKS * 4096 - 20480).to_string();
    let expected = [
        ["0", "8192", "3", "hole,zero"],
        ["8192", "4096", "0", "data"],
        ["12288", "4096", "3", "hole,zero"],
        ["16384", "4096", "0", "data"],
        ["20480", &rest, "3", "hole,zero"],
    ];
    assert_eq!(runs, expected, "{map}");
    let json = succeeds("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    assert!(
        json.contains(
            "\"start\": 8192, \"length\": 4096, \"depth\": 0, \"present\": true, \"zero\": false"
        ),
        "{json}"
    );
    // A sparse copy, out and compared.
    let dir = tempfile::tempdir().expect("a directory");
    let copy = dir.path().join("copy");
    let copy = copy.to_str().expect("a path");
    succeeds("nbdcopy", &[&uri, copy]);
    succeeds("qemu-img", &["compare", "-f", "raw", "-F", "raw", copy, &uri]);
}

/// Every command and every error, with the reference client.
#[test]
fn the_reference_client_uses_every_command() {
    let cluster = Cluster::start(3, 2);
    let server = Server::start(&cluster);
    let script = r#"
import errno
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
assert h.get_structured_replies_negotiated()
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
assert h.can_df() and h.can_cache() and h.can_fast_zero() and h.can_fua() and h.can_multi_conn()
assert not h.is_read_only() and not h.is_rotational()
size = h.get_size()
h.pwrite(b"x" * 8192, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(8192, 4096) == b"x" * 8192
assert h.pread_structured(8192, 4096, lambda *_: None, nbd.CMD_FLAG_DF) == b"x" * 8192
assert h.pread(512, 4608) == b"x" * 512
h.cache(4096, 0)
h.flush()
h.zero(4096, 4096, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
h.trim(4096, 8192)
assert h.pread(8192, 4096) == bytes(8192)
h.pwrite(b"y" * 512, 8704)
seen = []
def extent(context, offset, entries, error):
    seen.append((context, offset, list(entries)))
h.block_status(16384, 512, extent)
assert seen == [("base:allocation", 512, [7680, 3, 4096, 0, 4608, 3])], seen
seen.clear()
h.block_status(16384, 512, extent, nbd.CMD_FLAG_REQ_ONE)
assert seen == [("base:allocation", 512, [7680, 3])], seen
h.set_strict_mode(0)
def fails(what, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == what, error
        return
    assert False, "no error"
fails(errno.EINVAL, lambda: h.pread(512, size))
fails(errno.ENOSPC, lambda: h.pwrite(b"z" * 512, size))
fails(errno.ENOSPC, lambda: h.zero(4096, size - 512))
fails(errno.EINVAL, lambda: h.pread(100, 0))
fails(errno.EINVAL, lambda: h.flush(nbd.CMD_FLAG_DF))
fails(errno.EINVAL, lambda: h.block_status(4096, size, extent))
assert h.pread(512, 8704) == b"y" * 512
h.shutdown()
print("all done")
"#;
    let script = format!("uri = {:?}\n{script}", server.uri());
    // nbdsh, by the interpreter that the distribution's module is for.
    let said = succeeds("/usr/bin/python3", &["-m", "nbd", "-c", &script]);
    assert!(said.contains("all done"), "{said}");
}

fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// Sends an option; the kinds of the replies, the last one included.
fn ask_option(raw: &mut Raw, option: u32, data: &[u8]) -> Vec<u32> {
    raw.option(option, data);
    let mut kinds = Vec::new();
    loop {
        let (kind, _) = raw.option_reply(option).expect("an answer");
        kinds.push(kind);
        if kind == ACK || kind >= 0x8000_0000 {
            return kinds;
        }
    }
}

#[test]
fn contexts_are_listed_and_chosen_by_the_rules() {
    let cluster = Cluster::start(3, 2);
    let server = Server::start(&cluster);
    let mut raw = Raw::connect(server.addr);
    raw.send(&3u32.to_be_bytes());
    let all = queries("vol", &[]);
    let ours = queries("vol", &["base:allocation"]);
    assert_eq!(ask_option(&mut raw, SET_META_CONTEXT, &ours), [ERR_INVALID], "no chunks yet");
    assert_eq!(ask_option(&mut raw, STRUCTURED_REPLY, b"x"), [ERR_INVALID]);
    assert_eq!(ask_option(&mut raw, STRUCTURED_REPLY, b""), [ACK]);
    assert_eq!(ask_option(&mut raw, LIST_META_CONTEXT, &all), [4, ACK]);
    assert_eq!(ask_option(&mut raw, LIST_META_CONTEXT, &queries("vol", &["base:"])), [4, ACK]);
    assert_eq!(ask_option(&mut raw, LIST_META_CONTEXT, &queries("vol", &["qemu:"])), [ACK]);
    assert_eq!(ask_option(&mut raw, SET_META_CONTEXT, &all), [ACK], "no wildcards");
    assert_eq!(
        ask_option(&mut raw, SET_META_CONTEXT, &queries("other", &["base:allocation"])),
        [ERR_UNKNOWN]
    );
    assert_eq!(ask_option(&mut raw, SET_META_CONTEXT, &ours[1..]), [ERR_INVALID]);
    assert_eq!(ask_option(&mut raw, SET_META_CONTEXT, &ours), [4, ACK]);
    assert_eq!(ask_option(&mut raw, EXTENDED_HEADERS, b""), [ACK]);
    assert_eq!(ask_option(&mut raw, STRUCTURED_REPLY, b""), [ERR_EXT_HEADER_REQD]);
    // A client that chose nothing for its export may not ask.
    let mut raw = Raw::connect(server.addr);
    raw.send(&3u32.to_be_bytes());
    assert_eq!(ask_option(&mut raw, STRUCTURED_REPLY, b""), [ACK]);
    raw.option(7, &wish("vol"));
    while raw.option_reply(7).expect("an answer").0 != ACK {}
    raw.request(STATUS, 5, 0, 4096);
    let head = raw.take(20);
    assert_eq!(head[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1], "an error's chunk");
    let length = u32::from_be_bytes(head[16..].try_into().expect("4 bytes"));
    let error = raw.take(length as usize);
    assert_eq!(error[..4], EINVAL.to_be_bytes());
    assert_eq!(&error[6..], b"no metadata context was chosen");
}

/// A connection with 32-byte headers.
struct Extended(Raw);

impl Extended {
    fn connect(server: &Server) -> Self {
        let mut raw = Raw::connect(server.addr);
        raw.send(&3u32.to_be_bytes());
        assert_eq!(ask_option(&mut raw, EXTENDED_HEADERS, b""), [ACK]);
        let ours = queries("vol", &["base:allocation"]);
        assert_eq!(ask_option(&mut raw, SET_META_CONTEXT, &ours), [4, ACK]);
        raw.option(7, &wish("vol"));
        while raw.option_reply(7).expect("an answer").0 != ACK {}
        Self(raw)
    }

    fn send(&mut self, flags: u16, command: u16, offset: u64, length: u64, payload: &[u8]) {
        let mut bytes = 0x21e4_1c71_u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(99u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(payload);
        self.0.send(&bytes);
    }

    /// The only chunk of the reply: its kind and payload.
    fn reply(&mut self, offset: u64) -> (u16, Vec<u8>) {
        let head = self.0.take(32);
        assert_eq!(head[..6], [0x6e, 0x8a, 0x27, 0x8c, 0, 1], "done");
        assert_eq!(head[8..16], 99u64.to_be_bytes());
        assert_eq!(head[16..24], offset.to_be_bytes());
        let length = u64::from_be_bytes(head[24..].try_into().expect("8 bytes"));
        let payload = self.0.take(length as usize);
        (u16::from_be_bytes([head[6], head[7]]), payload)
    }

    fn error(&mut self, offset: u64) -> u32 {
        let (kind, payload) = self.reply(offset);
        assert_eq!(kind, 0x8001);
        u32::from_be_bytes(payload[..4].try_into().expect("4 bytes"))
    }
}

const PAYLOAD_LEN: u16 = 1 << 5;

#[test]
fn extended_headers_carry_64_bits_and_payloads() {
    let cluster = Cluster::start(3, 2);
    let server = Server::start(&cluster);
    let mut client = Extended::connect(&server);
    client.send(PAYLOAD_LEN, WRITE, 4096, 4096, &[7; 4096]);
    assert_eq!(client.reply(4096), (0, Vec::new()));
    client.send(0, READ, 4096, 512, b"");
    let (kind, payload) = client.reply(4096);
    assert_eq!(
        (kind, &payload[..8], &payload[8..]),
        (1, &4096u64.to_be_bytes()[..], &[7; 512][..])
    );
    client.send(0, FLUSH, 0, 0, b"");
    assert_eq!(client.reply(0), (0, Vec::new()));
    client.send(0, CACHE, 0, BLOCKS * 4096, b"");
    assert_eq!(client.reply(0), (0, Vec::new()));
    let runs = |payload: &[u8]| -> Vec<(u64, u64)> {
        assert_eq!(payload[..4], 1u32.to_be_bytes(), "the context");
        let word = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("8 bytes"));
        let runs = payload[8..].chunks_exact(16);
        let runs: Vec<_> = runs.map(|run| (word(&run[..8]), word(&run[8..]))).collect();
        assert_eq!(payload[4..8], (runs.len() as u32).to_be_bytes());
        runs
    };
    let all = BLOCKS * 4096;
    let expected = [(4096, 3), (4096, 0), (all - 8192, 3)];
    client.send(0, STATUS, 0, all, b"");
    let (kind, payload) = client.reply(0);
    assert_eq!((kind, runs(&payload)), (6, expected.to_vec()));
    // The same, with the length and the contexts in a payload.
    let mut wanted = all.to_be_bytes().to_vec();
    wanted.extend(1u32.to_be_bytes());
    client.send(PAYLOAD_LEN, STATUS, 0, 12, &wanted);
    let (kind, payload) = client.reply(0);
    assert_eq!((kind, runs(&payload)), (6, expected.to_vec()));
    // A context that was not chosen, and payloads of other shapes: refused, and the next request is
    // found behind them.
    wanted[11] = 2;
    client.send(PAYLOAD_LEN, STATUS, 0, 12, &wanted);
    assert_eq!(client.error(0), EINVAL);
    client.send(PAYLOAD_LEN, STATUS, 0, 11, &wanted[..11]);
    assert_eq!(client.error(0), EINVAL);
    client.send(PAYLOAD_LEN, STATUS, 0, 3, &wanted[..3]);
    assert_eq!(client.error(0), EINVAL);
    client.send(PAYLOAD_LEN, FLUSH, 0, 100, &[0; 100]);
    assert_eq!(client.error(0), EINVAL);
    // Lengths of 64 bits go nowhere by wrapping around.
    client.send(0, WRITE_ZEROES, 4096, u64::MAX - 4095, b"");
    assert_eq!(client.error(4096), EINVAL);
    client.send(0, WRITE_ZEROES, 4096, 1 << 40, b"");
    assert_eq!(client.error(4096), support::nbd::ENOSPC);
    client.send(0, READ, 0, 1 << 40, b"");
    assert_eq!(client.error(0), EINVAL);
    client.send(0, WRITE_ZEROES, 0, all, b"");
    assert_eq!(client.reply(0), (0, Vec::new()));
    client.send(0, STATUS, 0, all, b"");
    assert_eq!(runs(&client.reply(0).1), [(all, 3)]);
    // A payload that nobody may send ends the connection.
    client.send(PAYLOAD_LEN, WRITE, 0, 1 << 33, b"");
    client.0.ends();
    // So does the old way to choose an export, which can't say that headers are extended.
    let mut raw = Raw::connect(server.addr);
    raw.send(&3u32.to_be_bytes());
    assert_eq!(ask_option(&mut raw, EXTENDED_HEADERS, b""), [ACK]);
    raw.option(1, b"vol");
    raw.ends();
}
