//! Holders and a grantor, alone and as a world on one virtual clock.

mod chaos;
mod host;
mod world;
