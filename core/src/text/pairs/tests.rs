use serde_json::Value;

use super::*;
use crate::testing;
use crate::weights::ModelFiles;

const LIMITS: Limits = Limits { max_length: 1024, ..Limits::NONE };
const EOS: i64 = 2;

/// The small tokenizer that the expected values were computed with.
fn tokenizer() -> Tokenizer {
    Tokenizer::from_folder(&testing::golden::own().join("tokenizer")).unwrap()
}

fn pair(prompt: &str, chosen: &str, rejected: &str) -> PreferencePair {
    PreferencePair::new(prompt, chosen, rejected)
}

fn turns(turns: &[(&str, &str)]) -> Text {
    Text::Messages(turns.iter().map(|(role, content)| Message::new(*role, *content)).collect())
}

fn kept(tokenizer: &Tokenizer, pair: &PreferencePair, limits: &Limits) -> TokenPair {
    match tokenise_pair(tokenizer, 0, 0, pair, limits).unwrap() {
        Outcome::Kept { pair, .. } => pair,
        Outcome::Dropped(why) => panic!("dropped: {why}"),
    }
}

fn dropped(tokenizer: &Tokenizer, pair: &PreferencePair, limits: &Limits) -> SkipReason {
    match tokenise_pair(tokenizer, 0, 0, pair, limits).unwrap() {
        Outcome::Kept { pair, .. } => panic!("kept: {pair:?}"),
        Outcome::Dropped(why) => why,
    }
}

#[test]
fn a_plain_completion_ends_with_exactly_one_eos() {
    let t = tokenizer();
    let got = kept(&t, &pair("Say it.\n", "yes", "no<|im_end|>"), &LIMITS);
    assert_eq!(got.prompt, t.encode("Say it.\n").unwrap());
    assert_eq!(t.decode(&got.chosen).unwrap(), "yes<|im_end|>");
    assert_eq!(t.decode(&got.rejected).unwrap(), "no<|im_end|>");
    assert_eq!(got.rejected.iter().filter(|&&id| id == EOS).count(), 1);
    let bare = kept(&t, &pair("Say it.\n", "yes", "no"), &Limits { add_eos: false, ..LIMITS });
    assert_eq!(t.decode(&bare.chosen).unwrap(), "yes");
}

#[test]
fn the_chat_template_decides_how_messages_end() {
    let t = tokenizer();
    let p = PreferencePair::new(
        turns(&[("user", "hi")]),
        turns(&[("assistant", "hello")]),
        turns(&[("assistant", "go away")]),
    );
    let got = kept(&t, &p, &LIMITS);
    assert_eq!(
        t.decode(&got.prompt).unwrap(),
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(t.decode(&got.chosen).unwrap(), "hello<|im_end|>\n");
    assert_eq!(t.decode(&got.rejected).unwrap(), "go away<|im_end|>\n");
}

/// Numbers the pairs as if each pair came from a different row.
fn rows(
    pairs: impl IntoIterator<Item = PreferencePair>,
) -> impl Iterator<Item = Result<(usize, PreferencePair)>> {
    pairs.into_iter().enumerate().map(Ok)
}

/// Creates a tokenizer with a small byte-level vocabulary. The tokenizer adds a BOS at the start
/// and an EOS at the end. It has merges for `" the"` and `" B"`, each with
/// a leading space.
fn tokenizer_with_bos_and_eos() -> Tokenizer {
    let mut vocabulary: BTreeMap<String, usize> =
        [("<s>", 0), ("</s>", 1)].map(|(token, id)| (token.to_owned(), id)).into();
    for token in ('a'..='z')
        .chain('A'..='Z')
        .map(String::from)
        .chain(["Ġ", ":", ".", "Ċ", "Ġt", "he", "Ġthe", "ĠB"].map(String::from))
    {
        let id = vocabulary.len();
        vocabulary.insert(token, id);
    }
    let special = |id: usize, content: &str| {
        serde_json::json!({"id": id, "content": content,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true})
    };
    let around = |parts: &[&str]| {
        let part = |part: &&str| match *part {
            "$A" => serde_json::json!({"Sequence": {"id": "A", "type_id": 0}}),
            "$B" => serde_json::json!({"Sequence": {"id": "B", "type_id": 0}}),
            token => serde_json::json!({"SpecialToken": {"id": token, "type_id": 0}}),
        };
        parts.iter().map(part).collect::<Vec<_>>()
    };
    let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": true});
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "pre_tokenizer": bytes, "decoder": bytes,
        "post_processor": {
            "type": "TemplateProcessing", "single": around(&["<s>", "$A", "</s>"]),
            "pair": around(&["<s>", "$A", "$B", "</s>"]),
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
            "</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["Ġ t", "h e", "Ġt he", "Ġ B"]},
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let template = "{% for m in messages %}[{{ m.role }}]{{ m.content \
        }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]think:{% endif %}";
    let config = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>",
        "chat_template": template.replace(['[', ']'], ":")});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::from_folder(dir.path()).unwrap()
}

