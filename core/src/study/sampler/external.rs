//! Another program chooses the points. The page `docs/studies.md` defines the messages.
//!
//! The values that the program chose are kept in the study's folder. A resumed study therefore does
//! not ask for them again, but reports them to the program with their scores.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Proposal, Sampler};
use crate::error::{Context, Error, Result};
use crate::files::write_whole;
use crate::study::space::{Dimension, Point, Values};

/// A connection to the program: one JSON document per line in each direction.
pub trait Channel {
    /// Sends a message.
    ///
    /// # Errors
    /// Fails if the connection is closed.
    fn send(&mut self, message: &Value) -> Result<()>;

    /// Receives the next line; `None` if the connection is closed.
    ///
    /// # Errors
    /// Fails if the line cannot be read.
    fn receive(&mut self) -> Result<Option<String>>;
}

/// The values of a trial that the program has chosen.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Chosen {
    method: String,
    trial: usize,
    /// `None` if the program ended the search of the method.
    values: Option<Map<String, Value>>,
}

/// The conversation with the program, shared by the searches of all methods.
pub struct Conversation {
    channel: Box<dyn Channel>,
    /// The file with the values that the program chose.
    file: PathBuf,
    chosen: Vec<Chosen>,
}

/// A conversation that several samplers use in turn.
pub type SharedConversation = Rc<RefCell<Conversation>>;

impl Conversation {
    /// Opens the conversation of the study in `folder`, and reads the values that the program chose
    /// before.
    ///
    /// # Errors
    /// Fails if the file with these values is damaged.
    pub fn open(channel: Box<dyn Channel>, folder: &std::path::Path) -> Result<SharedConversation> {
        let file = folder.join("external.jsonl");
        let text = match std::fs::read_to_string(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.within(|| format!("cannot read `{}`", file.display()))?,
        };
        let chosen = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .map_err(|e| Error::new(format!("`{}` is damaged", file.display())).because(e))?;
        Ok(Rc::new(RefCell::new(Self { channel, file, chosen })))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// Fails if the connection is closed.
    pub fn send(&mut self, message: &Value) -> Result<()> {
        self.channel.send(message)
    }

    /// Returns the values of a trial and `true` if they were chosen in an earlier process. The
    /// values are `None` if the program ends the search.
    fn values(
        &mut self,
        method: &str,
        trial: usize,
        space: &[Dimension],
    ) -> Result<(Option<Point>, bool)> {
        let known = self.chosen.iter().find(|c| c.method == method && c.trial == trial);
        if let Some(known) = known {
            let values = known.values.as_ref();
            return Ok((values.map(|values| point(space, values)).transpose()?, true));
        }
        self.send(&json!({ "type": "ask", "method": method, "trial": trial }))?;
        let line = self.channel.receive()?.ok_or_else(|| {
            Error::new(format!(
                "the external sampler ended before it answered trial {trial} of `{method}`"
            ))
            .hint("repeat the command to continue the study")
        })?;
        let values = answer(&line, space).within(|| {
            format!("the answer of the external sampler is not valid: {}", line.trim())
        })?;
        let chosen = Chosen {
            method: method.to_owned(),
            trial,
            values: values.as_ref().map(|point| point.iter().cloned().collect()),
        };
        self.chosen.push(chosen);
        let lines: Result<Vec<String>, _> = self.chosen.iter().map(serde_json::to_string).collect();
        let lines = lines.map_err(|e| Error::internal(e.to_string()))?;
        write_whole(&self.file, (lines.join("\n") + "\n").as_bytes())?;
        Ok((values, false))
    }
}

/// Reads an answer: `{"values": {FIELD: VALUE}}` or `{"stop": true}`.
fn answer(line: &str, space: &[Dimension]) -> Result<Option<Point>> {
    let message: Value = serde_json::from_str(line)
        .map_err(|e| Error::new("the line is not a JSON document").because(e))?;
    if message["stop"] == json!(true) {
        return Ok(None);
    }
    match message["values"].as_object() {
        Some(values) => point(space, values).map(Some),
        None => Err(Error::new("it has neither `values` nor `\"stop\": true`")
            .hint("answer `{\"values\": {\"train.lr\": 1e-4}}` on one line")),
    }
}

/// Checks the values that a program chose.
fn point(space: &[Dimension], values: &Map<String, Value>) -> Result<Point> {
    let fields = || space.iter().map(|dimension| dimension.field.as_str());
    if let Some(unknown) = values.keys().find(|field| !fields().any(|f| f == *field)) {
        return Err(Error::unknown("searched field", unknown, fields()));
    }
    space
        .iter()
        .map(|dimension| {
            let field = &dimension.field;
            let value = values
                .get(field)
                .ok_or_else(|| Error::new(format!("it has no value for `{field}`")))?;
            let fits = match &dimension.values {
                Values::Range { integer, .. } => {
                    dimension.unit(value).is_some() && (!integer || value.is_i64())
                }
                // Another program may write 1e-4 as 0.0001 or 1.0 as 1.
                Values::List(list) => list.iter().any(|of_list| same(of_list, value)),
            };
            match (&dimension.values, fits) {
                (Values::List(list), true) => {
                    let own = list.iter().find(|of_list| same(of_list, value)).unwrap_or(value);
                    Ok((field.clone(), own.clone()))
                }
                (_, true) => Ok((field.clone(), value.clone())),
                (_, false) => Err(Error::new(format!(
                    "`{field}` must be one of {}, got {value}",
                    dimension.json()
                ))),
            }
        })
        .collect()
}

fn same(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && a.as_f64() == b.as_f64())
}

/// The search of one method.
pub(super) struct External {
    method: String,
    space: Vec<Dimension>,
    trials: usize,
    batch: usize,
    conversation: SharedConversation,
    next: usize,
    open: Vec<(usize, Point, bool)>,
}

impl External {
    pub fn new(
        method: &str,
        space: &[Dimension],
        trials: usize,
        batch: usize,
        conversation: &SharedConversation,
    ) -> Self {
        Self {
            method: method.to_owned(),
            space: space.to_vec(),
            trials,
            batch,
            conversation: Rc::clone(conversation),
            next: 0,
            open: Vec::new(),
        }
    }
}

impl Sampler for External {
    fn ask(&mut self) -> Result<Vec<Proposal>> {
        self.open.clear();
        while self.open.len() < self.batch && self.next < self.trials {
            let (values, resumed) =
                self.conversation.borrow_mut().values(&self.method, self.next, &self.space)?;
            let Some(point) = values else {
                self.trials = self.next;
                break;
            };
            self.open.push((self.next, point, resumed));
            self.next += 1;
        }
        Ok(self.open.iter().map(|(_, point, _)| Proposal::full(point.clone())).collect())
    }

    fn tell(&mut self, scores: &[Option<f64>]) -> Result<()> {
        for ((trial, point, resumed), score) in self.open.iter().zip(scores) {
            let values: Map<String, Value> = point.iter().cloned().collect();
            self.conversation.borrow_mut().send(&json!({
                "type": "tell", "method": self.method, "trial": trial, "values": values,
                "score": score, "resumed": resumed,
            }))?;
        }
        Ok(())
    }
}
