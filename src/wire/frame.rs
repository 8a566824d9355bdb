//! The first bytes of every frame.
