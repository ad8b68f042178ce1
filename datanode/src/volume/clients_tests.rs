//! From bytes to blocks and back.

use sbk_engine::types::{AttachGeneration, Epoch, LossGeneration};
use uuid::Uuid;

use super::*;

const STREAM: StreamId = StreamId(1);
const OPENED: LinkEvent = LinkEvent::Opened {
    epoch: Epoch(1),
    attach: AttachGeneration(1),
    loss_generation: LossGeneration(0),
};

fn clients() -> (Clients, Link) {
    let mut clients = Clients::default();
    let mut link = clients.add(STREAM, SessionId(Uuid::from_u128(1)));
    clients.tell(STREAM, OPENED);
    assert!(matches!(link.events.try_recv(), Ok(LinkEvent::Opened { .. })));
    (clients, link)
}

fn admit(clients: &mut Clients, sequence: u64, op: IoOp) -> Option<Request> {
    let io = IoRequest { sequence, low: 0, epoch: Epoch(1), attach: AttachGeneration(1), op };
    match clients.admit(STREAM, io) {
        Some(Admitted::Request(request)) => Some(request),
        Some(Admitted::Answered) | None => None,
        Some(Admitted::Violation(how)) => panic!("{how}"),
    }
}

fn range(lba: u64, blocks: u32) -> BlockRange {
    BlockRange { lba: Lba(lba), blocks }
}

fn reply(link: &mut Link) -> (u64, LinkOutcome, Bytes) {
    match link.events.try_recv() {
        Ok(LinkEvent::Reply { sequence, outcome, data }) => (sequence, outcome, data),
        other => panic!("no reply: {other:?}"),
    }
}

#[test]
fn whole_blocks_go_as_they_are() {
    let (mut clients, _link) = clients();
    let data = Bytes::from(vec![7; 8192]);
    let request = admit(&mut clients, 1, IoOp::Write { offset: 4096, data: data.clone() });
    let request = request.expect("goes to the engine");
    assert_eq!(request.op, Op::Write(range(1, 2)));
    assert_eq!(clients.held_bytes(), 8192);
    assert_eq!(clients.payload(request.tag), Some(data));
    assert_eq!(clients.held_bytes(), 0);
}

#[test]
fn a_sector_is_merged_into_its_block() {
    let (mut clients, mut link) = clients();
    let data = Bytes::from(vec![7; 512]);
    let request = admit(&mut clients, 1, IoOp::Write { offset: 4096 + 512, data }).expect("engine");
    assert_eq!(request.op, Op::PartialWrite(range(1, 1)));
    assert_eq!(clients.payload(request.tag), None, "it was not merged yet");
    clients.was_read(STREAM, request.tag, Bytes::from(vec![1; 4096]));
    let merged = clients.payload(request.tag).expect("merged");
    assert!(merged[..512].iter().chain(&merged[1024..]).all(|byte| *byte == 1));
    assert!(merged[512..1024].iter().all(|byte| *byte == 7));
    clients.answer(STREAM, request.tag, Outcome::Done);
    assert_eq!(reply(&mut link), (1, LinkOutcome::Done, Bytes::new()));
}

#[test]
fn an_unaligned_read_gets_its_bytes_only() {
    let (mut clients, mut link) = clients();
    let request =
        admit(&mut clients, 3, IoOp::Read { offset: 3584, length: 1024 }).expect("engine");
    assert_eq!(request.op, Op::Read(range(0, 2)));
    let blocks: Vec<u8> = (0..8192u32).map(|index| (index / 512) as u8).collect();
    clients.was_read(STREAM, request.tag, Bytes::from(blocks));
    clients.answer(STREAM, request.tag, Outcome::Done);
    let (sequence, outcome, data) = reply(&mut link);
    assert_eq!((sequence, outcome, data.len()), (3, LinkOutcome::Done, 1024));
    assert!(data[..512].iter().all(|byte| *byte == 7));
    assert!(data[512..].iter().all(|byte| *byte == 8));
    assert_eq!(clients.held_bytes(), 0);
}

#[test]
fn a_trim_is_rounded_inwards() {
    let (mut clients, mut link) = clients();
    let trim = IoOp::Trim { offset: 512, length: 3 * 4096 };
    assert_eq!(admit(&mut clients, 1, trim).map(|r| r.op), Some(Op::Trim(range(1, 2))));
    assert!(admit(&mut clients, 2, IoOp::Trim { offset: 512, length: 4096 }).is_none());
    assert_eq!(reply(&mut link).1, LinkOutcome::Done);
}

#[test]
fn zeroes_are_exact() {
    let (mut clients, _link) = clients();
    let whole = IoOp::Zero { offset: 0, length: 1 << 40 };
    assert_eq!(admit(&mut clients, 1, whole).map(|r| r.op), Some(Op::Zero(range(0, 1 << 28))));
    let part = IoOp::Zero { offset: 512, length: 4096 };
    let request = admit(&mut clients, 2, part).expect("engine");
    assert_eq!(request.op, Op::PartialWrite(range(0, 2)));
    clients.was_read(STREAM, request.tag, Bytes::from(vec![9; 8192]));
    let merged = clients.payload(request.tag).expect("merged");
    assert!(merged[512..4608].iter().all(|byte| *byte == 0));
    assert!(merged[..512].iter().chain(&merged[4608..]).all(|byte| *byte == 9));
}