/// Tokenises a pair and decodes its three parts.
fn parts(t: &Tokenizer, pair: &PreferencePair, limits: &Limits) -> [String; 3] {
    let pair = kept(t, pair, limits);
    [pair.prompt, pair.chosen, pair.rejected].map(|ids| t.decode(&ids).unwrap())
}

#[test]
fn a_token_that_merges_across_the_boundary_belongs_to_the_completion() {
    let t = tokenizer_with_bos_and_eos();
    let bare = Limits { special_tokens: false, ..LIMITS };
    assert_eq!(parts(&t, &pair("Answer: ", "B", "the"), &bare), ["Answer:", " B</s>", " the</s>"]);
    assert_eq!(parts(&t, &pair("Answer:", " B", " the"), &bare), ["Answer:", " B</s>", " the</s>"]);
    // If a token crosses the end of the prompt in only one completion, the prompt becomes shorter
    // for both completions.
    assert_eq!(parts(&t, &pair("Answer: ", "A", "B"), &bare), ["Answer:", " A</s>", " B</s>"]);
    // If no tokens remain in the prompt, the prompt is the BOS.
    assert_eq!(parts(&t, &pair(" ", "B", "the"), &bare), ["<s>", " B</s>", " the</s>"]);
    assert_eq!(parts(&t, &pair("", "B", "the"), &bare), ["<s>", "B</s>", "the</s>"]);
}

#[test]
fn only_plain_text_gets_the_special_tokens_of_the_tokenizer() {
    let t = tokenizer_with_bos_and_eos();
    // As in TRL, the tokenizer's EOS is added after the EOS of the completion.
    assert_eq!(parts(&t, &pair("Say:", "a", "b"), &LIMITS), ["<s>Say:", "a</s></s>", "b</s></s>"]);
    assert_eq!(
        parts(&t, &pair("Say:", "a", "b"), &Limits { add_eos: false, ..LIMITS }),
        ["<s>Say:", "a</s>", "b</s>"]
    );
    assert_eq!(
        parts(&t, &pair("", "a", "b"), &Limits { add_eos: false, ..LIMITS }),
        ["<s>", "a</s>", "b</s>"]
    );
    let bare = Limits { add_eos: false, special_tokens: false, ..LIMITS };
    assert_eq!(parts(&t, &pair("Say:", "a", "b"), &bare), ["Say:", "a", "b"]);
    let chat = PreferencePair::new(
        turns(&[("user", "hi")]),
        turns(&[("assistant", "a")]),
        turns(&[("assistant", "tea")]),
    );
    // The generation prompt ends with `think:`, but the two formatted conversations do not contain
    // this text. The pair's prompt is the common prefix of the generation prompt and both
    // conversations. `think` and `tea` begin with `t`, but the other completion does not. The
    // prompt therefore ends before the `t`.
    assert_eq!(parts(&t, &chat, &LIMITS), [":user:hi</s>:assistant:", "a</s>", "tea</s>"]);
}

#[test]
fn a_generation_prompt_follows_an_assistants_turn_in_the_prompt() {
    let t = tokenizer_with_bos_and_eos();
    let p = PreferencePair::new(
        turns(&[("user", "hi"), ("assistant", "yes")]),
        turns(&[("assistant", "a")]),
        turns(&[("assistant", "b")]),
    );
    assert_eq!(
        parts(&t, &p, &LIMITS),
        [":user:hi</s>:assistant:yes</s>:assistant:", "a</s>", "b</s>"]
    );
}

