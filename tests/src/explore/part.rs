//! Parts of a world. Most of what a step does not touch, the worlds before and after it have in
//! common: there is one copy of it, and its digest is taken once.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;

use super::canon;

/// A part that never changes, with its digest.
#[derive(Debug)]
pub(crate) struct Part<T> {
    value: T,
    digest: u64,
    /// The clock that the digest is of; `None` for what has no times in it.
    at: Option<u64>,
}

impl<T: Serialize> Part<T> {
    /// A part in which no time stands.
    pub(crate) fn timeless(value: T) -> Arc<Self> {
        let digest = canon::digest_of(0, &value);
        Arc::new(Self { value, digest, at: None })
    }

    pub(crate) fn timed(now: u64, value: T) -> Arc<Self> {
        let digest = canon::digest_of(now, &value);
        Arc::new(Self { value, digest, at: Some(now) })
    }

    pub(crate) fn digest(&self, now: u64) -> u64 {
        match self.at {
            Some(at) if at != now => canon::digest_of(now, &self.value),
            Some(_) | None => self.digest,
        }
    }
}

impl<T> Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Serialize> Serialize for Part<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

/// Changes a timeless part of one world.
pub(crate) fn change<T: Serialize + Clone, R>(
    part: &mut Arc<Part<T>>,
    how: impl FnOnce(&mut T) -> R,
) -> R {
    let mut value = part.value.clone();
    let result = how(&mut value);
    *part = Part::timeless(value);
    result
}

/// What there is one copy of.
pub(crate) trait Copied {
    /// Equal for equal ones only: the digest, and the clock that it is of.
    fn key(&self) -> (u64, Option<u64>);
}

impl<T> Copied for Part<T> {
    fn key(&self) -> (u64, Option<u64>) {
        (self.digest, self.at)
    }
}

/// One copy of each.
#[derive(Debug)]
pub(crate) struct Copies<T>(HashMap<(u64, Option<u64>), Arc<T>, canon::Spread>);

impl<T> Default for Copies<T> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<T: Copied> Copies<T> {
    /// Has a world use the copy that others have.
    pub(crate) fn share(&mut self, part: &mut Arc<T>) {
        let same = self.0.entry(part.key()).or_insert_with(|| part.clone());
        if !Arc::ptr_eq(same, part) {
            *part = same.clone();
        }
    }
}
