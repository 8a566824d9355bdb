//! libFuzzer's side: the decoder that `P2PFS_DECODER` names.

#![no_main]

use std::env;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod decoders;

static DECODE: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = env::var("P2PFS_DECODER").unwrap_or_default();
    let found = decoders::DECODERS.iter().find(|decoder| decoder.0 == name);
    found.unwrap_or_else(|| panic!("P2PFS_DECODER={name:?} is none of decoders.rs")).1
});

fuzz_target!(|bytes: &[u8]| DECODE(bytes));
