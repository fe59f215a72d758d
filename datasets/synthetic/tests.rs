use std::collections::HashMap;

use super::*;

fn read(config: &Synthetic, split: &str) -> Vec<PreferencePair> {
    config.clone().build().unwrap().pairs(split).unwrap().collect::<Result<_>>().unwrap()
}

fn plain(text: &Text) -> &str {
    match text {
        Text::Plain(text) => text,
        Text::Messages(_) => panic!("synthetic prompts and completions should be plain text"),
    }
}

#[test]
fn a_seed_always_generates_the_same_pairs_and_another_seed_others() {
    let (zero, one) = (Synthetic::default(), Synthetic { seed: 1, ..Synthetic::default() });
    for split in ["train", "test", "oos", "rnd"] {
        assert_eq!(read(&zero, split), read(&zero, split), "{split}");
        assert_ne!(read(&zero, split), read(&one, split), "{split}");
    }
}

/// Published results depend on exactly these pairs.
#[test]
fn the_pairs_of_seed_0_do_not_change() {
    let is = |split, want: [&str; 3]| {
        let pair = read(&Synthetic::default(), split).swap_remove(0);
        assert_eq!([&pair.prompt, &pair.chosen, &pair.rejected].map(plain), want);
    };
    is(
        "train",
        [
            "The log says the drawer holds two spoons. I would say it holds three.\nAnswer:",
            " It holds two spoons.",
            " It holds three spoons.",
        ],
    );
    is(
        "oos",
        [
            "The contract states that Tom lives in Cairo. My memory is that the home is in \
                Paris.\nAnswer:",
            " Tom lives in Cairo.",
            " Tom lives in Paris.",
        ],
    );
    is(
        "rnd",
        [
            "Mia is taller than Tim. Eva is taller than Mia.\nAnswer:",
            " Eva is the tallest.",
            " Tim is the tallest.",
        ],
    );
}

#[test]
fn splits_have_the_configured_sizes_and_a_split_of_size_0_is_absent() {
    let config = Synthetic { train: 7, test: 0, oos: 3, rnd: 5, ..Synthetic::default() };
    let data = config.clone().build().unwrap();
    let splits: Vec<_> = data.splits().into_iter().map(|s| (s.name, s.pairs)).collect();
    assert_eq!(
        splits,
        [("train", 7), ("oos", 3), ("rnd", 5)].map(|(name, n)| (name.to_owned(), Some(n)))
    );
    for (name, pairs) in splits {
        assert_eq!(Some(read(&config, &name).len()), pairs);
    }
    assert!(format!("{:?}", data.pairs("test").err().unwrap()).starts_with("unknown split `test`"));
}

#[test]
fn a_size_outside_the_limits_is_an_error() {
    let error = |config: Synthetic| format!("{:?}", config.build().err().unwrap());
    assert_eq!(
        error(Synthetic { train: 0, ..Synthetic::default() }),
        "`train` of `synthetic` must be between 1 and 10000, got 0"
    );
    assert_eq!(
        error(Synthetic { rnd: 10_001, ..Synthetic::default() }),
        "`rnd` of `synthetic` must be between 0 and 10000, got 10001"
    );
}

#[test]
fn no_prompt_occurs_twice_even_in_the_largest_splits() {
    let all = Synthetic {
        train: LARGEST,
        test: LARGEST,
        oos: LARGEST,
        rnd: LARGEST,
        ..Synthetic::default()
    };
    let mut seen = HashSet::new();
    for split in ["train", "test", "oos", "rnd"] {
        let pairs = read(&all, split);
        assert_eq!(pairs.len(), LARGEST, "{split}");
        for pair in pairs {
            assert!(seen.insert(pair.prompt), "{split}");
        }
    }
}

#[test]
fn a_split_does_not_depend_on_the_sizes_of_the_others() {
    let (small, large) = (
        Synthetic { train: 50, ..Synthetic::default() },
        Synthetic { train: 500, oos: 0, ..Synthetic::default() },
    );
    assert_eq!(read(&small, "train"), read(&large, "train")[..50]);
    assert_eq!(read(&small, "test"), read(&large, "test"));
}

#[test]
fn no_claim_of_test_is_in_train() {
    let config = Synthetic { train: LARGEST, test: LARGEST, ..Synthetic::default() };
    let claims = |split| -> HashSet<_> {
        read(&config, split).into_iter().map(|pair| (pair.chosen, pair.rejected)).collect()
    };
    assert!(claims("train").is_disjoint(&claims("test")));
}

/// The length, the wording and the position of a completion must not reveal which one is chosen.
/// Otherwise, a model could learn these properties instead of the preference.
#[test]
fn chosen_and_rejected_can_only_be_told_apart_by_the_prompt() {
    let config =
        Synthetic { train: 4000, test: 2000, oos: 4000, rnd: 4000, ..Synthetic::default() };
    for split in ["train", "test", "oos", "rnd"] {
        let pairs = read(&config, split);
        let (mut first, mut uses) = (0, HashMap::<_, i64>::new());
        for pair in &pairs {
            let (prompt, chosen, rejected) =
                (plain(&pair.prompt), plain(&pair.chosen), plain(&pair.rejected));
            let [differs]: [(&str, &str); 1] = chosen
                .split(' ')
                .zip(rejected.split(' '))
                .filter(|(a, b)| a != b)
                .collect::<Vec<_>>()
                .try_into()
                .expect("chosen and rejected should differ in exactly one word");
            assert_eq!(chosen.split(' ').count(), rejected.split(' ').count());
            let at = |word: &str| {
                prompt
                    .find(word.trim_end_matches('.'))
                    .expect("the prompt should contain both words")
            };
            first += usize::from(at(differs.0) < at(differs.1));
            *uses.entry(differs.0).or_default() += 1;
            *uses.entry(differs.1).or_default() -= 1;
        }
        let share = first as f64 / pairs.len() as f64;
        // In `rnd`, the prompt mentions the middle person twice, so the rejected name comes first
        // more often.
        let balanced = if split == "rnd" { 0.3..0.7 } else { 0.45..0.55 };
        assert!(
            balanced.contains(&share),
            "{split}: the chosen word comes first in {share} of the pairs"
        );
        let most = uses.values().map(|n| n.unsigned_abs()).max().unwrap_or_default();
        assert!(
            most < pairs.len() as u64 / 20,
            "{split}: the counts of a word in chosen and rejected differ by {most}"
        );
    }
}

#[test]
fn texts_are_short() {
    for split in ["train", "test", "oos", "rnd"] {
        for pair in read(&Synthetic::default(), split) {
            for (text, longest) in [(&pair.prompt, 25), (&pair.chosen, 6), (&pair.rejected, 6)] {
                let words = plain(text).split_whitespace().count();
                assert!((2..=longest).contains(&words), "{words} words: {text:?}");
            }
        }
    }
}