#[test]
fn warnings_count_unusual_pairs_and_give_an_example() {
    let t = tokenizer_with_bos_and_eos();
    let turn = |role: &str, text: &str| turns(&[(role, text)]);
    let chat =
        |chosen: Text, rejected: Text| PreferencePair::new(turn("user", "hi"), chosen, rejected);
    let pairs = [
        pair("Answer: ", "B", "the"),
        pair("Say. ", "B", "A"),
        pair("Name.", "Name. A", "Name. B"),
        pair("Say:", "", "a"),
        chat(turn("assistant", "a"), turn("user", "b")),
        chat(
            turns(&[("user", "hi"), ("assistant", "a")]),
            turns(&[("user", "hi"), ("assistant", "b")]),
        ),
    ];
    let limits = Limits { special_tokens: false, context: Some(9), ..LIMITS };
    let found = tokenise(&t, rows(pairs), &limits, None).unwrap().findings;
    assert_eq!((found.prefix_mismatches, found.left_out.as_deref()), (4, Some(" ")));
    assert_eq!(
        (found.prompt_repeated, found.empty_completions, &found.roles),
        (2, 1, &BTreeMap::from([("user".to_owned(), 1)]))
    );
    assert!(found.prompts_over_context > 0 && found.over_context >= found.prompts_over_context);
    let warnings = found.lines().join("\n");
    for part in [
        "on its own than before a completion: 4. ",
        "Cut from the first such prompt: \" \"\n",
        "first message has the role `user` instead of `assistant`: 1\n",
        "longer than the model's context of 9 tokens: ",
        "repeat the prompt, so that the model reads it twice: 2\n",
        "with an empty completion: 1",
    ] {
        assert!(warnings.contains(part), "{part}\n{warnings}");
    }
    assert_eq!(
        tokenise(
            &t,
            rows([pair("Say:", " a", " b")]),
            &Limits { special_tokens: false, ..LIMITS },
            None
        )
        .unwrap()
        .findings
        .lines(),
        [""; 0]
    );
}

#[test]
fn a_completion_is_cut_at_its_end_and_a_prompt_at_its_beginning() {
    let t = tokenizer();
    let p = pair("a b c d e f g h", " one two three four", " x");
    let whole = kept(&t, &p, &LIMITS);
    let n = whole.prompt.len();
    let cut = kept(&t, &p, &Limits { max_length: n + 2, ..LIMITS });
    assert_eq!(
        (cut.prompt.as_slice(), cut.chosen.as_slice()),
        (&whole.prompt[..], &whole.chosen[..2])
    );
    let cut = kept(&t, &p, &Limits { max_prompt_length: Some(3), ..LIMITS });
    assert_eq!((cut.prompt.as_slice(), &cut.chosen), (&whole.prompt[n - 3..], &whole.chosen));
    let all = tokenise(
        &t,
        rows([p.clone(), pair("a", "b", "c")]),
        &Limits { max_length: n + 2, ..LIMITS },
        None,
    )
    .unwrap();
    assert_eq!(all.truncated(), 1);
    let cut = Cut {
        prompt: 0,
        chosen: whole.chosen.len() - 2,
        rejected: whole.rejected.len().saturating_sub(2),
    };
    assert_eq!(all.cuts, [cut, Cut::default()]);
    assert!(
        cut.to_string()
            .starts_with(&format!("{} tokens removed from the chosen completion", cut.chosen)),
        "{cut}"
    );
    assert_eq!(dropped(&t, &p, &Limits { max_length: n, ..LIMITS }), SkipReason::PromptTooLong);
    assert_eq!(
        dropped(&t, &p, &Limits { max_length: 0, max_prompt_length: Some(0), ..LIMITS }),
        SkipReason::PromptTooLong
    );
}

#[test]
fn an_empty_completion_is_dropped_with_its_reason() {
    let t = tokenizer();
    let bare = Limits { add_eos: false, ..LIMITS };
    assert_eq!(dropped(&t, &pair("a", "", "b"), &bare), SkipReason::EmptyChosen);
    assert_eq!(dropped(&t, &pair("a", "b", ""), &bare), SkipReason::EmptyRejected);
    assert_eq!(
        kept(&t, &pair("a", "", "b"), &LIMITS).chosen,
        [EOS],
        "an empty completion must be kept if an EOS is added"
    );
    let empty_completion =
        PreferencePair::new(turns(&[("user", "hi")]), turns(&[]), turns(&[("assistant", "a")]));
    assert_eq!(dropped(&t, &empty_completion, &LIMITS), SkipReason::EmptyChosen);
}

