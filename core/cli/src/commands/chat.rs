//! `reprpo chat`.

use std::io::{BufRead, IsTerminal};

use reprpo_core::api::Message;
use reprpo_core::{Error, Result};

use crate::App;
use crate::args::ChatArgs;
use crate::text_generator::{self, TextGenerator};

pub fn run(args: &ChatArgs, app: &App<'_>) -> Result<()> {
    let generator = TextGenerator::load(&args.generation, app)?;
    if !generator.chats() {
        return Err(text_generator::no_chat());
    }
    let variants = text_generator::variants(&args.generation);
    // Keep a separate conversation for each model, so that no model sees another model's answers.
    let mut conversations = vec![generator.conversation(); variants.len()];
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        app.printer.note("type a message; an empty line ends the chat");
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if terminal {
            app.printer.piece("> ")?;
        }
        let line = match lines.next() {
            None => break,
            Some(line) => line.map_err(|e| Error::new("cannot read standard input").because(e))?,
        };
        if line.trim().is_empty() {
            break;
        }
        for ((variant, trained), conversation) in variants.iter().zip(&mut conversations) {
            conversation.push(Message::new("user", &line));
            if variants.len() > 1 {
                app.printer.piece(&text_generator::label(&args.generation, (variant, *trained)))?;
            }
            let mut failed = None;
            let answer = generator.answer(conversation, *trained, &mut |piece| {
                if let Err(e) = app.printer.piece(piece) {
                    failed.get_or_insert(e);
                }
            })?;
            if let Some(e) = failed {
                return Err(e);
            }
            app.printer.piece("\n")?;
            generator.too_long(&answer).iter().for_each(|warning| app.printer.note(warning));
            conversation.push(Message::new("assistant", answer.text));
        }
    }
    Ok(())
}
