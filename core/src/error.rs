//! The error type of this crate: a message, causes, and hints for the user.

mod out_of_memory;

use std::ffi::OsStr;
use std::fmt;

pub use out_of_memory::OutOfMemory;
pub(crate) use out_of_memory::catch_out_of_memory;

use crate::panics;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The origin of an error, which determines the exit code of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The user's input is not valid, for example an argument or a file: exit code 1.
    Input,
    /// A bug in this program or a failure of libtorch: exit code 2.
    Internal,
    /// The user interrupted the command: exit code 130.
    Interrupted,
}

/// An error for users: a message, an optional cause, and hints.
///
/// The message says what failed, and quotes file names and other values in backticks. It does not
/// end with a full stop. Each hint says what the user can do, and is shown on its own line.
pub struct Error(Box<Inner>);

struct Inner {
    message: String,
    hints: Vec<String>,
    source: Option<Cause>,
    fault: Fault,
    panic: bool,
    out_of_memory: Option<OutOfMemory>,
}

/// The cause of an error. [`Error::because`] downcasts the cause to this crate's type immediately,
/// because a later downcast can fail. A plugin has its own copy of this crate, in which `Error` has
/// a different `TypeId`.
enum Cause {
    Ours(Error),
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Cause {
    fn as_error(&self) -> &(dyn std::error::Error + 'static) {
        match self {
            Cause::Ours(e) => e,
            Cause::Other(e) => e.as_ref(),
        }
    }
}

impl Error {
    /// Creates an error that is caused by the user's input.
    pub fn new(message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            message: message.into(),
            hints: Vec::new(),
            source: None,
            fault: Fault::Input,
            panic: false,
            out_of_memory: None,
        }))
    }

    /// Creates an error that no input should be able to cause. It indicates a bug.
    pub fn internal(message: impl Into<String>) -> Self {
        let mut e = Self::new(message);
        e.0.fault = Fault::Internal;
        e
    }

    /// Creates an error from a caught panic. `place` says which code panicked, e.g. `a gradient
    /// hook`. The panic message becomes the cause.
    pub fn panicked(place: &str, payload: &(dyn std::any::Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let first = message.and_then(|s| s.lines().next()).unwrap_or("no message");
        let at = panics::take_location();
        // If tch panicked, remove libtorch's C++ stack trace from the message. Also omit the
        // location of the panic, which is in tch's source.
        let reason = match first.split_once("Torch(\"") {
            Some((_, text)) => format!("libtorch: {}", text.split("\\n").next().unwrap_or(text)),
            None => {
                format!("{first}{}", at.map_or_else(String::new, |place| format!(" ({place})")))
            }
        };
        let cause = Self::internal(reason.as_str()).of_libtorch(&reason);
        let mut e = Self::internal(format!("{place} panicked")).because(cause);
        e.0.panic = true;
        e
    }

    /// Sets the origin of the error.
    #[must_use]
    pub(crate) fn blamed_on(mut self, fault: Fault) -> Self {
        self.0.fault = fault;
        self
    }

    /// Creates an error for an interruption by the user. `message` says what was interrupted or
    /// saved.
    pub fn interrupted(message: impl Into<String>) -> Self {
        let mut e = Self::new(message);
        e.0.fault = Fault::Interrupted;
        e
    }

    /// Creates an error for an unknown name. The hints suggest the most similar valid name and list
    /// all valid names.
    pub fn unknown<S: AsRef<str>>(
        what: &str,
        given: &str,
        valid: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut valid: Vec<String> = valid.into_iter().map(|s| s.as_ref().to_owned()).collect();
        valid.sort();
        valid.dedup();
        let mut e = Self::new(format!("unknown {what} `{given}`"));
        if let Some(near) = nearest(given, &valid) {
            e = e.hint(format!("did you mean `{near}`?"));
        }
        if valid.is_empty() {
            e.hint(format!("no {what} is available"))
        } else {
            e.hint(format!("valid: {}", valid.join(", ")))
        }
    }

    /// Adds a hint that says what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hints.push(hint.into());
        self
    }

    /// Sets the cause of the error.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(match source.into().downcast::<Error>() {
            Ok(ours) => Cause::Ours(*ours),
            Err(other) => Cause::Other(other),
        });
        self
    }

    /// Wraps this error in a new one whose message says what failed. The new error keeps the origin
    /// and the hints of this one.
    #[must_use]
    pub fn within(self, doing: impl Into<String>) -> Self {
        let mut outer = Self::new(doing);
        outer.0.fault = self.0.fault;
        outer.0.source = Some(Cause::Ours(self));
        outer
    }

    /// Interprets the libtorch message `text`: notes a failed allocation, and adds a hint about an
    /// operation without a deterministic kernel.
    pub(crate) fn of_libtorch(mut self, text: &str) -> Self {
        self.0.out_of_memory = OutOfMemory::in_message(text);
        const MARKS: [&str; 2] = [
            "does not have a deterministic implementation",
            "but this operation is not deterministic",
        ];
        if MARKS.iter().any(|mark| text.contains(mark)) {
            self.hint(
                "set `deterministic=false` to allow this operation; its results may then \
                differ between runs",
            )
        } else {
            self
        }
    }

    /// The origin of the error.
    pub fn fault(&self) -> Fault {
        self.0.fault
    }

    /// True if this error or one of its causes is a panic that was caught.
    pub fn is_panic(&self) -> bool {
        self.0.panic || matches!(&self.0.source, Some(Cause::Ours(e)) if e.is_panic())
    }

    /// The failed allocation that caused this error; `None` if it has another cause.
    pub fn out_of_memory(&self) -> Option<OutOfMemory> {
        let of_cause = || match &self.0.source {
            Some(Cause::Ours(e)) => e.out_of_memory(),
            _ => None,
        };
        self.0.out_of_memory.or_else(of_cause)
    }

    /// The message, without causes and hints.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The message and its causes, in one line.
    pub fn in_a_line(&self) -> String {
        let causes = std::iter::successors(std::error::Error::source(self), |e| e.source());
        causes.fold(self.0.message.clone(), |line, cause| format!("{line}, because {cause}"))
    }

    /// The hints of this error and of its causes, outermost first.
    pub fn hints(&self) -> Vec<&str> {
        let mut hints: Vec<&str> = self.0.hints.iter().map(String::as_str).collect();
        if let Some(Cause::Ours(e)) = &self.0.source {
            hints.extend(e.hints());
        }
        hints
    }
}

