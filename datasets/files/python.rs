//! Converts output of Python's `json` module to standard JSON. Tokens that are not standard JSON
//! are replaced by valid tokens of the same length.

use super::flaws::LostValue;

/// Replaces `NaN`, `Infinity`, `-Infinity`, numbers that do not fit in 64 bits, and lone
/// surrogates. Also returns the original form and the index of each replaced value. The index
/// counts all values and keys in the text.
///
/// Within strings, only the escape sequences of lone surrogates are replaced.
pub fn standard_json(text: &str) -> (String, Vec<(usize, LostValue)>) {
    let bytes = text.as_bytes();
    let (mut written, mut lost, mut count) = (String::with_capacity(text.len()), Vec::new(), 0);
    let (mut at, mut copied) = (0, 0);
    while at < bytes.len() {
        let begin = at;
        match bytes[at] {
            b'"' => {
                let end = end_of_text(bytes, at);
                let surrogates = lone_surrogates(&text[at..end]);
                if let Some(first) = surrogates.first() {
                    lost.push((
                        count,
                        LostValue::Surrogate(text[at + first..at + first + ESCAPE].to_owned()),
                    ));
                }
                for offset in surrogates {
                    written.push_str(&text[copied..at + offset]);
                    // U+FFFD is the replacement character. Its escape sequence is as long as a
                    // surrogate's.
                    written.push_str(r"\ufffd");
                    copied = at + offset + ESCAPE;
                }
                (at, count) = (end, count + 1);
            }
            b'{' | b'[' => (at, count) = (at + 1, count + 1),
            b'}' | b']' | b',' | b':' => at += 1,
            byte if byte.is_ascii_whitespace() => at += 1,
            _ => {
                let ends = |b: &u8| b.is_ascii_whitespace() || b"\"{}[],:".contains(b);
                at = bytes[begin..]
                    .iter()
                    .position(ends)
                    .map_or(bytes.len(), |length| begin + length);
                let token = &text[begin..at];
                if let Some(value) = lost_value(token) {
                    lost.push((count, value));
                    written.push_str(&text[copied..begin]);
                    written.push('0');
                    written.extend(std::iter::repeat_n(' ', token.len() - 1));
                    copied = at;
                }
                count += 1;
            }
        }
    }
    written.push_str(&text[copied..]);
    (written, lost)
}

/// Parses a token that standard JSON cannot represent. Returns `None` for any other token.
fn lost_value(token: &str) -> Option<LostValue> {
    match token {
        "NaN" | "Infinity" | "-Infinity" => Some(LostValue::NotFinite(token.to_owned())),
        _ if !is_number(token) => None,
        _ if token.contains(['.', 'e', 'E']) => token
            .parse::<f64>()
            .is_ok_and(f64::is_infinite)
            .then(|| LostValue::TooLarge(token.to_owned())),
        _ if token.parse::<u64>().is_ok() || token.parse::<i64>().is_ok() => None,
        _ => Some(LostValue::TooLarge(token.to_owned())),
    }
}

/// Returns true if a token is a valid JSON number.
fn is_number(token: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let unsigned = token.strip_prefix('-').unwrap_or(token);
    let (mantissa, exponent) =
        unsigned.split_once(['e', 'E']).map_or((unsigned, None), |(m, e)| (m, Some(e)));
    let (whole, part) = mantissa.split_once('.').map_or((mantissa, None), |(w, p)| (w, Some(p)));
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && part.is_none_or(digits)
        && exponent.is_none_or(|e| digits(e.strip_prefix(['+', '-']).unwrap_or(e)))
}

/// Length in bytes of an escape sequence such as `\ud83d`.
const ESCAPE: usize = 6;

/// Returns the index of the first byte after the string token that begins at `at`.
fn end_of_text(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Returns the byte offsets of the lone surrogates in a string token.
fn lone_surrogates(text: &str) -> Vec<usize> {
    let bytes = text.as_bytes();
    let code = |at: usize| -> Option<u16> {
        let escape = bytes.get(at..at + ESCAPE)?.strip_prefix(br"\u")?;
        escape
            .iter()
            .all(u8::is_ascii_hexdigit)
            .then(|| u16::from_str_radix(std::str::from_utf8(escape).ok()?, 16).ok())?
    };
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let first = code(at);
        at = match (first, first.and_then(|_| code(at + ESCAPE))) {
            (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => at + 2 * ESCAPE,
            (Some(0xd800..0xe000), _) => {
                found.push(at);
                at + ESCAPE
            }
            (Some(_), _) => at + ESCAPE,
            (None, _) if bytes[at] == b'\\' => at + 2,
            (None, _) => at + 1,
        };
    }
    found
}
