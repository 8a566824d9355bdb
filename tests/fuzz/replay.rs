//! The decoders of bytes from outside, without a fuzzer: every file of every corpus, and what comes
//! of it when it is damaged.

#![expect(clippy::unwrap_used, reason = "a test whose set-up fails may panic")]

/// The decoders, as libFuzzer has them.
mod decoders;

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use decoders::{DECODERS, Decoder};

/// Damaged inputs for each decoder, the same ones in every run.
const DAMAGED: u32 = 3000;
/// What all decoders together may make the process grow by, KiB: they get a few KiB at a time.
const GROWTH_KIB_MAX: u64 = 32 << 10;
/// What the corpora may take, bytes.
const CORPORA_BYTES_MAX: usize = 200 << 10;

#[test]
fn no_decoder_minds_what_it_gets() {
    let before = peak_kib();
    let mut bytes = 0;
    for Decoder(name, decode) in DECODERS {
        let corpus = corpus(name);
        bytes += corpus.iter().map(Vec::len).sum::<usize>();
        for input in &corpus {
            decode(input);
        }
        damaged(&corpus, decode);
    }
    let grown = peak_kib() - before;
    println!("{} decoders, {bytes} bytes of corpora, {grown} KiB grown", DECODERS.len());
    assert!(grown < GROWTH_KIB_MAX, "{grown} KiB");
    assert!(bytes <= CORPORA_BYTES_MAX, "{bytes} bytes of corpora");
}

#[test]
fn every_corpus_belongs_to_a_decoder() {
    for entry in fs::read_dir(corpora()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(DECODERS.iter().any(|decoder| decoder.0 == name), "{name}");
    }
}

/// Some bytes become others, some are lost, some come from another input.
fn damaged(corpus: &[Vec<u8>], decode: fn(&[u8])) {
    let config = Config { cases: DAMAGED, failure_persistence: None, ..Config::default() };
    let rng = TestRunner::deterministic().rng().clone();
    let mut runner = TestRunner::new_with_rng(config, rng);
    let one = prop::sample::select(corpus.to_vec());
    let other = prop::sample::select(corpus.to_vec());
    let byte = prop_oneof![Just(0), Just(1), Just(0x7f), Just(0xff), any::<u8>()];
    let changes = vec((any::<prop::sample::Index>(), byte), 0..4);
    let cuts = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4_u8);
    let run = runner.run(&(one, other, changes, cuts), |(mut input, other, changes, cuts)| {
        for (at, byte) in changes {
            if !input.is_empty() {
                let at = at.index(input.len());
                input[at] = byte;
            }
        }
        let (here, there, how) = cuts;
        if how < 2 {
            input.truncate(here.index(input.len() + 1));
        }
        if how == 1 {
            input.extend(&other[there.index(other.len() + 1)..]);
        }
        decode(&input);
        Ok(())
    });
    run.unwrap();
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = corpora().join(name);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", dir.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn corpora() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

/// The most memory that this process has had.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