/// Quotes a path or another string for a shell, so that users can paste a command from a message.
/// Strings with spaces or special characters are put in single quotes.
pub fn quoted(text: impl AsRef<OsStr>) -> String {
    let text = text.as_ref().to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "_-+=:,./@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Returns the valid name that is most similar to `given`, or `None` if `given` is unlikely to be a
/// misspelling.
pub fn nearest<'a>(given: &str, valid: &'a [String]) -> Option<&'a str> {
    let given = given.to_lowercase();
    let limit = (given.chars().count() / 3).max(1);
    valid
        .iter()
        .map(|v| (strsim::damerau_levenshtein(&given, &v.to_lowercase()), v))
        .filter(|(d, v)| *d <= limit || (given.len() >= 3 && v.to_lowercase().starts_with(&given)))
        .min()
        .map(|(_, v)| v.as_str())
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

/// Formats the error with its causes and hints, one per line.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        let mut source = std::error::Error::source(self);
        while let Some(e) = source {
            write!(f, "\n  because {e}")?;
            source = e.source();
        }
        for hint in self.hints() {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(Cause::as_error)
    }
}

impl From<tch::TchError> for Error {
    /// Uses the first line of libtorch's message. The C++ stack in the other lines goes to the log.
    fn from(e: tch::TchError) -> Self {
        let text = match e {
            tch::TchError::Torch(text) => text,
            other => other.to_string(),
        };
        let first = text.lines().next().unwrap_or_default().trim().to_owned();
        tracing::debug!("libtorch: {text}");
        Self::internal(format!("libtorch: {first}")).of_libtorch(&text)
    }
}

