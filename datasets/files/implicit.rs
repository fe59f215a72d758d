//! Implicit prompts: the longest common beginning of both completions, as in TRL's
//! `extract_prompt`.

use reprpo_plugin::prelude::*;

/// Splits off the common beginning; `None` if there is none, or if the types differ.
///
/// For texts, it is the characters before the first difference, without a space at its end. For
/// conversations, it is the messages before the first difference. If one is the beginning of the
/// other, its last character or message stays in the completions, so that neither is empty.
pub fn extract(chosen: &Text, rejected: &Text) -> Option<PreferencePair> {
    match (chosen, rejected) {
        (Text::Plain(a), Text::Plain(b)) => {
            let at = shared_text(a, b)?;
            Some(PreferencePair::new(&a[..at], &a[at..], &b[at..]))
        }
        (Text::Messages(a), Text::Messages(b)) => {
            let same = a.iter().zip(b).take_while(|(x, y)| x == y).count();
            let at = same.min(a.len().min(b.len()).checked_sub(1)?);
            (at > 0)
                .then(|| PreferencePair::new(a[..at].to_vec(), a[at..].to_vec(), b[at..].to_vec()))
        }
        _ => None,
    }
}

/// Length in bytes of the common prompt of two texts.
fn shared_text(a: &str, b: &str) -> Option<usize> {
    let mut before = None;
    let mut last = None;
    for ((at, x), y) in a.char_indices().zip(b.chars()) {
        if x != y {
            // TRL looks for the blank before the first character too, which in Python is the text's
            // last.
            return Some(if before == Some(' ') { at - 1 } else { at }).filter(|at| *at > 0);
        }
        (before, last) = (Some(x), Some(at));
    }
    last.filter(|at| *at > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(chosen: &str, rejected: &str) -> Option<[String; 3]> {
        let pair = extract(&chosen.into(), &rejected.into())?;
        Some([pair.prompt, pair.chosen, pair.rejected].map(|text| match text {
            Text::Plain(text) => text,
            Text::Messages(_) => panic!("messages"),
        }))
    }

    fn said(turns: &[(&str, &str)]) -> Text {
        Text::Messages(turns.iter().map(|(role, content)| Message::new(*role, *content)).collect())
    }

    /// Every expectation here is what TRL 1.16's `extract_prompt` returns.
    #[test]
    fn texts_are_split_where_trl_splits_them() {
        for (chosen, rejected, want) in [
            ("The sky is blue.", "The sky is green.", ["The sky is", " blue.", " green."]),
            ("The sky is blue.", "The sky is black.", ["The sky is bl", "ue.", "ack."]),
            ("Q: 1+1?\nA: 2", "Q: 1+1?\nA: 3", ["Q: 1+1?\nA:", " 2", " 3"]),
            ("a\nb", "a\nc", ["a\n", "b", "c"]),
            ("two  blanks", "two  bears", ["two  b", "lanks", "ears"]),
            ("two  x", "two  y", ["two ", " x", " y"]),
            ("abc", "abcd", ["ab", "c", "cd"]),
            ("abc ", "abc d", ["abc", " ", " d"]),
            ("same", "same", ["sam", "e", "e"]),
            ("é x", "é y", ["é", " x", " y"]),
        ] {
            assert_eq!(
                texts(chosen, rejected).unwrap(),
                want.map(str::to_owned),
                "{chosen:?} {rejected:?}"
            );
        }
    }

    #[test]
    fn texts_without_a_shared_beginning_have_no_prompt() {
        for (chosen, rejected) in
            [("blue", "green"), ("blue ", "green"), ("", "green"), ("b", "b"), (" x", " y")]
        {
            assert_eq!(texts(chosen, rejected), None, "{chosen:?} {rejected:?}");
        }
    }

    #[test]
    fn conversations_are_split_at_the_first_message_that_differs() {
        let (asked, blue, green) = (
            ("user", "What color is the sky?"),
            ("assistant", "It is blue."),
            ("assistant", "It is green."),
        );
        let pair = extract(&said(&[asked, blue]), &said(&[asked, green])).unwrap();
        assert_eq!(pair, PreferencePair::new(said(&[asked]), said(&[blue]), said(&[green])));
        let pair = extract(&said(&[asked, blue, asked, green]), &said(&[asked, blue])).unwrap();
        assert_eq!(
            pair,
            PreferencePair::new(said(&[asked]), said(&[blue, asked, green]), said(&[blue]))
        );
        assert_eq!(extract(&said(&[blue]), &said(&[green])), None);
        assert_eq!(extract(&said(&[]), &said(&[green])), None);
        assert_eq!(extract(&said(&[blue]), &"text".into()), None);
    }
}
