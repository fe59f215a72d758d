//! `reprpo generate`.

use reprpo_core::Result;
use reprpo_core::api::Message;
use serde_json::{Value, json};

use crate::App;
use crate::args::GenerateArgs;
use crate::speaker::{self, Speaker};

pub fn run(args: &GenerateArgs, app: &App<'_>) -> Result<()> {
    let speaker = Speaker::load(&args.speaker, app)?;
    // A base model that does not chat continues; one that was told to behave in a chat cannot.
    let chats = !args.plain && speaker.chats();
    if args.speaker.system.is_some() && !chats {
        return Err(speaker::no_chat());
    }
    let voices = speaker::voices(&args.speaker);
    let mut progress = app.printer.progress();
    progress.stage("generate", Some((args.prompt.len() * voices.len()) as u64));
    let mut listed = Vec::new();
    for prompt in &args.prompt {
        let mut text = if args.prompt.len() > 1 || voices.len() > 1 {
            format!("> {prompt}\n")
        } else {
            String::new()
        };
        for (voice, trained) in &voices {
            let mut silent = |_: &str| {};
            let answer = if chats {
                let mut conversation = speaker.conversation();
                conversation.push(Message::new("user", prompt));
                speaker.answer(&conversation, *trained, &mut silent)?
            } else {
                speaker.continuation(prompt, *trained, &mut silent)?
            };
            speaker.too_long(&answer).iter().for_each(|warning| app.printer.note(warning));
            let (read, made) = (answer.read_per_second(), answer.made_per_second());
            let rates = [("prompt tokens/s", Some(read)), ("tokens/s", made)];
            progress.advance(
                1,
                &rates
                    .iter()
                    .filter_map(|(name, rate)| Some((*name, (*rate)?)))
                    .collect::<Vec<_>>(),
            );
            listed.push(json!({
                "prompt": prompt, "by": voice, "text": answer.text, "tokens": answer.tokens,
                "tokens_per_second": made,
                "prompt_tokens": answer.prompt, "prompt_tokens_per_second": read,
            }));
            let name = if voices.len() > 1 { format!("{voice}: ") } else { String::new() };
            text += &format!("{name}{}\n", answer.text);
        }
        if !args.json {
            app.printer.data(&text)?;
        }
    }
    progress.finish();
    if args.json { app.printer.json(&Value::Array(listed)) } else { Ok(()) }
}