#[test]
fn whole_blocks_of_zeros_are_zeroed_however_they_are_written() {
    let (mut clients, mut link) = clients();
    let write = |offset, data: Vec<u8>| IoOp::Write { offset, data: Bytes::from(data) };
    let request = admit(&mut clients, 1, write(4096, vec![0; 3 * 4096])).expect("engine");
    assert_eq!(request.op, Op::Zero(range(1, 3)));
    assert_eq!((clients.held_bytes(), clients.payload(request.tag)), (0, None));
    clients.answer(STREAM, request.tag, Outcome::Done);
    assert_eq!(reply(&mut link), (1, LinkOutcome::Done, Bytes::new()));

    // A byte that is none, anywhere, and what is no whole block.
    for at in [0, 4095, 4096, 3 * 4096 - 1] {
        let mut data = vec![0; 3 * 4096];
        data[at] = 1;
        let op = admit(&mut clients, 2 + at as u64, write(4096, data)).map(|r| r.op);
        assert_eq!(op, Some(Op::Write(range(1, 3))), "{at}");
    }
    let op = admit(&mut clients, 1 << 20, write(4096 + 512, vec![0; 4096])).map(|r| r.op);
    assert_eq!(op, Some(Op::PartialWrite(range(1, 2))));
}

#[test]
fn what_breaks_a_limit_is_refused_at_once() {
    let (mut clients, mut link) = clients();
    let refused = [
        IoOp::Read { offset: 1, length: 512 },
        IoOp::Read { offset: 0, length: 511 },
        IoOp::Read { offset: 0, length: MAX_REQUEST_BYTES + 512 },
        IoOp::Read { offset: 512, length: MAX_REQUEST_BYTES },
        IoOp::Trim { offset: u64::MAX - 511, length: 512 },
        IoOp::Zero { offset: 0, length: u64::MAX - 511 },
        IoOp::Zero { offset: 512, length: MAX_REQUEST_BYTES },
    ];
    for op in refused {
        let shown = format!("{op:?}");
        assert!(admit(&mut clients, 1, op).is_none(), "{shown}");
        assert!(matches!(reply(&mut link).1, LinkOutcome::Invalid(_)), "{shown}");
    }
    assert!(admit(&mut clients, 1, IoOp::Read { offset: 0, length: 0 }).is_none());
    assert_eq!(reply(&mut link).1, LinkOutcome::Done);
}

#[test]
fn a_number_names_one_request_at_a_time() {
    let (mut clients, mut link) = clients();
    let io =
        |op| IoRequest { sequence: 7, low: 0, epoch: Epoch(1), attach: AttachGeneration(1), op };
    let block = || Bytes::from(vec![7; 4096]);
    let write = || io(IoOp::Write { offset: 0, data: block() });
    // A read with another length in between would be answered with bytes that are not there.
    let read = || io(IoOp::Read { offset: 0, length: 8192 });
    let Some(Admitted::Request(request)) = clients.admit(STREAM, write()) else { panic!("new") };
    let twice = |clients: &mut Clients| {
        for io in [write(), read(), io(IoOp::Flush)] {
            assert!(matches!(clients.admit(STREAM, io), Some(Admitted::Violation(_))));
        }
    };
    twice(&mut clients);
    assert_eq!(clients.payload(request.tag), Some(block()));
    twice(&mut clients);
    clients.answer(STREAM, request.tag, Outcome::Done);
    assert_eq!(reply(&mut link), (7, LinkOutcome::Done, Bytes::new()));
    assert_eq!(clients.held_bytes(), 0);
    assert!(matches!(clients.admit(STREAM, read()), Some(Admitted::Request(_))), "it was answered");
}

#[test]
fn a_request_before_the_stream_is_open_is_none() {
    let mut clients = Clients::default();
    let _link = clients.add(STREAM, SessionId(Uuid::from_u128(1)));
    let (epoch, attach) = (Epoch(1), AttachGeneration(1));
    let io = IoRequest { sequence: 1, low: 0, epoch, attach, op: IoOp::Flush };
    assert!(matches!(clients.admit(STREAM, io), Some(Admitted::Violation(_))));
}

#[test]
fn a_stream_that_ends_frees_what_it_held() {
    let (mut clients, _link) = clients();
    let data = Bytes::from(vec![7; 4096]);
    assert!(admit(&mut clients, 1, IoOp::Write { offset: 0, data }).is_some());
    clients.remove(STREAM);
    assert_eq!((clients.len(), clients.held_bytes()), (0, 0));
}

#[test]
fn no_stream_starves_another() {
    let mut clients = Clients::default();
    let links: Vec<_> =
        (1..=3).map(|n| clients.add(StreamId(n), SessionId(Uuid::from_u128(n.into())))).collect();
    for link in &links {
        for sequence in 1..=100 {
            let (epoch, attach) = (Epoch(1), AttachGeneration(1));
            let io = IoRequest { sequence, low: 0, epoch, attach, op: IoOp::Flush };
            link.requests.try_send(io).expect("room");
        }
    }
    let mut taken = Vec::new();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(clients.poll_take(&mut cx, &mut taken).is_ready());
    for n in 1..=3 {
        let of = |from: &&FromClient| matches!(from, FromClient::Request(s, _) if s.0 == n);
        assert_eq!(taken.iter().filter(of).count(), TAKE);
    }
}

#[test]
fn what_a_frontend_left_in_its_queue_is_not_taken() {
    let (mut clients, link) = clients();
    let data = Bytes::from(vec![7; 4096]);
    for sequence in 1..=100 {
        let (epoch, attach) = (Epoch(1), AttachGeneration(1));
        let op = IoOp::Write { offset: 0, data: data.clone() };
        link.requests.try_send(IoRequest { sequence, low: 0, epoch, attach, op }).expect("room");
    }
    drop(link);
    let mut taken = Vec::new();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(clients.poll_take(&mut cx, &mut taken).is_ready());
    assert!(matches!(taken[..], [FromClient::Gone(STREAM)]), "{taken:?}");
}
