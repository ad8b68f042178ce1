//! How a frontend keeps its place across failovers.
