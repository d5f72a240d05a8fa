//! Texts that every message has, made and read on the stack: each of them in memory of its own would cost an append more
//! than what is done with it.

use base64::{Engine, engine::general_purpose::STANDARD};
use smallvec::{SmallVec, smallvec};

/// What base64 holds: a header, an id.
pub(crate) type Bytes = SmallVec<[u8; 128]>;

/// A message that is about to become base64.
pub(crate) fn encode(message: &impl prost::Message) -> Bytes {
    let mut bytes: Bytes = smallvec![0; message.encoded_len()];
    message.encode_raw(&mut bytes.as_mut_slice());
    bytes
}

/// Hands the base64 of `bytes` on.
pub(crate) fn with_base64<R>(bytes: &[u8], then: impl FnOnce(&str) -> R) -> R {
    let mut text: SmallVec<[u8; 256]> = smallvec![0; bytes.len().div_ceil(3).saturating_mul(4)];
    let length = STANDARD.encode_slice(bytes, &mut text).unwrap_or(0);
    then(text.get(..length).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default())
}

/// What base64 holds; `None` for anything else.
pub(crate) fn from_base64(text: &str) -> Option<Bytes> {
    let mut bytes: Bytes = smallvec![0; base64::decoded_len_estimate(text.len())];
    let length = STANDARD.decode_slice(text, &mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

/// A number in base 36.
pub(crate) struct Base36 {
    /// The last ones; `u64::MAX` has as many.
    digits: [u8; 13],
    first: usize,
}

impl Base36 {
    pub(crate) fn new(mut value: u64) -> Self {
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut number = Self { digits: [0; 13], first: 13 };
        for (place, digit) in number.digits.iter_mut().enumerate().rev() {
            *digit = DIGITS[usize::try_from(value % 36).unwrap_or(0)];
            number.first = place;
            value /= 36;
            if value == 0 {
                break;
            }
        }
        number
    }
}

impl AsRef<str> for Base36 {
    fn as_ref(&self) -> &str {
        std::str::from_utf8(&self.digits[self.first..]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn base64_is_what_the_library_makes_of_any_length(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let text = with_base64(&bytes, str::to_owned);
            prop_assert_eq!(&text, &STANDARD.encode(&bytes));
            prop_assert_eq!(from_base64(&text), Some(bytes.into()));
        }

        #[test]
        fn text_is_read_as_the_library_reads_it(text: String, ascii in "[A-Za-z0-9+/]{0,400}={0,2}") {
            for text in [text, ascii] {
                prop_assert_eq!(from_base64(&text), STANDARD.decode(&text).ok().map(Bytes::from));
            }
        }
    }
}
