//! Reads 4 KiB at random offsets of a file: `random_read FILE COUNT`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const BLOCK: u64 = 4096;

fn main() -> io::Result<()> {
    let usage = || io::Error::other("usage: random_read FILE COUNT");
    let mut args = std::env::args_os().skip(1);
    let file = File::open(args.next().ok_or_else(usage)?)?;
    let count = args.next().ok_or_else(usage)?;
    let count: u32 = count
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(usage)?;
    let blocks = (file.metadata()?.len() / BLOCK).max(1);
    let mut buffer = [0; BLOCK as usize];
    // the same offsets in every run (xorshift64*)
    let mut state = 0x0070_3270_6673_u64;
    for _ in 0..count {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let block = state.wrapping_mul(0x2545_f491_4f6c_dd1d) % blocks;
        file.read_exact_at(&mut buffer, block * BLOCK)?;
    }
    Ok(())
}
