//! Tests of whole parts and of real things.
