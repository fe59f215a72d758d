use serde_json::json;

use super::*;
use crate::api::{PairIter, SplitInfo};
use crate::error::Error;
use crate::report::Silent;
use crate::testing;

struct Fixed(Vec<(&'static str, Vec<PreferencePair>)>);

impl Dataset for Fixed {
    fn splits(&self) -> Vec<SplitInfo> {
        self.0
            .iter()
            .map(|(name, pairs)| SplitInfo {
                name: (*name).into(),
                describes: format!("{name} pairs"),
                pairs: Some(pairs.len()),
            })
            .collect()
    }

    fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
        let found = self
            .0
            .iter()
            .find(|(name, _)| *name == split)
            .ok_or_else(|| Error::new("no such split"))?;
        Ok(Box::new(found.1.iter().cloned().map(Ok)))
    }
}

fn pair(prompt: &str, chosen: &str, rejected: &str) -> PreferencePair {
    PreferencePair::new(prompt, chosen, rejected)
}

const LIMITS: Limits = Limits { max_length: 8, ..Limits::NONE };

fn spec(tokenizer: Option<&Tokenizer>) -> InspectSpec<'_> {
    InspectSpec { splits: None, tokenizer, limits: LIMITS, max_pairs: None, examples: 1 }
}

fn flawed_data() -> Fixed {
    let message = |role: &str, content: &str| Text::Messages(vec![Message::new(role, content)]);
    let train = vec![
        pair("a", " yes", " no"),
        pair("a", " yes", " no"),
        pair("a", " no", " yes"),
        pair("b", " same", " same"),
        pair("", "x", "y"),
        pair("c", "c d", "c e"),
        PreferencePair::new(
            message("user", "a"),
            message("assistant", "yes"),
            message("assistant", "no"),
        ),
    ];
    Fixed(vec![("train", train), ("test", vec![pair("a", " x", " y"), pair("z", " x", " y")])])
}

#[test]
fn repeated_contradicting_and_empty_pairs_are_counted() {
    let found = inspect(&flawed_data(), &spec(None), &mut Silent).unwrap();
    assert_eq!((found.unit, found.splits.len()), ("characters", 2));
    let t = &found.splits[0];
    assert_eq!((t.pairs, t.conversations, t.prompts), (7, 1, 5));
    assert_eq!((t.clusters, t.largest_cluster), (5, 3));
    assert_eq!(
        (t.repeated, t.contradicted, t.identical, t.without_prompt, t.prompt_repeated),
        (1, 1, 1, 1, 1)
    );
    assert_eq!((t.in_first, found.splits[1].in_first), (None, Some(1)));
    assert_eq!((t.prompt.max, t.chosen.max, t.whole.max), (1, 5, 6));
    assert!(t.used.is_none());
    assert_eq!(
        (
            t.examples[0].prompt.as_str(),
            t.examples[0].chosen.text.as_str(),
            t.examples[0].chosen.mask.len()
        ),
        ("a", " yes", 0)
    );
}

#[test]
fn pairs_differ_if_a_message_field_or_a_template_argument_differs() {
    let tool =
        |name: &str| TemplateArgs::new(json!([{"function": {"name": name}}]), Value::Null).unwrap();
    let call = |city: &str| {
        vec![Message::new("assistant", "").with("tool_calls", json!([{"city": city}])).unwrap()]
    };
    let pair = |chosen: &str, rejected: &str| {
        PreferencePair::new(vec![Message::new("user", "a")], call(chosen), call(rejected))
    };
    let switched = TemplateArgs::new(Value::Null, json!({"enable_thinking": false})).unwrap();
    let train = vec![
        pair("Oslo", "Rome"),
        pair("Rome", "Oslo"),
        pair("Oslo", "Bonn"),
        pair("Oslo", "Rome").with_template_args(tool("f")),
        pair("Rome", "Oslo").with_template_args(tool("g")),
        pair("Oslo", "Rome").with_template_args(switched),
        pair("Oslo", "Oslo"),
        pair("Oslo", "Bonn"),
    ];
    let found = inspect(&Fixed(vec![("train", train)]), &spec(None), &mut Silent).unwrap();
    let t = &found.splits[0];
    assert_eq!((t.pairs, t.prompts, t.repeated, t.contradicted, t.identical), (8, 4, 1, 1, 1));
    assert_eq!(t.examples[0].chosen.text, "assistant: \n  tool_calls: [{\"city\":\"Oslo\"}]");
    let shown = Fixed(vec![("train", vec![pair("Oslo", "Rome").with_template_args(tool("f"))])]);
    let found = inspect(&shown, &spec(None), &mut Silent).unwrap();
    assert_eq!(
        found.splits[0].examples[0].prompt,
        "tools: [{\"function\":{\"name\":\"f\"}}]\nuser: a"
    );
}

#[test]
fn with_a_tokenizer_the_report_counts_the_pairs_that_a_run_would_use() {
    let tokenizer = Tokenizer::from_folder(&testing::golden::own().join("tokenizer")).unwrap();
    let long = "word ".repeat(20);
    let data = Fixed(vec![(
        "train",
        vec![
            pair("a", " yes", " no"),
            pair(&long, "x", "y"),
            pair("a", &long, " no"),
            pair("a", " no", " no"),
        ],
    )]);
    let found = inspect(&data, &spec(Some(&tokenizer)), &mut Silent).unwrap();
    let t = &found.splits[0];
    let used = t.used.as_ref().unwrap();
    assert_eq!((used.kept, used.truncated, used.findings.identical), (3, 1, 1));
    assert_eq!(used.dropped, BTreeMap::from([(SkipReason::PromptTooLong, 1)]));
    assert!(
        t.prompt.max > 8 && t.chosen.max > 8,
        "lengths must be measured before truncation: {t:?}"
    );
    let example = &t.examples[0];
    assert_eq!((example.prompt.as_str(), example.chosen.text.as_str()), ("a", " yes<|im_end|>"));
    assert_eq!(example.chosen.mask.len(), example.chosen.ids.len());
    assert_eq!(tokenizer.decode(&example.chosen.ids).unwrap(), "a yes<|im_end|>");
    assert_eq!(example.chosen.mask.iter().filter(|m| **m == 0).count(), 1);
    let same =
        crate::text::tokenise(&tokenizer, data.rows("train").unwrap(), &LIMITS, None).unwrap();
    assert_eq!(
        (used.kept, used.truncated, &used.findings, &used.dropped),
        (same.pairs.len(), same.truncated(), &same.findings, &same.reasons())
    );
}

#[test]
fn a_part_of_a_split_and_a_limit_select_the_pairs_to_inspect() {
    let some = InspectSpec {
        splits: Some(vec!["train[3:5]".to_owned()]),
        max_pairs: Some(1),
        examples: 5,
        ..spec(None)
    };
    let found = inspect(&flawed_data(), &some, &mut Silent).unwrap();
    assert_eq!(
        (found.splits[0].pairs, found.splits[0].identical, found.splits[0].examples.len()),
        (1, 1, 1)
    );
}
