//! Probes: small authenticated datagrams that open and test a path.
