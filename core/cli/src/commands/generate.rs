//! `reprpo generate`.

use reprpo_core::Result;
use reprpo_core::api::Message;
use serde_json::{Value, json};

use crate::App;
use crate::args::GenerateArgs;
use crate::text_generator::{self, TextGenerator};

pub fn run(args: &GenerateArgs, app: &App<'_>) -> Result<()> {
    let generator = TextGenerator::load(&args.generation, app)?;
    // With `--plain` or without a chat template, the model continues the prompt as plain text. A
    // system message is then an error.
    let chats = !args.plain && generator.chats();
    if args.generation.system.is_some() && !chats {
        return Err(text_generator::no_chat());
    }
    let variants = text_generator::variants(&args.generation);
    let mut progress = app.printer.progress();
    progress.stage("generate", Some((args.prompt.len() * variants.len()) as u64));
    let mut listed = Vec::new();
    for prompt in &args.prompt {
        let mut text = if args.prompt.len() > 1 || variants.len() > 1 {
            format!("> {prompt}\n")
        } else {
            String::new()
        };
        for (variant, trained) in &variants {
            let mut silent = |_: &str| {};
            let answer = if chats {
                let mut conversation = generator.conversation();
                conversation.push(Message::new("user", prompt));
                generator.answer(&conversation, *trained, &mut silent)?
            } else {
                generator.continuation(prompt, *trained, &mut silent)?
            };
            generator.too_long(&answer).iter().for_each(|warning| app.printer.note(warning));
            let (read, made) = (answer.read_per_second(), answer.generated_per_second());
            let rates = [("prompt tokens/s", Some(read)), ("tokens/s", made)];
            progress.advance(
                1,
                &rates
                    .iter()
                    .filter_map(|(name, rate)| Some((*name, (*rate)?)))
                    .collect::<Vec<_>>(),
            );
            listed.push(json!({
                "prompt": prompt, "by": variant,
                "coefficient": trained.then(|| args.generation.coefficient.unwrap_or(1.0)),
                "text": answer.text, "tokens": answer.tokens,
                "tokens_per_second": made,
                "prompt_tokens": answer.prompt, "prompt_tokens_per_second": read,
            }));
            let name = if variants.len() > 1 {
                text_generator::label(&args.generation, (variant, *trained))
            } else {
                String::new()
            };
            text += &format!("{name}{}\n", answer.text);
        }
        if !args.json {
            app.printer.data(&text)?;
        }
    }
    progress.finish();
    if args.json { app.printer.json(&Value::Array(listed)) } else { Ok(()) }
}
