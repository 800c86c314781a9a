//! Nix's base 32: its own alphabet, least significant digit last.
//!
//! Source of the format: `printHash32` in Nix's `libutil/hash.cc`.

/// The digits, in order of their value; `e`, `o`, `t` and `u` are left out.
pub const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// Value of a digit, or 0xff.
const VALUES: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut i = 0;
    while i < 32 {
        table[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// Number of digits for `bytes` bytes.
pub const fn encoded_len(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// `bytes` in Nix's base 32.
pub fn encode(bytes: &[u8]) -> String {
    let len = encoded_len(bytes.len());
    (0..len)
        .rev()
        .map(|digit| {
            let bit = digit * 5;
            let (byte, shift) = (bit / 8, bit % 8);
            let low = bytes[byte] as u16;
            let high = bytes.get(byte + 1).copied().unwrap_or(0) as u16;
            ALPHABET[(((high << 8 | low) >> shift) & 31) as usize] as char
        })
        .collect()
}

/// The `N` bytes that `text` stands for; `None` if it is not their canonical encoding.
pub fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != encoded_len(N) {
        return None;
    }
    let mut out = [0u8; N];
    for (digit, c) in text.iter().rev().enumerate() {
        let value = VALUES[*c as usize];
        if value == 0xff {
            return None;
        }
        let bit = digit * 5;
        let (byte, shift) = (bit / 8, bit % 8);
        let wide = (value as u16) << shift;
        out[byte] |= wide as u8;
        let carry = (wide >> 8) as u8;
        match out.get_mut(byte + 1) {
            Some(next) => *next |= carry,
            None if carry != 0 => return None,
            None => {}
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_hash_of_nothing() {
        // `nix hash file --base32 /dev/null`
        let empty = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        let bytes: [u8; 32] = decode(empty.as_bytes()).unwrap();
        assert_eq!(bytes[..4], [0xe3, 0xb0, 0xc4, 0x42]);
        assert_eq!(encode(&bytes), empty);
    }

    #[test]
    fn refuses_what_is_not_canonical() {
        // 52 digits hold 260 bits: the four above 256 have to be zero.
        assert!(decode::<32>("z".repeat(52).as_bytes()).is_none());
        assert!(decode::<32>(b"0mdq").is_none());
        assert!(decode::<20>("e".repeat(32).as_bytes()).is_none());
        assert!(decode::<20>("z".repeat(32).as_bytes()).is_some());
    }
}
