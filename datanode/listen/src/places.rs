//! Who has the places of a listener.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::Limits;

/// The connections of a listener, by address.
#[derive(Debug)]
pub(crate) struct Places(Mutex<Taken>);

/// A connection has a place in one of them.
#[derive(Debug)]
struct Taken {
    next: u64,
    /// Anybody's.
    all: Group,
    /// Those of the cluster itself.
    kept: Group,
    /// Came when all places were taken, and have to say what they are.
    arriving: Group,
}

#[derive(Debug)]
struct Group {
    most: usize,
    count: usize,
    /// Of each address its connections by number, and what closes each.
    by_address: BTreeMap<IpAddr, BTreeMap<u64, CancellationToken>>,
}

/// A connection's place, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    address: IpAddr,
    number: u64,
    /// The place is another's: the connection is to be closed.
    pub(crate) lost: CancellationToken,
    places: Arc<Places>,
}

/// What counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

impl Places {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self(Mutex::new(Taken {
            next: 0,
            all: Group::new(limits.connections.max(1)),
            kept: Group::new(limits.kept),
            arriving: Group::new(limits.arriving),
        }))
    }

    /// A place for a connection from `address`; `None` if there is none for it.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = network(address);
        let mut taken = self.locked();
        let (number, lost) = (taken.next, CancellationToken::new());
        if taken.all.has_room(address) {
            taken.all.insert(address, number, lost.clone());
        } else if taken.arriving.drop_oldest() {
            taken.arriving.insert(address, number, lost.clone());
        } else {
            return None;
        }
        taken.next += 1;
        drop(taken);
        Some(Place { address, number, lost, places: Arc::clone(self) })
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Taken> {
        // Every update leaves it whole, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The connection serves the cluster: none of a client makes it close from now on. Without
    /// a place of those left it stays what it was.
    pub(crate) fn keep(&self) {
        let mut taken = self.places.locked();
        let Taken { all, kept, arriving, .. } = &mut *taken;
        if kept.has(self.address, self.number) || self.lost.is_cancelled() {
            return;
        }
        if !kept.has_room(self.address) {
            tracing::debug!(address = %self.address, "no place is left for connections of nodes");
            return;
        }
        for group in [all, arriving] {
            group.remove(self.address, self.number);
        }
        kept.insert(self.address, self.number, self.lost.clone());
    }

    pub(crate) fn is_arriving(&self) -> bool {
        self.places.locked().arriving.has(self.address, self.number)
    }

    /// Whether it has, or now gets, a place to stay.
    pub(crate) fn stays(&self) -> bool {
        let mut taken = self.places.locked();
        let Taken { all, arriving, .. } = &mut *taken;
        if !arriving.has(self.address, self.number) {
            return !self.lost.is_cancelled();
        }
        if !all.has_room(self.address) {
            return false;
        }
        arriving.remove(self.address, self.number);
        all.insert(self.address, self.number, self.lost.clone());
        true
    }
}

impl Group {
    fn new(most: usize) -> Self {
        Self { most, count: 0, by_address: BTreeMap::new() }
    }

    fn has(&self, address: IpAddr, number: u64) -> bool {
        self.by_address.get(&address).is_some_and(|theirs| theirs.contains_key(&number))
    }

    fn insert(&mut self, address: IpAddr, number: u64, lost: CancellationToken) {
        self.by_address.entry(address).or_default().insert(number, lost);
        self.count += 1;
    }

    /// Whether there is a place, if need be that of the newest connection of the address that has most. Not if
    /// `address` would have as many then: two would go on taking it from each other.
    fn has_room(&mut self, address: IpAddr) -> bool {
        if self.count < self.most {
            return true;
        }
        let own = self.by_address.get(&address).map_or(0, BTreeMap::len);
        let most = self.by_address.iter().max_by_key(|(_, connections)| connections.len());
        let Some((from, theirs)) = most.filter(|(_, theirs)| theirs.len() > own + 1) else {
            return false;
        };
        let newest = theirs.keys().next_back().map(|number| (*from, *number));
        newest.is_some_and(|(from, number)| self.close(from, number))
    }

    /// Whether there is a place, if need be that of the oldest connection of the address that has most: that
    /// one had its time, and whoever comes always has some.
    fn drop_oldest(&mut self) -> bool {
        if self.count < self.most {
            return true;
        }
        let oldest = self.by_address.iter().filter_map(|(address, theirs)| {
            theirs.keys().next().map(|number| (theirs.len(), Reverse(*number), *address))
        });
        oldest.max().is_some_and(|(_, Reverse(number), address)| self.close(address, number))
    }

