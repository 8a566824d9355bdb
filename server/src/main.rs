//! Introduces clients to hosts: the p2pfs rendezvous server.

fn main() {}
