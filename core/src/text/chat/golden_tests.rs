//! Templates with the constructs of those in circulation, against what Python makes of them. `templates/render.py` is set
//! up as transformers is, and writes what is expected here.

use serde_json::Value;

use super::*;

const TEMPLATES: [(&str, &str); 9] = [
    ("gemma3", include_str!("templates/gemma3.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
    ("phi3", include_str!("templates/phi3.jinja")),
    ("qwen25", include_str!("templates/qwen25.jinja")),
    ("qwen3", include_str!("templates/qwen3.jinja")),
    ("smollm2", include_str!("templates/smollm2.jinja")),
    ("training", include_str!("templates/training.jinja")),
    ("zephyr", include_str!("templates/zephyr.jinja")),
];

fn read(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

fn render(source: &str, conversation: &str, begin_answer: bool) -> Result<String> {
    let conversations = read(include_str!("templates/conversations.json"));
    let messages: Vec<Message> = serde_json::from_value(conversations[conversation].clone()).unwrap();
    ChatTemplate::new(source.to_owned(), Some("<s>".into()), Some("</s>".into()), None)?.render(&messages, &TemplateArgs::default(), begin_answer)
}

/// The text, or for what Python refuses the refusal's reason.
fn agrees(got: Result<String>, want: &Value, what: &str) {
    match (got, want["text"].as_str(), want["error"].as_str()) {
        (Ok(got), Some(want), _) => assert_eq!(got, want, "{what}"),
        (Err(e), None, Some(_)) => assert!(!e.message().contains("does not end"), "{what}: {e:?}"),
        (got, ..) => panic!("{what}: {got:?}, and Python: {want}"),
    }
}

#[test]
fn templates_are_rendered_as_python_renders_them() {
    let expected = read(include_str!("templates/renderings.json"));
    let mut count = 0;
    for (name, source) in TEMPLATES {
        for (conversation, both) in expected["templates"][name].as_object().unwrap() {
            for (i, begin_answer) in [false, true].into_iter().enumerate() {
                agrees(render(source, conversation, begin_answer), &both[i], &format!("{name}, {conversation}, {begin_answer}"));
                count += 1;
            }
        }
    }
    assert_eq!(count, TEMPLATES.len() * 4 * 2);
    let e = render(TEMPLATES[2].1, "astray", false).unwrap_err();
    assert_eq!(
        e.message(),
        format!("the model's chat template refuses the conversation: {}", expected["templates"]["mistral"]["astray"][0]["error"].as_str().unwrap())
    );
}

#[test]
fn constructs_mean_what_they_mean_in_python() {
    let expected = read(include_str!("templates/renderings.json"));
    for snippet in expected["snippets"].as_array().unwrap() {
        let template = snippet["template"].as_str().unwrap();
        agrees(render(template, "turns", false), snippet, template);
    }
}

/// What is not there says its name, and no other text is made in its place.
#[test]
fn what_is_missing_is_an_error() {
    for template in ["{{ '%s' % 'a' }}", "{{ 'a b' | urlencode }}", "{{ 'abc'.encode() }}"] {
        assert!(render(template, "one", false).unwrap_err().message().starts_with("the model's chat template failed: "), "{template}");
    }
}
