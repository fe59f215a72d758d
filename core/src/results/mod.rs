//! Reads recorded runs and studies, and compares their methods.
//!
//! This module only reads the files of run folders. It needs neither the model nor the data, so it
//! works on a machine that has only the results. `docs/results.md` describes the tables.

mod collect;
mod comparability;
mod csv;
mod curves;
mod figures;
mod format;
mod methods;
mod paired;
mod pairs;
mod recorded;
mod reproduction;
mod states;
mod steps;
mod study_file;
mod summary;
mod tables;

pub use collect::{Collection, LeftOut, Member, Place, collect};
pub use csv::csv;
pub use curves::{CurvePoint, Curves, Matched, MatchedGain};
pub use figures::{Figure, Figures, SplitFigures};
pub use format::{number, p_value, signed};
pub use methods::{Method, MethodPoint, Row, Tuned};
pub use paired::{PairedTest, PairedTests};
pub use pairs::{PairRecord, ScoredSplit};
pub use recorded::RecordedRun;
pub use reproduction::Reproduction;
pub use states::{LayerMotion, StatesRecord};
pub use steps::{StepLine, ValidationLine};
pub use study_file::{SelectedOn, StudyFile, Trial, TrialState};
pub use summary::{Request, SplitInfo, StudyInfo, Summary, summarise};
pub(crate) use tables::LOW_RATIO;
pub use tables::{markdown, plain};