#[test]
fn an_empty_prompt_becomes_the_bos() {
    let t = tokenizer();
    assert_eq!(kept(&t, &pair("", "a", "b"), &LIMITS).prompt, [1]);
    let empty_prompt =
        PreferencePair::new(turns(&[]), turns(&[("assistant", "a")]), turns(&[("assistant", "b")]));
    assert_eq!(dropped(&t, &empty_prompt, &LIMITS), SkipReason::EmptyPrompt);
}

#[test]
fn a_pair_that_mixes_plain_text_and_messages_is_an_error() {
    let t = tokenizer();
    let p = PreferencePair::new(turns(&[("user", "hi")]), "a", "b");
    let e = tokenise_pair(&t, 5, 7, &p, &LIMITS).unwrap_err();
    assert!(e.message().contains("pair 7 mixes"), "{e:?}");
}

#[test]
fn reading_stops_at_max_pairs_and_pairs_keep_their_row_numbers() {
    let t = tokenizer();
    let mut read = 0;
    let rows = (0..10_000).map(|i| {
        read += 1;
        Ok((10 * i, pair("a\n", if i % 2 == 0 { "" } else { "b" }, "c")))
    });
    let all = tokenise(&t, rows, &Limits { add_eos: false, ..LIMITS }, Some(3)).unwrap();
    assert_eq!(
        all.pairs.iter().map(|p| (p.index, p.row)).collect::<Vec<_>>(),
        [(1, 10), (3, 30), (5, 50)]
    );
    assert_eq!(all.dropped[1], DroppedPair { index: 2, row: 20, why: SkipReason::EmptyChosen });
    assert_eq!((all.reasons(), read), (BTreeMap::from([(SkipReason::EmptyChosen, 3)]), 6));
    let broken = [Ok((0, pair("a", "b", "c"))), Err(Error::new("row 2 is broken"))];
    assert_eq!(tokenise(&t, broken, &LIMITS, None).unwrap_err().message(), "row 2 is broken");
}

#[test]
fn completions_that_are_identical_after_cutting_are_counted() {
    let t = tokenizer();
    let pairs = [
        pair("a\n", "b", "b"),
        pair("a\n", "one two three", "one two four"),
        pair("a\n", "b", "c"),
    ];
    let n = t.encode("a\n").unwrap().len();
    let count = |max_length| {
        tokenise(&t, rows(pairs.clone()), &Limits { max_length, ..LIMITS }, None)
            .unwrap()
            .findings
            .identical
    };
    assert_eq!((count(1024), count(n + 1)), (1, 2));
}

#[test]
fn an_example_marks_the_trained_text() {
    let t = tokenizer();
    let shown = show_example(&t, &kept(&t, &pair("Why?\n", "so", "no"), &LIMITS));
    assert!(shown.contains("context only):\n  Why?"), "{shown}");
    assert!(shown.contains("trained):\n  ⟨so<|im_end|>⟩"), "{shown}");
}

#[test]
fn real_pairs_have_the_same_ids_as_in_the_reference_values() {
    let Some(model) = testing::smollm2() else { return };
    let t = ModelFiles::open(&model).unwrap().tokenizer().unwrap();
    let pairs = testing::golden::roots().into_iter().flat_map(|root| {
        let text = std::fs::read(root.join("smollm2/pair_logps.json")).unwrap();
        let mut found: Value = serde_json::from_slice(&text).unwrap();
        std::mem::take(found["pairs"].as_array_mut().unwrap())
    });
    let bare = Limits { add_eos: false, special_tokens: false, ..LIMITS };
    // For the expected values, prompts and completions were tokenised separately. If this gives
    // different ids than tokenising them together, the log-probabilities differ as well.
    let mut different = Vec::new();
    for (i, p) in pairs.enumerate() {
        let field = |key: &str| p[key].as_str().unwrap();
        let got = kept(
            &t,
            &pair(field("prompt"), field("chosen"), field("rejected")),
            &Limits { max_length: 1 << 20, ..bare },
        );
        assert_eq!(got.prompt.len() as u64, p["prompt_tokens"]);
        for (key, ids) in [("chosen", &got.chosen), ("rejected", &got.rejected)] {
            if *ids != t.encode(field(key)).unwrap()
                || ids.len() as u64 != p[format!("{key}_tokens")]
            {
                different.push((i, key));
            }
        }
    }
    assert_eq!(different, []);
}