/// Adds context to errors of several types.
pub trait Context<T> {
    /// Wraps the error in a new one with the message `doing`.
    fn within(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for Result<T, Error> {
    fn within(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.within(doing()))
    }
}

impl<T> Context<T> for Result<T, std::io::Error> {
    fn within(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::new(doing()).because(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_gets_hints_with_the_nearest_and_all_valid_names() {
        let e = Error::unknown("intervention", "prefvek", ["dpo", "prefvec"]);
        assert_eq!(
            format!("{e:?}"),
            "unknown intervention `prefvek`\n  hint: did you mean `prefvec`?\n  hint: valid: dpo, \
                prefvec"
        );
    }

    #[test]
    fn a_quoted_text_is_one_word_to_a_shell() {
        for (text, want) in [
            ("runs/dpo-lora_1", "runs/dpo-lora_1"),
            ("my runs/a", "'my runs/a'"),
            ("it's", r"'it'\''s'"),
            ("~/x", "'~/x'"),
            ("a$b;c", "'a$b;c'"),
            ("größe", "größe"),
            ("", "''"),
        ] {
            assert_eq!(quoted(text), want);
        }
        let odd = ["a b", "a'b\"c", "$HOME `x` !", "back\\slash", "new\nline", "*?[x]{y}#&|<>()"];
        for text in odd {
            let echoed = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(text))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(echoed.stdout).unwrap(), text);
        }
    }

    #[test]
    fn a_name_that_resembles_no_valid_one_gets_no_suggestion() {
        let e = Error::unknown("intervention", "banana", ["dpo", "prefvec"]);
        assert_eq!(e.hints(), ["valid: dpo, prefvec"]);
    }

    #[test]
    fn a_panic_of_tch_is_reported_without_its_stack() {
        let payload = std::panic::catch_unwind(|| {
            tch::Tensor::from_slice(&[1.0, 2.0]).matmul(&tch::Tensor::from_slice(&[1.0]))
        })
        .unwrap_err();
        let text = format!("{:?}", Error::panicked("`loss`", payload.as_ref()));
        assert!(
            text.starts_with("`loss` panicked\n  because libtorch: ")
                && text.len() < 200
                && !text.contains("frame"),
            "{text}"
        );
    }

    #[test]
    fn an_error_that_a_panic_caused_is_recognised() {
        let panic = || Error::panicked("`loss`", &"it broke");
        assert!(
            panic().is_panic()
                && panic().within("the run failed").blamed_on(Fault::Input).is_panic()
        );
        assert!(!Error::new("`loss` panicked").because(Error::internal("it broke")).is_panic());
    }

    #[test]
    fn a_nondeterministic_kernel_is_named_with_the_field_that_allows_it() {
        let text = "cumsum_cuda_kernel does not have a deterministic implementation, but you set \
            'torch.use_deterministic_algorithms(True)'.";
        let e = Error::from(tch::TchError::Torch(format!(
            "{text}\nException raised from alertNotDeterministic at Context.cpp"
        )));
        assert!(
            e.message().contains("cumsum_cuda_kernel")
                && e.hints()[0].contains("`deterministic=false`"),
            "{e:?}"
        );
        let payload: Box<dyn std::any::Any + Send> = Box::new(format!(
            "called `Result::unwrap()` on an `Err` value: Torch(\"{text}\\nframe\")"
        ));
        let e = Error::panicked("`loss`", payload.as_ref());
        assert!(
            format!("{e:?}").contains("cumsum_cuda_kernel")
                && e.hints()[0].contains("`deterministic=false`"),
            "{e:?}"
        );
        assert!(Error::from(tch::TchError::Torch("out of memory".to_owned())).hints().is_empty());
    }

    #[test]
    fn a_wrapped_error_keeps_its_hints_and_its_origin() {
        let e = Error::internal("inner").hint("do this").within("outer");
        assert_eq!(e.fault(), Fault::Internal);
        assert_eq!(format!("{e:?}"), "outer\n  because inner\n  hint: do this");
    }
}
