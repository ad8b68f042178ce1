//! Attachments: what a forwarder asks for, and what ends them.

use super::*;

#[test]
fn another_attachment_fails_the_clients_that_were_there() {
    let mut bench = Bench::serving(Params::default());
    let sent = bench.submit(1, write(1));
    bench.end(StreamEnd::AttachLost, None);
    let later = bench.submit(1, write(1));
    for request in [sent, later] {
        assert!(matches!(bench.answers.get(&request), Some(Answer::Failed(_))));
    }
    bench.pass(10_000);
    assert!(bench.link.is_none(), "nobody may use a link");
    bench.feed(Input::Attached(ClientId(2)));
    bench.pass(10_000);
    assert!(bench.link.is_some());
    assert_eq!(bench.attached, [ClientId(1)], "client 2 waits");
    bench.open(1, 0);
    assert_eq!(bench.attached, [ClientId(1), ClientId(2)]);
}

/// A client that has the volume to itself, with a link open in generation 1.
fn exclusive() -> Bench {
    let mut bench = Bench::new(Params::default());
    bench.forwarder = Forwarder::exclusive(volume(), Params::default());
    bench.feed(Input::Config(config(1, 1, 1)));
    bench.feed(Input::Attached(ClientId(1)));
    bench.end(over_in(0, 0), None);
    bench.open(1, 0);
    bench
}

fn over_in(attach: u64, loss: u64) -> StreamEnd {
    let (attach, loss_generation) = (AttachGeneration(attach), LossGeneration(loss));
    StreamEnd::AttachOver { attach, loss_generation }
}

fn asked(bench: &Bench) -> Vec<Attach> {
    let mut asked = Vec::new();
    for output in &bench.opened {
        let Output::Open { attach, .. } = output else { panic!("{output:?} opens nothing") };
        asked.push(*attach);
    }
    asked
}

#[test]
fn a_session_comes_again_with_its_own_generation() {
    let mut bench = exclusive();
    assert_eq!(bench.attached, [ClientId(1)]);
    bench.lose();
    bench.pass(10);
    let over =
        |generation: Option<u64>| Attach::Exclusive { over: generation.map(AttachGeneration) };
    let expected = [over(None), over(Some(0)), Attach::Again(AttachGeneration(1))];
    assert_eq!(asked(&bench), expected);
    // A primary that takes it for another's is not believed.
    let link = bench.link.take().expect("a link").0;
    let (_, outputs) = bench.forwarder.step(
        Millis(bench.now),
        Input::LinkOpened {
            link,
            epoch: Epoch(1),
            attach: AttachGeneration(2),
            loss_generation: LossGeneration(0),
        },
    );
    assert_eq!(outputs, [Output::CloseLink(link)]);
    assert!(bench.forwarder.has_ended());
}

/// What it asks to take the volume from is what was in force when it asked first.
#[test]
fn an_attachment_that_is_repeated_takes_the_volume_from_nobody_later() {
    let mut bench = Bench::new(Params::default());
    bench.forwarder = Forwarder::exclusive(volume(), Params::default());
    bench.feed(Input::Config(config(1, 1, 1)));
    bench.feed(Input::Attached(ClientId(1)));
    bench.end(over_in(3, 0), None);
    bench.lose();
    bench.pass(1_000);
    bench.end(over_in(7, 0), None);
    bench.pass(1_000);
    let over = Attach::Exclusive { over: Some(AttachGeneration(3)) };
    assert_eq!(asked(&bench)[1..], [over, over, over]);
    bench.end(StreamEnd::AttachLost, None);
    assert!(matches!(&bench.refused[..], [(ClientId(1), why)] if why.contains("newer attachment")));
}

/// A loss came after it was told what it takes the volume from: that number may be another's now, and what
/// is in force may have been attached since. So it neither goes on with what it was told nor asks anew.
#[test]
fn an_attachment_that_a_loss_comes_upon_is_not_tried_again() {
    for refused in [true, false] {
        let mut bench = Bench::new(Params::default());
        bench.forwarder = Forwarder::exclusive(volume(), Params::default());
        bench.feed(Input::Config(config(1, 1, 1)));
        bench.feed(Input::Attached(ClientId(1)));
        let queued = bench.submit(1, write(1));
        bench.end(over_in(3, 0), None);
        let Some(Output::Open { attach, loss_generation, .. }) = bench.opened.last() else {
            panic!("{:?} opens nothing", bench.opened);
        };
        let over = Attach::Exclusive { over: Some(AttachGeneration(3)) };
        assert_eq!((*attach, *loss_generation), (over, Some(LossGeneration(0))));
        match refused {
            true => bench.end(StreamEnd::SessionLost, None),
            // A primary that takes what it should refuse is not believed.
            false => bench.open(1, 1),
        }
        assert!(
            matches!(&bench.refused[..], [(ClientId(1), why)] if why.contains("connect again")),
            "{:?}",
            bench.refused
        );
        assert!(matches!(bench.answers.get(&queued), Some(Answer::Failed(_))));
        bench.pass(100_000);
        assert!(bench.link.is_none() && bench.forwarder.has_ended());
        assert_eq!((bench.opened.len(), &bench.attached[..]), (2, &[][..]));
    }
}

