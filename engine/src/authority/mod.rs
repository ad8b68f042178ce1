//! The masters' replicated state.
