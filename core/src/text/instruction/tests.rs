use super::*;
use crate::testing;
use crate::text::tokenise;

const LIMITS: Limits = Limits { max_length: 64, ..Limits::NONE };
const INSTRUCTION: &str = "Be brief.";

fn folder() -> std::path::PathBuf {
    testing::golden::own().join("tokenizer")
}

/// The small tokenizer with another chat template.
fn with_template(template: &str) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(folder()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    let path = dir.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["chat_template"] = template.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let _ = std::fs::remove_file(dir.path().join("chat_template.jinja"));
    Tokenizer::from_folder(dir.path()).unwrap()
}

fn turns(turns: &[(&str, &str)]) -> Text {
    Text::Messages(turns.iter().map(|(role, content)| Message::new(*role, *content)).collect())
}

fn conversation(prompt: &[(&str, &str)]) -> PreferencePair {
    PreferencePair::new(
        turns(prompt),
        turns(&[("assistant", "yes")]),
        turns(&[("assistant", "no, not at all")]),
    )
}

/// Returns the pair without and with the instruction.
fn both(tokenizer: &Tokenizer, pair: &PreferencePair, limits: &Limits) -> [TokenPair; 2] {
    let rows = || [Ok((0, pair.clone()))];
    let base = tokenise(tokenizer, rows(), limits, None).unwrap();
    let with = instructed(tokenizer, rows(), limits, &base, INSTRUCTION).unwrap();
    [base.pairs[0].clone(), with[0].clone()]
}

fn prompt(tokenizer: &Tokenizer, pair: &PreferencePair) -> String {
    let [base, with] = both(tokenizer, pair, &LIMITS);
    assert_eq!((&base.chosen, &base.rejected), (&with.chosen, &with.rejected));
    tokenizer.decode(&with.prompt).unwrap()
}

#[test]
fn a_plain_prompt_follows_the_instruction_as_a_paragraph() {
    let t = Tokenizer::from_folder(&folder()).unwrap();
    let pair = PreferencePair::new("Is it so?\n", "yes", "no");
    assert_eq!(prompt(&t, &pair), "Be brief.\n\nIs it so?\n");
}

#[test]
fn a_conversation_gets_a_system_message() {
    let t = Tokenizer::from_folder(&folder()).unwrap();
    let text = prompt(&t, &conversation(&[("user", "hi")]));
    assert_eq!(
        text,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n\
            <|im_start|>assistant\n"
    );
    let text = prompt(&t, &conversation(&[("system", "Be kind."), ("user", "hi")]));
    assert!(text.starts_with("<|im_start|>system\nBe kind.\n\nBe brief.<|im_end|>\n"), "{text}");
}

#[test]
fn without_system_messages_the_first_user_message_begins_with_the_instruction() {
    let turns = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}";
    let refusing = format!(
        "{{% if messages[0]['role'] == 'system' %}}{{{{ raise_exception('no system') }}}}\
            {{% endif %}}{turns}"
    );
    // A template that leaves system messages out without an error.
    let silent = "{% for m in messages if m['role'] != 'system' %}[{{ m['role'] }}]\
        {{ m['content'] }}{% endfor %}";
    for template in [refusing.as_str(), silent] {
        let t = with_template(template);
        let text =
            prompt(&t, &conversation(&[("user", "hi"), ("assistant", "yes"), ("user", "so")]));
        assert_eq!(text, "[user]Be brief.\n\nhi[assistant]yes[user]so", "{template}");
    }
}

#[test]
fn the_instruction_does_not_count_towards_the_length_limit() {
    let t = Tokenizer::from_folder(&folder()).unwrap();
    let pair = PreferencePair::new("Is it so?\n", "yes yes yes yes yes yes", "no");
    let length = t.encode("Is it so?\n").unwrap().len() + 3;
    let [base, with] = both(&t, &pair, &Limits { max_length: length, ..LIMITS });
    assert_eq!(base.chosen.len(), 3, "the completion is truncated");
    assert_eq!((&base.chosen, &base.rejected), (&with.chosen, &with.rejected));
    assert!(with.prompt.len() > base.prompt.len());
}

#[test]
fn a_truncated_prompt_is_refused() {
    let t = Tokenizer::from_folder(&folder()).unwrap();
    let pair = PreferencePair::new("a long prompt with many words in it\n", "yes", "no");
    let limits = Limits { max_prompt_length: Some(3), ..LIMITS };
    let rows = || [Ok((0, pair.clone()))];
    let base = tokenise(&t, rows(), &limits, None).unwrap();
    let e = instructed(&t, rows(), &limits, &base, INSTRUCTION).unwrap_err();
    assert!(e.to_string().contains("its prompt is truncated"), "{e}");
}
