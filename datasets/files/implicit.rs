//! Extracts implicit prompts: the longest common prefix of both completions, as in TRL's
//! `extract_prompt`.

use reprpo_plugin::prelude::*;

/// Removes the common prefix of two completions and uses it as their prompt. Returns `None` if the
/// completions do not have a common prefix, or if one is plain text and the other a conversation.
///
/// A plain-text prompt ends before the first character that differs. A space directly before this
/// character is not part of the prompt. The prompt of a conversation ends before the first message
/// that differs. If one completion is a prefix of the other, the prompt excludes the last character
/// or message of the shorter completion. Neither completion is then empty.
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

/// Returns the byte length of the implicit prompt that `a` and `b` share.
fn shared_text(a: &str, b: &str) -> Option<usize> {
    let mut before = None;
    let mut last = None;
    for ((at, x), y) in a.char_indices().zip(b.chars()) {
        if x != y {
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

    fn messages(turns: &[(&str, &str)]) -> Text {
        Text::Messages(turns.iter().map(|(role, content)| Message::new(*role, *content)).collect())
    }

    /// The expected prompts and completions were computed with `extract_prompt` in TRL 1.16.
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
        let pair = extract(&messages(&[asked, blue]), &messages(&[asked, green])).unwrap();
        assert_eq!(
            pair,
            PreferencePair::new(messages(&[asked]), messages(&[blue]), messages(&[green]))
        );
        let pair =
            extract(&messages(&[asked, blue, asked, green]), &messages(&[asked, blue])).unwrap();
        assert_eq!(
            pair,
            PreferencePair::new(
                messages(&[asked]),
                messages(&[blue, asked, green]),
                messages(&[blue])
            )
        );
        assert_eq!(extract(&messages(&[blue]), &messages(&[green])), None);
        assert_eq!(extract(&messages(&[]), &messages(&[green])), None);
        assert_eq!(extract(&messages(&[blue]), &"text".into()), None);
    }
}
