//! libFuzzer's side: the decoder that `P2PFS_DECODER` names. If it names several, with commas, the
//! first byte of an input says which of them gets the rest.

#![no_main]

use std::env;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod decoders;

static DECODE: LazyLock<Vec<fn(&[u8])>> = LazyLock::new(|| {
    let names = env::var("P2PFS_DECODER").unwrap_or_default();
    let decode = |name| {
        let found = decoders::DECODERS.iter().find(|decoder| decoder.0 == name);
        found.unwrap_or_else(|| panic!("P2PFS_DECODER: {name:?} is none of decoders.rs")).1
    };
    names.split(',').map(decode).collect()
});

fuzz_target!(|bytes: &[u8]| {
    match (DECODE.as_slice(), bytes) {
        ([only], _) => only(bytes),
        (several, [which, rest @ ..]) => several[usize::from(*which) % several.len()](rest),
        (_, []) => {}
    }
});
