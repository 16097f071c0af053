//! From a model's byte pieces to text: a character split over tokens is held back until it is whole.

/// The bytes of a character that is not complete yet, at most 3.
#[derive(Debug, Default)]
pub(super) struct Text {
    pending: Vec<u8>,
}

impl Text {
    /// Returns the text that `bytes` completes. What can never become UTF-8 is shown as U+FFFD.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend(bytes);
        let mut text = String::new();
        loop {
            let error = match std::str::from_utf8(&self.pending) {
                Ok(all) => {
                    text.push_str(all);
                    self.pending.clear();
                    return text;
                }
                Err(error) => error,
            };
            let (valid, rest) = self.pending.split_at(error.valid_up_to());
            text.push_str(std::str::from_utf8(valid).expect("valid up to here"));
            let Some(invalid) = error.error_len() else {
                // The beginning of a character.
                self.pending = rest.to_vec();
                return text;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            self.pending = rest[invalid..].to_vec();
        }
    }

    /// Returns what the end of the output leaves of an incomplete character: U+FFFD or nothing.
    pub(super) fn finish(&mut self) -> &'static str {
        if std::mem::take(&mut self.pending).is_empty() { "" } else { "\u{FFFD}" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut text = Text::default();
        let euro = "€".as_bytes();
        assert_eq!(text.push(&euro[..1]), "");
        assert_eq!(text.push(&euro[1..2]), "");
        assert_eq!(text.push(&[euro[2], b'!']), "€!");
        assert_eq!(text.push(&[0xc2, 0]), "\u{FFFD}\0", "a beginning that nothing continues is no beginning");
        assert_eq!(text.finish(), "");
    }

    proptest! {
        #[test]
        fn pieces_joined_are_the_lossy_text_of_all_bytes(pieces: Vec<Vec<u8>>) {
            let mut text = Text::default();
            let mut joined: String = pieces.iter().map(|piece| text.push(piece)).collect();
            joined.push_str(text.finish());
            let bytes = pieces.concat();
            prop_assert_eq!(joined, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn real_text_survives_any_split(whole: String, width in 1..5usize) {
            let mut text = Text::default();
            let joined: String = whole.as_bytes().chunks(width).map(|piece| text.push(piece)).collect();
            prop_assert_eq!(joined, whole);
        }
    }
}
