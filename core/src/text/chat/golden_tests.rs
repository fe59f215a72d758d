//! Compares rendered templates with the results of transformers. The templates use the constructs
//! that are common in published models. `templates/render.py` writes the expected results.

use serde_json::Value;

use super::*;

const TEMPLATES: [(&str, &str); 12] = [
    ("gemma3", include_str!("templates/gemma3.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
    ("parts", include_str!("templates/parts.jinja")),
    ("phi3", include_str!("templates/phi3.jinja")),
    ("qwen25", include_str!("templates/qwen25.jinja")),
    ("qwen3", include_str!("templates/qwen3.jinja")),
    ("smollm2", include_str!("templates/smollm2.jinja")),
    ("thought", include_str!("templates/thought.jinja")),
    ("tools", include_str!("templates/tools.jinja")),
    ("training", include_str!("templates/training.jinja")),
    ("zephyr", include_str!("templates/zephyr.jinja")),
];

fn read(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

fn render(source: &str, conversation: &str, add_generation_prompt: bool) -> Result<String> {
    let conversation = read(include_str!("templates/conversations.json"))[conversation].take();
    let messages: Vec<Message> = serde_json::from_value(conversation["messages"].clone()).unwrap();
    let args =
        TemplateArgs::new(conversation["tools"].clone(), conversation["kwargs"].clone()).unwrap();
    ChatTemplate::new(
        source.to_owned(),
        vec![("bos_token", "<s>".into()), ("eos_token", "</s>".into())],
    )?
    .render(&messages, &args, add_generation_prompt)
}

/// Checks that both implementations rendered the same text, or that both failed.
fn agrees(got: Result<String>, want: &Value, what: &str) {
    match (got, want["text"].as_str(), want["error"].as_str()) {
        (Ok(got), Some(want), _) => assert_eq!(got, want, "{what}"),
        (Err(e), None, Some(_)) => {
            assert!(!e.message().contains("did not finish"), "{what}: error {e:?}")
        }
        (got, ..) => panic!("{what}: got {got:?}, but Python gives {want}"),
    }
}

#[test]
fn templates_are_rendered_as_in_python() {
    let expected = read(include_str!("templates/renderings.json"));
    let mut count = 0;
    for (name, source) in TEMPLATES {
        for (conversation, both) in expected["templates"][name].as_object().unwrap() {
            for (i, add_generation_prompt) in [false, true].into_iter().enumerate() {
                agrees(
                    render(source, conversation, add_generation_prompt),
                    &both[i],
                    &format!("{name}, {conversation}, generation prompt {add_generation_prompt}"),
                );
                count += 1;
            }
        }
    }
    assert_eq!(count, (TEMPLATES.len() * 6 + 1) * 2);
    let e = render(TEMPLATES[2].1, "astray", false).unwrap_err();
    assert_eq!(
        e.message(),
        format!(
            "the model's chat template rejected the conversation: {}",
            expected["templates"]["mistral"]["astray"][0]["error"].as_str().unwrap()
        )
    );
}

#[test]
fn constructs_behave_as_in_python() {
    let expected = read(include_str!("templates/renderings.json"));
    for snippet in expected["snippets"].as_array().unwrap() {
        let template = snippet["template"].as_str().unwrap();
        agrees(render(template, "turns", false), snippet, template);
    }
}

/// An error names the unknown filter, method, test, tag or function.
#[test]
fn unknown_names_are_errors() {
    for (template, name) in [
        ("{{ 'a b' | urlencode }}", "filter urlencode is unknown"),
        ("{{ 'abc'.encode() }}", "no method named encode"),
        ("{{ 'a' is contained }}", "test contained is unknown"),
        ("{% if messages is startingwith('a') %}a{% endif %}", "test startingwith is unknown"),
        ("{% if 'a' | split %}a{% endif %}", "filter split is unknown"),
        ("{{ cycler('a') }}", "cycler is unknown"),
        ("{{ messages | map('bogus') | list }}", "unknown filter"),
        ("{{ messages | selectattr('role', 'bogus') | list }}", "unknown test"),
    ] {
        let e = render(template, "one", false).unwrap_err();
        assert!(
            e.message().starts_with("the model's chat template failed: ")
                && e.message().contains(name),
            "template {template}: error {e:?}"
        );
    }
    for (template, name) in [
        ("{% do raise_exception('a') %}", "{% do %}"),
        ("{% include 'x' %}", "{% include %}"),
        ("{{ '\\a' }}", "`\\a`"),
        ("{% macro m(a, b=a) %}{% endmacro %}", "macro `m`"),
    ] {
        let e = render(template, "one", false).unwrap_err();
        assert!(
            e.message().starts_with("the model's chat template is not valid: ")
                && e.message().contains(name),
            "template {template}: error {e:?}"
        );
    }
}

/// An error names the line of the original template, not of the rewritten template.
#[test]
fn errors_name_the_line_of_the_template() {
    let template = "a\n{% for m in messages %}\n  \
        {% if m.role == 'user' and\n  true %}\n\n{# a\nb #}{{ m.content\n | trim }}\n{{ 'x' | \
        bogus }}\n{% endif %}{% endfor %}";
    let e = render(template, "one", false).unwrap_err();
    assert!(e.message().ends_with("(in chat:9)"), "{e:?}");
}

/// A template that only accepts text receives the parts of a message as one string. A template that
/// accepts lists receives the list of parts.
#[test]
fn parts_are_joined_if_the_template_only_accepts_text() {
    let parts = "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content \
        }}{% else %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endif %}|{% endfor %}";
    assert_eq!(
        render(parts, "parts", false).unwrap(),
        "system:[Be ][brief.]|user:[Hi\n][there]|assistant:Hello.|"
    );
    for text in [
        "{% for m in messages %}{{ m.role }}:{{ m.content }}|{% endfor %}",
        "{% for m in messages %}{{ m.role + ':' + m.content + '|' }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}:{{ m.content if m.content is string else '' \
            }}|{% endfor %}",
        "{% for m in messages %}{{ m.role }}:{{ m.content if m.content is string else m.content | \
            tojson }}|{% endfor %}",
    ] {
        assert_eq!(
            render(text, "parts", false).unwrap(),
            "system:Be brief.|user:Hi\nthere|assistant:Hello.|",
            "{text}"
        );
    }
    let thought = Message::new("user", "")
        .with("content", json!([{"type": "thinking", "thinking": "a"}]))
        .unwrap();
    let template =
        ChatTemplate::new("{{ messages[0].content | trim }}".to_owned(), Vec::new()).unwrap();
    let e = template.render(&[thought], &TemplateArgs::default(), false).unwrap_err();
    assert!(e.message().contains("type `thinking`"), "{e:?}");
}

/// A message's reasoning has the same names in templates as in transformers.
#[test]
fn reasoning_is_available_under_every_name() {
    let template = "{% for m in messages %}{{ m }}{% endfor %}";
    let got = render(template, "reasons", false).unwrap();
    assert!(
        got.contains(
            "{'thinking': 'Double.', 'role': 'assistant', 'reasoning': 'Double.', \
            'content': '4', 'score': 1e-05, 'reasoning_content': 'Double.'}"
        ),
        "{got}"
    );
    assert!(
        got.contains(
            "{'thinking': 'Add them.\\n', 'role': 'assistant', 'content': '2', \
            'reasoning_content': 'Add them.\\n'}"
        ),
        "{got}"
    );
}
