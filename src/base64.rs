//! Bytes as text: base64 and base 16 (RFC 4648, sections 4 and 8).

/// The bytes that `text` stands for; padding at its end may be left out. The error is a reason.
pub fn decode(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.trim_end_matches('=').as_bytes();
    if text.len() - digits.len() > 2 || digits.len() % 4 == 1 {
        return Err(format!("is cut short: {} characters of base64", text.len()));
    }
    let mut bytes = Vec::new();
    let room = bytes.try_reserve_exact(digits.len() / 4 * 3 + 2);
    room.map_err(|_| "does not fit into this machine's memory".to_owned())?;
    for (group, quad) in digits.chunks(4).enumerate() {
        let mut bits = 0u32;
        for (place, &digit) in quad.iter().enumerate() {
            let value = value(digit).ok_or_else(|| {
                let at = 4 * group + place;
                format!("is no base64: character {at} is {:?}", char::from(digit))
            })?;
            bits |= value << (18 - 6 * place);
        }
        let [_, a, b, c] = bits.to_be_bytes();
        bytes.extend_from_slice(&[a, b, c][..quad.len() - 1]);
    }
    Ok(bytes)
}

/// `bytes` as text, padded.
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut quad = [0; 4];
        quad[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(quad);
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// `bytes` in hexadecimal, small letters.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn value(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::{decode, encode, hex};

    #[test]
    fn the_rfcs_vectors() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
            ("Zm9vYmE", "fooba"),
        ] {
            assert_eq!(decode(text).as_deref(), Ok(bytes.as_bytes()), "{text}");
            assert_eq!(encode(bytes.as_bytes()).trim_end_matches('='), text.trim_end_matches('='));
        }
        assert_eq!([encode(b""), encode(b"f"), encode(b"fo")], ["", "Zg==", "Zm8="]);
        assert_eq!(encode(&[0xfb, 0xff, 0xbf]), "+/+/");
        assert_eq!(decode("+/+/").unwrap(), [0xfb, 0xff, 0xbf]);
        assert_eq!((hex(b"foobar").as_str(), hex(&[0, 255]).as_str()), ("666f6f626172", "00ff"));
    }

    #[test]
    fn what_is_no_base64_says_where() {
        assert!(decode("Zm9*").unwrap_err().contains("character 3 is '*'"));
        assert!(decode("Zm9v Zg==").unwrap_err().contains("character 4 is ' '"));
        for text in ["Z", "Zm9vY", "Zg===", "===="] {
            assert!(decode(text).unwrap_err().contains("cut short"), "{text}");
        }
    }
}
