//! Introduces clients to hosts: the p2pfs rendezvous server.