    /// Frees a place, and has its connection closed. `false` if it was free already.
    fn close(&mut self, address: IpAddr, number: u64) -> bool {
        self.remove(address, number).inspect(CancellationToken::cancel).is_some()
    }

    fn remove(&mut self, address: IpAddr, number: u64) -> Option<CancellationToken> {
        let connections = self.by_address.get_mut(&address)?;
        let lost = connections.remove(&number)?;
        if connections.is_empty() {
            self.by_address.remove(&address);
        }
        self.count -= 1;
        Some(lost)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.locked();
        let Taken { all, kept, arriving, .. } = &mut *taken;
        for group in [all, kept, arriving] {
            group.remove(self.address, self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(connections: usize) -> Arc<Places> {
        Arc::new(Places::new(&Limits { connections, ..Limits::pages() }))
    }

    fn of_grpc(connections: usize, kept: usize, arriving: usize) -> Arc<Places> {
        Arc::new(Places::new(&Limits { connections, kept, arriving, ..Limits::grpc() }))
    }

    fn take(places: &Arc<Places>, address: &str) -> Option<Place> {
        places.take(address.parse().expect("an address"))
    }

    #[test]
    fn who_has_most_makes_room_and_only_down_to_an_equal_share() {
        let places = places(6);
        let many: Vec<_> =
            (0..6).map(|_| take(&places, "10.0.0.1").expect("there is room")).collect();
        assert!(take(&places, "10.0.0.1").is_none(), "its own make no room for it");
        let others: Vec<_> =
            (0..3).map(|_| take(&places, "10.0.0.2").expect("is let in")).collect();
        let lost: Vec<_> = many.iter().map(|place| place.lost.is_cancelled()).collect();
        assert_eq!(lost, [false, false, false, true, true, true], "the newest");
        assert!(take(&places, "10.0.0.2").is_none(), "three each");
        let third = take(&places, "10.0.0.3").expect("is let in");
        drop(many);
        assert!(others.iter().filter(|place| place.lost.is_cancelled()).count() <= 1);
        drop((others, third));
        let taken = places.locked();
        assert!(taken.all.count == 0 && taken.all.by_address.is_empty());
    }

    #[test]
    fn what_serves_the_cluster_finds_a_place_and_keeps_it() {
        let places = of_grpc(2, 1, 2);
        let early = take(&places, "10.0.0.1").expect("there is room");
        early.keep();
        let _clients = [0; 2].map(|_| take(&places, "10.0.0.1").expect("there is room"));
        let waits = take(&places, "10.0.0.1").expect("may say what it is");
        assert!(waits.is_arriving() && !waits.stays());
        waits.keep();
        assert!(waits.is_arriving(), "those places have a limit too");
        drop(early);
        waits.keep();
        assert!(!waits.is_arriving() && waits.stays());
        // Silent ones by the dozen make it and the next peer's wait no longer.
        let silent: Vec<_> =
            (0..12).map(|_| take(&places, "10.0.0.1").expect("may say what it is")).collect();
        let lost = silent.iter().filter(|place| place.lost.is_cancelled()).count();
        assert!(lost == 10 && silent[..10].iter().all(|place| !place.stays()), "the oldest");
        assert!(!waits.lost.is_cancelled());
    }

    #[test]
    fn who_arrives_gets_a_place_that_became_free() {
        let places = of_grpc(1, 1, 1);
        let client = take(&places, "10.0.0.1").expect("there is room");
        let next = take(&places, "10.0.0.1").expect("may say what it is");
        drop(client);
        assert!(next.stays() && !next.is_arriving());
        assert!(take(&places, "10.0.0.1").is_some_and(|place| place.is_arriving()));
        drop(next);
        let taken = places.locked();
        assert_eq!([taken.all.count, taken.kept.count, taken.arriving.count], [0; 3]);
    }

    #[test]
    fn one_machine_has_one_address() {
        let places = places(2);
        let _two = ["2001:db8::1", "2001:db8::2"].map(|a| take(&places, a).expect("there is room"));
        assert!(take(&places, "2001:db8::3").is_none());
        assert!(take(&places, "2001:db8:0:1::1").is_some());
        let places = super::tests::places(2);
        let _two =
            ["10.0.0.1", "::ffff:10.0.0.1"].map(|a| take(&places, a).expect("there is room"));
        assert!(take(&places, "10.0.0.1").is_none());
    }
}
