//! Keeps the documentation true: its links lead somewhere, its commands parse, its invariants are
//! asserted and tried, its metrics are the ones that running processes show.

mod docs {
    mod commands;
    mod invariants;
    mod links;
    mod metrics;
    mod words;
}
