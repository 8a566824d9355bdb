//! Bytes that people read out and type: Crockford's base 32, in which no two characters look alike.

const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The digits of `bytes`; the last one is filled up with zero bits.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut held, mut bits) = (0_u32, 0);
    for byte in bytes {
        held = held << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(DIGITS[(held >> bits & 31) as usize]));
        }
        held &= (1 << bits) - 1;
    }
    if bits > 0 {
        text.push(char::from(DIGITS[(held << (5 - bits) & 31) as usize]));
    }
    text
}

/// Reads [`encode`]'s form, however it is grouped and whichever case it has.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    let (mut held, mut bits) = (0_u32, 0);
    for digit in normal(text).bytes() {
        let value = DIGITS.iter().position(|known| *known == digit)?;
        held = held << 5 | u32::try_from(value).ok()?;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 255) as u8);
        }
        held &= (1 << bits) - 1;
    }
    (bits < 5 && held == 0).then_some(bytes)
}

/// The digits alone, as they are compared: without spaces and dashes, what looks like a digit is
/// one.
pub fn normal(text: &str) -> String {
    let meant = |c: char| match c.to_ascii_uppercase() {
        '-' => None,
        'O' => Some('0'),
        'I' | 'L' => Some('1'),
        c if c.is_whitespace() => None,
        c => Some(c),
    };
    text.chars().filter_map(meant).collect()
}

/// In groups of four with dashes between them.
pub fn grouped(text: &str) -> String {
    let digits: Vec<char> = text.chars().collect();
    let groups: Vec<String> = digits.chunks(4).map(|group| group.iter().collect()).collect();
    groups.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_however_they_are_typed() {
        for len in 0..40_u8 {
            let bytes: Vec<u8> = (0..len).map(|at| at.wrapping_mul(73) ^ len).collect();
            let text = encode(&bytes);
            assert_eq!(decode(&text), Some(bytes.clone()), "{text}");
            let typed = grouped(&text).to_lowercase().replace('0', "o").replace('1', "l");
            assert_eq!(decode(&typed), Some(bytes));
        }
    }

    #[test]
    fn what_is_no_digit_is_refused() {
        for bad in ["U", "AB!D", "\u{e9}", "1", "ZZZ"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
