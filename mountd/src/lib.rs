//! Mounts the disk at home: the p2pfs client.
