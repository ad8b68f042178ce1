//! NBD clients that send garbage, pass every limit, stop half-way or do not listen. Each gets an
//! error or loses its connection; all others are served on, with their data.

mod support;

use std::net::SocketAddr;

use support::Cluster;
use support::nbd::{
    DISC, EINVAL, ENOSPC, FLUSH, READ, Raw, Server, TRIM, WRITE, WRITE_ZEROES, header, wish,
};

/// Most bytes of a request.
const MAX: u64 = 32 << 20;
/// Enough for requests of that length at any place.
const BYTES: u64 = 80 << 20;

/// A server with a good client whose data must stay as it is.
struct Scene {
    server: Server,
    cluster: Cluster,
}

const MINE: u64 = 1 << 20;

fn mine() -> Vec<u8> {
    (0..65536u32).map(|at| (at / 512 % 251) as u8).collect()
}

impl Scene {
    fn set() -> Self {
        let cluster = Cluster::of(1, 1, BYTES / 4096);
        let server = Server::start(&cluster);
        let scene = Self { server, cluster };
        assert_eq!(Raw::export(scene.addr()).write(MINE, &mine()), 0);
        scene
    }

    fn addr(&self) -> SocketAddr {
        self.server.addr
    }

    /// A new client is served, and finds what the first one wrote.
    fn is_well(&self) {
        let mut good = Raw::export(self.addr());
        assert!(good.read(MINE, 65536) == mine(), "the data is as it was");
        assert_eq!(good.write(0, &[1; 512]), 0);
        assert_eq!(good.ask(FLUSH, 0, 0), 0);
        assert_eq!(good.read(0, 512), [1; 512]);
    }
}

#[test]
fn garbage_at_every_stage_ends_its_connection_and_nothing_else() {
    let scene = Scene::set();
    let flags = 3u32.to_be_bytes().to_vec();
    let with = |more: &[u8]| [&flags[..], more].concat();
    let mut half_option = b"IHAVEOPT".to_vec();
    half_option.extend(7u32.to_be_bytes());
    half_option.extend(100u32.to_be_bytes());
    let garbage = [
        b"GET / HTTP/1.0\r\n\r\n".to_vec(),
        vec![0xff; 100],
        // Flags that nobody knows.
        vec![0x80, 0, 0, 3],
        // An option without its magic number.
        with(&[0xee; 16]),
        with(b"IHAVEOPS\0\0\0\x07\0\0\0\0"),
    ];
    for bytes in garbage {
        let mut raw = Raw::connect(scene.addr());
        raw.blurt(&bytes);
        raw.ends();
    }
    // Ends in the middle: of the flags, an option's header, its data.
    for bytes in [vec![0, 0], with(b"IHAVE"), with(&half_option)] {
        let mut raw = Raw::connect(scene.addr());
        raw.send(&bytes);
        raw.says_no_more();
        raw.ends();
    }
    // In the transmission phase: no request, half a request, half a payload.
    for bytes in [vec![0xab; 28], vec![0x25; 5], header(0, WRITE, 1, MINE, 8192)] {
        let mut raw = Raw::export(scene.addr());
        raw.blurt(&[&bytes[..], &[0xcc; 1000]].concat());
        raw.says_no_more();
        raw.ends();
    }
    scene.is_well();
}

#[test]
fn options_that_make_no_sense_are_refused_and_the_negotiation_goes_on() {
    const UNSUP: u32 = 0x8000_0001;
    const INVALID: u32 = 0x8000_0003;
    const UNKNOWN: u32 = 0x8000_0006;
    let scene = Scene::set();
    let mut raw = Raw::connect(scene.addr());
    raw.send(&3u32.to_be_bytes());
    let mut name_too_long = 1000u32.to_be_bytes().to_vec();
    name_too_long.extend(b"vol\0\0");
    let mut endless = u32::MAX.to_be_bytes().to_vec();
    endless.extend(b"vol\0\0");
    let no_utf8 = [0, 0, 0, 2, 0xff, 0xfe, 0, 0].to_vec();
    let mut fewer_infos = wish("vol");
    *fewer_infos.last_mut().expect("not empty") = 9;
    let cases = [
        (0, vec![], UNSUP),
        (4711, vec![1; 100], UNSUP),
        (u32::MAX, vec![], UNSUP),
        (3, vec![0], INVALID),
        (7, vec![], INVALID),
        (6, vec![0, 0, 0], INVALID),
        (7, name_too_long, INVALID),
        (7, endless, INVALID),
        (7, no_utf8, INVALID),
        (6, fewer_infos, INVALID),
        (7, wish("other"), UNKNOWN),
        (7, wish("vol@"), UNKNOWN),
        (7, wish("vol@no-uuid"), UNKNOWN),
        (7, wish("@"), UNKNOWN),
        (6, wish(&"v".repeat(4096)), UNKNOWN),
    ];
    for (option, data, expected) in cases {
        raw.option(option, &data);
        let (kind, _) = raw.option_reply(option).expect("an answer");
        assert_eq!(kind, expected, "option {option} with {data:?}");
    }
    raw.option(7, &wish("vol"));
    while raw.option_reply(7).expect("an answer").0 != 1 {}
    assert!(raw.read(MINE, 65536) == mine());
    scene.is_well();
}