/// It goes on where its predecessor ended, or not at all: what is in force now is of no use to it.
#[test]
fn who_follows_an_attachment_takes_the_volume_from_no_other() {
    let before = Attachment {
        session: SessionId(Uuid::from_u128(77)),
        generation: AttachGeneration(0),
        loss_generation: LossGeneration(2),
    };
    let follows = || {
        let mut bench = Bench::new(Params::default());
        let own = before;
        bench.forwarder = Forwarder::following(volume(), Params::default(), own);
        bench.feed(Input::Config(config(1, 1, 1)));
        bench.feed(Input::Attached(ClientId(1)));
        let Some(Output::Open { attach, loss_generation, .. }) = bench.opened.last() else {
            panic!("{:?} opens nothing", bench.opened);
        };
        let over = Attach::Follow { over: AttachGeneration(0), session: before.session };
        assert_eq!((*attach, *loss_generation), (over, Some(LossGeneration(2))));
        assert_eq!(bench.forwarder.attachment(), None);
        bench
    };
    let mut bench = follows();
    bench.lose();
    bench.pass(10);
    assert_eq!(asked(&bench)[0], asked(&bench)[1], "an unanswered attempt is repeated as it was");
    bench.open(1, 2);
    assert_eq!(bench.attached, [ClientId(1)]);
    let stands = bench.forwarder.attachment().expect("it stands");
    assert_eq!(
        (stands.generation, stands.loss_generation),
        (AttachGeneration(1), LossGeneration(2))
    );
    assert_ne!(stands.session, before.session);
    // It is over, or a loss was counted, which a primary that should refuse does not.
    for refuse in [
        |bench: &mut Bench| bench.end(StreamEnd::AttachLost, None),
        |bench: &mut Bench| bench.end(StreamEnd::SessionLost, None),
        |bench: &mut Bench| bench.open(1, 3),
    ] {
        let mut bench = follows();
        refuse(&mut bench);
        bench.pass(100_000);
        assert!(bench.link.is_none() && bench.forwarder.has_ended());
        assert_eq!((bench.refused.len(), &bench.attached[..]), (1, &[][..]));
    }
}

/// The volume may have been another's meanwhile: nothing goes on by itself.
#[test]
fn an_exclusive_client_whose_attachment_ended_gets_errors_for_ever() {
    for reason in [StreamEnd::AttachLost, StreamEnd::SessionLost] {
        let mut bench = exclusive();
        let sent = bench.submit(1, write(1));
        bench.lose();
        let unsent = bench.submit(1, write(2));
        bench.pass(10);
        bench.end(reason, None);
        let later = bench.submit(1, read(3));
        for request in [sent, unsent, later] {
            assert!(matches!(bench.answers.get(&request), Some(Answer::Failed(_))));
        }
        bench.pass(100_000);
        assert!(bench.link.is_none() && bench.forwarder.has_ended());
    }
}

#[test]
fn a_shared_client_is_told_who_has_the_volume_to_itself() {
    let mut bench = Bench::new(Params::default());
    bench.feed(Input::Config(config(1, 1, 1)));
    bench.feed(Input::Attached(ClientId(1)));
    let queued = bench.submit(1, write(1));
    let session = SessionId(Uuid::from_u128(77));
    let (attach, node, held_ms) = (AttachGeneration(2), None, None);
    let by = crate::replication::io::HeldBy { session, attach, node, held_ms };
    bench.end(StreamEnd::Held(Box::new(by)), None);
    assert_eq!(bench.refused, [(ClientId(1), by.to_string())]);
    assert_eq!(bench.answers.get(&queued), Some(&Answer::Failed(by.to_string())));
    assert!(bench.link.is_none());
}
