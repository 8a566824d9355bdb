//! Holders and a grantor, alone and as a world on one virtual clock.

mod chaos;
mod client;
mod grants;
mod host;
mod locks;
mod uses;
mod world;
