//! Writes the metrics as events for TensorBoard.
//!
//! The format is TensorFlow's record format: a length, its checksum, the bytes of an event, and
//! their checksum, all little-endian. An event is a protocol buffer of `event.proto`. Only scalars
//! are written, so a few lines of encoding replace a dependency.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::recorder::Recorder;
use super::step::StepRecord;
use super::validation::ValidationRecord;
use crate::error::{Context, Error, Result};
use crate::eval::Evaluation;

/// Name of the folder in a run's folder.
const FOLDER: &str = "tb";

/// Writes an event file to `tb/` in the run's folder. A resumed run writes another file, which
/// replaces the steps after the checkpoint.
#[derive(Debug)]
pub struct TensorBoard {
    file: File,
    /// The last step that was recorded.
    step: usize,
}

impl TensorBoard {
    /// Creates an event file in the run's folder.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn create(run: &Path) -> Result<Self> {
        let folder = run.join(FOLDER);
        let within = || format!("cannot write events to `{}`", folder.display());
        std::fs::create_dir_all(&folder).within(within)?;
        let name =
            format!("events.out.tfevents.{:010}.reprpo.{}.0", now().as_secs(), std::process::id());
        let mut file =
            File::options().create(true).append(true).open(folder.join(name)).within(within)?;
        let version = bytes_field(3, b"brain.Event:2");
        file.write_all(&record(&event(0, &version))).within(within)?;
        Ok(Self { file, step: 0 })
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        self.file
            .write_all(&record(event))
            .map_err(|e| Error::new("cannot write the events for TensorBoard").because(e))
    }

    fn scalars(&mut self, step: usize, values: &[(String, f64)]) -> Result<()> {
        self.step = step;
        // Summary { value: [Value { tag, simple_value }] }
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut content = bytes_field(1, tag.as_bytes());
            content.push(2 << 3 | 5);
            content.extend((*value as f32).to_le_bytes());
            summary.extend(bytes_field(1, &content));
        }
        let content = bytes_field(5, &summary);
        self.write(&event(step, &content))
    }
}

impl Recorder for TensorBoard {
    fn begin(&mut self, first: usize, _steps: usize) -> Result<()> {
        if first == 0 {
            return Ok(());
        }
        // SessionLog { status: START } removes the later steps of earlier files.
        let start = bytes_field(7, &[1 << 3, 1]);
        self.write(&event(first + 1, &start))
    }

    fn step(&mut self, step: &StepRecord) -> Result<()> {
        let mut values = vec![
            ("train/loss".to_owned(), step.loss),
            ("train/grad_norm".to_owned(), step.grad_norm),
            ("train/learning_rate".to_owned(), step.learning_rate),
            ("train/epoch".to_owned(), step.epoch),
        ];
        values.extend(step.metrics.iter().map(|(name, v)| (format!("train/{name}"), *v)));
        self.scalars(step.step, &values)
    }

    fn validation(&mut self, record: &ValidationRecord) -> Result<()> {
        let values: Vec<(String, f64)> = record
            .to_json()
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| {
                Some((format!("eval/{}", name.strip_prefix("eval_")?), value.as_f64()?))
            })
            .collect();
        self.scalars(record.step, &values)
    }

    fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        let mut values = Vec::new();
        // The JSON form contains every metric of the table.
        let json = evaluation.json();
        for split in json["splits"].as_array().into_iter().flatten() {
            let name = split["split"].as_str().unwrap_or_default();
            for (metric, value) in split["change"].as_object().into_iter().flatten() {
                if let Some(value) = value["value"].as_f64().or_else(|| value["mean"].as_f64()) {
                    values.push((format!("{name}/{metric}"), value));
                }
            }
        }
        let step = self.step;
        if values.is_empty() { Ok(()) } else { self.scalars(step, &values) }
    }

    fn close(&mut self) -> Result<()> {
        self.file
            .sync_all()
            .map_err(|e| Error::new("cannot write the events for TensorBoard").because(e))
    }
}

/// An event with the time, a step and further fields.
fn event(step: usize, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1 << 3 | 1];
    bytes.extend(now().as_secs_f64().to_le_bytes());
    bytes.push(2 << 3);
    bytes.extend(varint(step as u64));
    bytes.extend(content);
    bytes
}

/// A record: the length, its checksum, the content, and its checksum.
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked(crc32c(&length)).to_le_bytes());
    bytes.extend(content);
    bytes.extend(masked(crc32c(content)).to_le_bytes());
    bytes
}

/// A field with a length: a string, bytes or a message.
fn bytes_field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    bytes.extend(varint(content.len() as u64));
    bytes.extend(content);
    bytes
}

/// A number in groups of 7 bits, the lowest group first.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let group = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(group);
            return bytes;
        }
        bytes.push(group | 0x80);
    }
}

/// CRC-32C (Castagnoli), with the reflected polynomial.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
        }
    }
    !crc
}

/// The form in which the record format stores a checksum.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn now() -> std::time::Duration {
    // A clock before 1970 only changes the times that TensorBoard shows.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_match_published_values() {
        // RFC 3720, appendix B.4, and the check value of CRC-32C.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn numbers_are_encoded_in_groups_of_seven_bits() {
        assert_eq!([varint(1), varint(300)], [vec![1], vec![0xac, 2]]);
        assert_eq!(bytes_field(3, b"ab"), [0x1a, 2, b'a', b'b']);
    }

    #[test]
    fn a_record_has_the_bytes_of_the_first_record_of_every_event_file() {
        // The header of a record with 24 bytes, as in the event files of other writers.
        let bytes = record(&[0; 24]);
        assert_eq!(bytes[..12], [24, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(bytes.len(), 8 + 4 + 24 + 4);
    }
}
