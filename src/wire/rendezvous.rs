//! Registration and matching: what daemons and the server say to each other under TLS.