#[test]
fn options_over_the_limits_end_the_connection() {
    let scene = Scene::set();
    // Longer than any option is. What claims 4 GiB is not waited for.
    for length in [8193, u32::MAX] {
        let mut raw = Raw::connect(scene.addr());
        raw.send(&3u32.to_be_bytes());
        let mut option = b"IHAVEOPT".to_vec();
        option.extend(7u32.to_be_bytes());
        option.extend(length.to_be_bytes());
        raw.send(&option);
        let (kind, _) = raw.option_reply(7).expect("is told why");
        assert_eq!(kind, 0x8000_0009);
        raw.ends();
    }
    // One option after the other for ever.
    let mut raw = Raw::connect(scene.addr());
    raw.send(&3u32.to_be_bytes());
    let mut options: u64 = 0;
    loop {
        let mut option = b"IHAVEOPT".to_vec();
        option.extend([0; 8]);
        raw.blurt(&option);
        if raw.option_reply(0).is_none() {
            break;
        }
        options += 1;
        assert!(options <= 1000, "it goes on for ever");
    }
    // An export that is not there has no answer by this option but the end.
    let mut raw = Raw::connect(scene.addr());
    raw.send(&3u32.to_be_bytes());
    raw.option(1, b"other");
    raw.ends();
    scene.is_well();
}

#[test]
fn requests_that_make_no_sense_get_an_error_and_the_connection_stays() {
    let scene = Scene::set();
    let mut raw = Raw::export(scene.addr());
    let einval = [
        (READ, 0, 0),
        (READ, 1, 512),
        (READ, 0, 511),
        (READ, BYTES, 512),
        (READ, BYTES - 512, 1024),
        (READ, u64::MAX, 512),
        (READ, u64::MAX - 511, 512),
        (READ, 0, MAX as u32 + 512),
        (READ, 0, u32::MAX),
        (TRIM, 0, 0),
        (TRIM, 0, 4097),
        (TRIM, u64::MAX - 511, 4096),
        (WRITE_ZEROES, 0, 0),
        (WRITE_ZEROES, 100, 512),
        (FLUSH, 0, 512),
        (FLUSH, 4096, 0),
        (5, 0, 511),
        (5, BYTES, 512),
        (7, 0, 512),
        (8, 0, 512),
        (99, 0, 0),
        (u16::MAX, u64::MAX, u32::MAX),
    ];
    for (command, offset, length) in einval {
        let error = raw.ask(command, offset, length);
        assert_eq!(error, EINVAL, "command {command} with {length} at {offset}");
    }
    for (command, offset, length) in [
        (TRIM, BYTES, 512),
        (TRIM, 0, BYTES as u32 + 4096),
        (TRIM, 4096, u32::MAX - 511),
        (WRITE_ZEROES, BYTES - 4096, 8192),
    ] {
        let error = raw.ask(command, offset, length);
        assert_eq!(error, ENOSPC, "command {command} with {length} at {offset}");
    }
    // Flags that were not offered.
    for (flags, command) in [(4, READ), (1 << 5, READ), (1 << 4, TRIM), (0x8000, FLUSH), (2, TRIM)]
    {
        raw.send(&header(flags, command, 5, 0, 4096));
        assert_eq!(raw.reply(), (EINVAL, 5), "flags {flags} of command {command}");
    }
    // Their payload is taken and dropped, so that the next header is found.
    for (offset, length, error) in [
        (BYTES, 512, ENOSPC),
        (BYTES - 512, 4096, ENOSPC),
        (u64::MAX - 511, 512, EINVAL),
        (3, 512, EINVAL),
        (0, 100, EINVAL),
        (0, 0, EINVAL),
    ] {
        assert_eq!(raw.write(offset, &vec![0x55; length]), error, "{length} bytes at {offset}");
    }
    assert!(raw.read(MINE, 65536) == mine());
    // One cookie twice is the client's own affair.
    for _ in 0..2 {
        raw.request(READ, 9, MINE, 512);
    }
    for _ in 0..2 {
        assert_eq!(raw.reply(), (0, 9));
        assert_eq!(raw.take(512), mine()[..512]);
    }
    // A write over the limit: what follows is not read as requests.
    raw.request(WRITE, 1, 0, MAX as u32 + 512);
    raw.ends();
    scene.is_well();
}

#[test]
fn the_longest_requests_are_served_wherever_they_begin() {
    let scene = Scene::set();
    let mut raw = Raw::export(scene.addr());
    let length = MAX as u32;
    let data: Vec<u8> = (0..MAX).map(|at| (at / 512 % 241) as u8 + 1).collect();
    for offset in [0, 512, 4096 - 512, 32 << 20, (32 << 20) + 1536, BYTES - MAX, BYTES - MAX - 512]
    {
        assert_eq!(raw.ask(WRITE_ZEROES, 0, BYTES as u32), 0);
        assert_eq!(raw.write(offset, &data), 0, "{offset}");
        assert!(raw.read(offset, length) == data, "{offset}");
        // Nothing beside it changed.
        for beside in [offset.checked_sub(512), Some(offset + MAX).filter(|end| *end < BYTES)] {
            assert!(beside.is_none_or(|at| raw.read(at, 512) == [0; 512]), "beside {offset}");
        }
    }
}

