//! Sticks, and the key directories that stand in for them.
