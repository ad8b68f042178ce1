//! Requests that wait for the volume's limits.
//!
//! They wait where they came, in their links' queues, which hold back the frontends; only the first of each
//! is looked at. What ends a stream, opens one, or answers a request passes them by.

use std::pin::Pin;
use std::time::Duration;

use sbk_engine::authority::Limits;
use tokio::time::{Instant, Sleep, sleep_until};

use super::*;
use crate::volume::bucket::{Nanos, SECOND};
use crate::volume::throttle::{Cost, Throttle, Turn};

/// Requests that pass in one turn of the task.
const PASS: usize = 256;
/// How often a frontend is told that its requests are held back: far more often than they would fail.
const TELL_EVERY: Nanos = SECOND;

/// One stream's place among those that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// The request that is next in it.
    pub(super) next: Option<IoRequest>,
    turn: Turn,
    /// When its frontend was told last.
    told: Option<Nanos>,
}

impl Waiting {
    fn cost(&self) -> Option<Cost> {
        self.next.as_ref().map(|request| Cost::of(&request.op))
    }
}

/// The limits, and what came of them.
#[derive(Debug)]
pub(super) struct Holding {
    throttle: Option<Throttle>,
    /// Where the clock begins.
    origin: Instant,
    /// Since when some request waits.
    since: Option<Nanos>,
    held: HeldBack,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What limits did to requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::volume) struct HeldBack {
    /// Requests that passed after some had waited.
    pub(in crate::volume) requests: u64,
    /// For how long any waited.
    pub(in crate::volume) nanos: Nanos,
}

impl Default for Holding {
    fn default() -> Self {
        let origin = Instant::now();
        Self { throttle: None, origin, since: None, held: HeldBack::default(), timer: None }
    }
}

impl Holding {
    fn now(&self) -> Nanos {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Clients {
    /// Puts limits in force, also for what waits already.
    pub(in crate::volume) fn set_limits(&mut self, limits: Limits) {
        let now = self.holding.now();
        let since = self.holding.since.take();
        self.holding.held.nanos += since.map_or(0, |since| now.saturating_sub(since));
        self.holding.throttle = match self.holding.throttle.take() {
            Some(throttle) => throttle.changed(now, limits),
            None => Throttle::new(now, limits),
        };
    }

    /// What limits did since this was asked last.
    pub(in crate::volume) fn take_held_back(&mut self) -> HeldBack {
        std::mem::take(&mut self.holding.held)
    }

    pub(super) fn is_limited(&self) -> bool {
        self.holding.throttle.is_some()
    }

    /// Takes what may pass now, in `taken`. Pending, until more may, if nothing does.
    pub(super) fn poll_limited(
        &mut self,
        cx: &mut Context<'_>,
        taken: &mut Vec<FromClient>,
    ) -> Poll<()> {
        let now = self.holding.now();
        let since = self.holding.since.take();
        self.holding.held.nanos += since.map_or(0, |since| now.saturating_sub(since));
        let Some(throttle) = &mut self.holding.throttle else { return Poll::Pending };
        for (id, stream) in &mut self.streams {
            // Nobody waits for the answers, and what was not taken was never logged.
            let gone = stream.requests.is_closed() || stream.poll_next(cx, throttle).is_err();
            if gone {
                stream.waiting.next = None;
                taken.push(FromClient::Gone(*id));
            }
        }
        let mut due = None;
        while taken.len() < PASS {
            let waiting = self.streams.iter_mut().filter_map(|(id, stream)| {
                let cost = stream.waiting.cost()?;
                Some((!cost.is_free(), stream.waiting.turn.start, *id, cost, stream))
            });
            let first = waiting.min_by_key(|(costs, start, id, ..)| (*costs, *start, *id));
            let Some((costs, _, id, cost, stream)) = first else { break };
            if costs {
                let wait = throttle.wait(now, cost);
                if wait > 0 {
                    due = Some(now.saturating_add(wait));
                    break;
                }
                throttle.pass(now, &mut stream.waiting.turn, cost);
                self.holding.held.requests += u64::from(since.is_some());
            }
            if let Some(request) = stream.waiting.next.take() {
                taken.push(FromClient::Request(id, request));
            }
            // If it is gone that is found in the next turn: this one takes something.
            let _gone = stream.poll_next(cx, throttle);
        }
        if let Some(due) = due {
            self.holding.since = Some(now);
            let told = self.tell_held_back(now);
            if taken.is_empty() {
                self.wake_at(cx, due.min(told));
            }
        }
        if taken.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Tells the frontends whose requests wait, and returns when it is to be done again.
    fn tell_held_back(&mut self, now: Nanos) -> Nanos {
        let mut next = Nanos::MAX;
        for stream in self.streams.values_mut().filter(|stream| stream.waiting.next.is_some()) {
            let last = stream.waiting.told.filter(|told| now < told.saturating_add(TELL_EVERY));
            // Where answers pile up unread there is room for answers only.
            if last.is_none() && stream.events.capacity() > SEQUENCE_WINDOW as usize {
                // One that is gone is noticed by its requests' end.
                let _gone = stream.events.try_send(LinkEvent::HeldBack);
            }
            let told = *stream.waiting.told.insert(last.unwrap_or(now));
            next = next.min(told.saturating_add(TELL_EVERY));
        }
        next
    }

    fn wake_at(&mut self, cx: &mut Context<'_>, at: Nanos) {
        let deadline = self.holding.origin + Duration::from_nanos(at);
        let timer = self.holding.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        timer.as_mut().reset(deadline);
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

impl Stream {
    /// Looks at the request that is next in it, if there is one. An error if the frontend is gone.
    fn poll_next(&mut self, cx: &mut Context<'_>, throttle: &Throttle) -> Result<(), ()> {
        if self.waiting.next.is_some() {
            return Ok(());
        }
        match self.requests.poll_recv(cx) {
            Poll::Ready(Some(request)) => {
                throttle.arrive(&mut self.waiting.turn);
                self.waiting.next = Some(request);
                Ok(())
            }
            Poll::Ready(None) => Err(()),
            Poll::Pending => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "holding_tests.rs"]
mod tests;