#[test]
fn zeroes_and_trims_are_exact_to_the_end_of_the_volume() {
    let scene = Scene::set();
    let mut raw = Raw::export(scene.addr());
    let ones = vec![1; 12288];
    let ends = [0, BYTES - 12288];
    for (command, exact) in [(WRITE_ZEROES, true), (TRIM, false)] {
        for offset in ends {
            assert_eq!(raw.write(offset, &ones), 0);
        }
        // All but the first and the last sector.
        assert_eq!(raw.ask(command, 512, (BYTES - 1024) as u32), 0);
        let (first, last) = (raw.read(0, 12288), raw.read(BYTES - 12288, 12288));
        let kept = if exact { 512 } else { 4096 };
        assert!(first[..kept].iter().all(|byte| *byte == 1));
        assert!(first[kept..].iter().all(|byte| *byte == 0));
        assert!(last[12288 - kept..].iter().all(|byte| *byte == 1));
        assert!(last[..12288 - kept].iter().all(|byte| *byte == 0));
        // All of it.
        assert_eq!(raw.ask(command, 0, BYTES as u32), 0);
        for offset in ends {
            assert!(raw.read(offset, 12288).iter().all(|byte| *byte == 0));
        }
        // Within one block, and across two.
        assert_eq!(raw.write(0, &ones), 0);
        assert_eq!(raw.ask(command, 1024, 512), 0);
        assert_eq!(raw.ask(command, 8192 - 512, 1024), 0);
        let block = raw.read(0, 12288);
        let zero = |at: usize| exact && (at / 512 == 2 || at / 512 == 15 || at / 512 == 16);
        for (at, byte) in block.iter().enumerate() {
            assert_eq!(*byte == 0, zero(at), "command {command}, byte {at}");
        }
    }
}

#[test]
fn clients_that_leave_half_way_cost_the_others_nothing() {
    let scene = Scene::set();
    let mut good = Raw::export(scene.addr());
    for round in 0u64..40 {
        let mut raw = Raw::export(scene.addr());
        match round % 4 {
            // In the middle of a payload.
            0 => {
                raw.request(WRITE, 1, MINE, 1 << 20);
                raw.blurt(&vec![0xdd; 4096 * (1 + round as usize)]);
            }
            // With reads that nobody takes.
            1 => (0..32).for_each(|n| raw.request(READ, n, 0, 1 << 20)),
            // In the middle of a reply.
            2 => {
                raw.request(READ, 1, 0, 8 << 20);
                assert_eq!(raw.reply(), (0, 1));
                raw.take(1000);
            }
            // After a goodbye, without waiting for what was asked.
            _ => {
                raw.request(READ, 1, 0, 1 << 20);
                raw.request(DISC, 2, 0, 0);
            }
        }
        raw.vanish();
        assert!(good.read(MINE, 65536) == mine(), "round {round}");
        assert_eq!(good.write(8 << 20, &[round as u8; 4096]), 0);
        assert_eq!(good.read(8 << 20, 4096), [round as u8; 4096]);
    }
    scene.is_well();
}

#[test]
fn what_was_asked_before_a_goodbye_is_answered() {
    let scene = Scene::set();
    let mut raw = Raw::export(scene.addr());
    for cookie in 0..16 {
        raw.request(READ, cookie, MINE, 65536);
    }
    raw.request(DISC, 99, 0, 0);
    let mut seen = Vec::new();
    for _ in 0..16 {
        let (error, cookie) = raw.reply();
        assert_eq!(error, 0);
        assert!(raw.take(65536) == mine());
        seen.push(cookie);
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..16));
    raw.ends();
}

#[test]
fn a_volume_that_is_deleted_ends_its_clients_requests_with_an_error() {
    const ESHUTDOWN: u32 = 108;
    let scene = Scene::set();
    let mut raw = Raw::export(scene.addr());
    assert!(raw.read(MINE, 65536) == mine());
    let mut catalogue = scene.cluster.catalogue();
    for volume in catalogue.volumes.values_mut() {
        std::sync::Arc::make_mut(volume).deleted = true;
    }
    scene.server.catalogue.send_replace(std::sync::Arc::new(catalogue));
    // The news travels beside the requests.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        match raw.ask(READ, MINE, 512) {
            0 => assert_eq!(raw.take(512).len(), 512),
            ESHUTDOWN => break,
            other => panic!("error {other}"),
        }
        assert!(std::time::Instant::now() < deadline, "a deleted volume is served on");
    }
    let mut late = Raw::connect(scene.addr());
    late.send(&3u32.to_be_bytes());
    late.option(7, &wish("vol"));
    let (kind, text) = late.option_reply(7).expect("an answer");
    assert_eq!(kind, 0x8000_0006);
    assert!(String::from_utf8_lossy(&text).contains("vol"), "{text:?}");
}
