//! The interface through which downloads report their progress to the calling program.

/// A step of a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Downloading a file with pip.
    Fetch,
    /// Computing the SHA-256 of a file.
    Check,
    /// Unpacking files from a wheel.
    Unpack,
}

/// Receives the progress of a download.
pub trait Report {
    /// Shows a line of text to the user.
    fn line(&mut self, text: &str);
    /// Called at the beginning of a step. `total` is the number of bytes of `file` to process.
    fn begin(&mut self, step: Step, file: &str, total: u64);
    /// Called after another `bytes` bytes were processed.
    fn advance(&mut self, bytes: u64);
    /// Called when the step ends.
    fn end(&mut self);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Records the lines and the steps.
    #[derive(Default)]
    pub struct Recorder {
        pub lines: Vec<String>,
        pub steps: Vec<(Step, String)>,
    }

    impl Report for Recorder {
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
