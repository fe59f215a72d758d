//! `reprpo chat`.

use std::io::{BufRead, IsTerminal};

use reprpo_core::api::Message;
use reprpo_core::{Error, Result};

use crate::App;
use crate::args::ChatArgs;
use crate::speaker::{self, Speaker};

pub fn run(args: &ChatArgs, app: &App<'_>) -> Result<()> {
    let speaker = Speaker::load(&args.speaker, app)?;
    if !speaker.chats() {
        return Err(speaker::no_chat());
    }
    let voices = speaker::voices(&args.speaker);
    // Each model has its own conversation, which only contains its own answers.
    let mut conversations = vec![speaker.conversation(); voices.len()];
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
        for ((voice, trained), conversation) in voices.iter().zip(&mut conversations) {
            conversation.push(Message::new("user", &line));
            if voices.len() > 1 {
                app.printer.piece(&format!("{voice}: "))?;
            }
            let mut failed = None;
            let answer = speaker.answer(conversation, *trained, &mut |piece| {
                if let Err(e) = app.printer.piece(piece) {
                    failed.get_or_insert(e);
                }
            })?;
            if let Some(e) = failed {
                return Err(e);
            }
            app.printer.piece("\n")?;
            speaker.too_long(&answer).iter().for_each(|warning| app.printer.note(warning));
            conversation.push(Message::new("assistant", answer.text));
        }
    }
    Ok(())
}
