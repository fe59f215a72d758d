//! The commands and outputs shown in the documentation.
//!
//! The commands of a `console` block run in the order of the page, in a temporary folder of the
//! page. Their output must match the block. A line `…` matches any number of lines, and `…` within
//! a line matches any text. If FILE does not exist, `cat FILE` creates it with the lines shown
//! below the command. In all other blocks, the `reprpo` command lines must be valid, and those that
//! need neither the network nor a GPU are run with a tiny model and few pairs.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{reprpo, reprpo_command, reprpo_in, stdout};

/// Pages that contain commands.
const PAGES: [&str; 12] = [
    "README.md",
    "docs/adapters-elsewhere.md",
    "docs/benchmarks.md",
    "docs/clusters.md",
    "docs/guide.md",
    "docs/install.md",
    "docs/methods.md",
    "docs/plugins.md",
    "docs/results.md",
    "docs/selftest.md",
    "docs/studies.md",
    "CONTRIBUTING.md",
];

/// Models and data sets on the pages that a tiny model and its pairs replace.
const REPLACED_MODELS: [&str; 2] = ["Qwen/Qwen3-0.6B", "smollm2-135m-instruct"];
const REPLACED_DATA: [&str; 1] = ["trl-lib/ultrafeedback_binarized"];

/// A fenced code block of a page.
struct Block {
    /// Line number of its first line, counted from 1.
    line: usize,
    /// The word after the fence.
    language: String,
    lines: Vec<String>,
}

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn blocks(text: &str) -> Vec<Block> {
    let (mut found, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    for (i, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => found.push(block),
            (Some(language), None) => {
                open = Some(Block { line: i + 2, language: language.to_owned(), lines: Vec::new() })
            }
            (None, Some(mut block)) => {
                block.lines.push(line.to_owned());
                open = Some(block);
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a code block is not closed");
    found
}

/// Returns the commands of a block. Joins lines that end with a backslash and removes comments.
fn commands(block: &Block) -> Vec<String> {
    let joined = block.lines.join("\n").replace("\\\n", " ");
    let lines = joined.lines().map(|line| line.trim().trim_start_matches("$ "));
    lines.map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned()).collect()
}

/// Splits a command line into words as a shell does.
fn words(command: &str) -> Vec<String> {
    let script = format!("printf '%s\\0' {command}");
    let output = Command::new("sh").args(["-c", &script]).output().expect("sh runs");
    assert!(output.status.success(), "the shell cannot parse `{command}`");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.split_terminator('\0').map(str::to_owned).collect()
}

#[test]
fn every_documented_command_is_valid() {
    let mut checked = 0;
    let here = tempfile::tempdir().expect("a folder");
    let reprpo = |args: &[&str]| reprpo_in(here.path(), args);
    for name in PAGES {
        for block in blocks(&page(name)) {
            for command in commands(&block).iter().filter(|c| c.starts_with("reprpo ")) {
                if command.contains(['|', '>', '<', ';', '&']) || command.contains("…") {
                    continue;
                }
                let words = words(command);
                // Only the existence of the example's files is checked, so they can be empty.
                for word in words.iter().flat_map(|word| word.split(['=', '#'])) {
                    if word.ends_with(".jsonl") {
                        std::fs::write(here.path().join(word), "").expect("the file is written");
                    }
                }
                let mut args: Vec<&str> = words[1..].iter().map(String::as_str).collect();
                // `--help` is handled after all other flags have been parsed.
                args.push("--help");
                let output = reprpo(&args);
                let place = format!("{name}:{}: `{command}`", block.line);
                let error = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{place}\n{error}");
                let other = ["--plugin", "--resume", "--out", "--init-adapter", "--offline"];
                if args[0] == "run" && !args.iter().any(|arg| other.contains(arg)) {
                    args.pop();
                    let output = reprpo(&[&["config", "show"], &args[1..]].concat());
                    let error = String::from_utf8_lossy(&output.stderr);
                    assert!(output.status.success(), "{place}\n{error}");
                }
                checked += 1;
            }
        }
    }
    assert!(checked > 30, "only {checked} commands were found");
}

/// Returns the arguments of a command with a tiny model and few pairs in `folder`, or `None` if the
/// command needs the network, a GPU, a plugin or a file that its page does not create.
fn reduced(words: &[String], folder: &Path) -> Option<Vec<String>> {
    let text = words.join(" ");
    let elsewhere = ["selftest", "model fetch", "data fetch", "new ", "plugin check"];
    let missing = ["genies:", "--plugin", "--offline", "cuda", "NAME", "RUN", "study.toml"];
    if elsewhere.iter().any(|start| text.starts_with(start))
        || missing.iter().any(|part| text.contains(part))
        || words
            .iter()
            .any(|w| w.starts_with("runs/") && words[0] != "run" && !folder.join(w).exists())
    {
        return None;
    }
    let golden = crate::golden::own();
    let model = golden.join("models/llama").display().to_string();
    let pairs = golden.join("trl/pairs.jsonl");
    let parts = words.iter().flat_map(|word| word.split(['=', '#']));
    for name in parts.filter(|word| word.ends_with(".jsonl")) {
        if !folder.join(name).exists() {
            std::fs::copy(&pairs, folder.join(name)).expect("the pairs are copied");
        }
    }
    let replaced = |word: &String| match word.as_str() {
        word if REPLACED_MODELS.contains(&word) => model.clone(),
        word if REPLACED_DATA.contains(&word) => pairs.display().to_string(),
        word => word.to_owned(),
    };
    let mut args: Vec<String> = words.iter().map(replaced).collect();
    if ["run", "bench"].contains(&args[0].as_str()) && !args.contains(&"--model".to_owned()) {
        args.extend(["--model".into(), model]);
    }
    if args[0] == "bench" {
        let small = ["--device", "cpu", "--set", "train.batch=2"];
        args.extend(small.map(String::from));
        if !args.contains(&"--pairs".to_owned()) {
            args.extend(["--pairs", "8"].map(String::from));
        }
    }
    if args[0] == "run" {
        let small = ["--device", "cpu", "--set", "train.max_pairs=8", "--set", "eval.max_pairs=4"];
        args.extend(small.map(String::from));
        // All files of these commands contain the same pairs.
        args.extend(["--set", "eval.overlap=keep"].map(String::from));
    }
    Some(args)
}

#[test]
fn documented_commands_run_with_a_tiny_model() {
    let mut run = 0;
    for name in PAGES {
        let folder = tempfile::tempdir().expect("a folder");
        for block in blocks(&page(name)).iter().filter(|block| block.language != "console") {
            for command in commands(block).iter().filter(|c| c.starts_with("reprpo ")) {
                if command.contains(['|', '>', '<', ';', '&', '$', '…']) {
                    continue;
                }
                let Some(args) = reduced(&words(command)[1..], folder.path()) else { continue };
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                let output = reprpo_in(folder.path(), &args);
                let error = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{name}:{}: `{command}`\n{error}", block.line);
                run += 1;
            }
        }
    }
    assert!(run >= 10, "only {run} commands were run");
}

#[test]
fn the_formulas_on_the_methods_page_match_explain() {
    let text = page("docs/methods.md");
    let mut checked = 0;
    for section in text.split("\n### `").skip(1) {
        let (name, rest) = section.split_once('`').expect("a heading ends");
        let explained = stdout(&reprpo(&["explain", name]));
        let formulas = blocks(rest.split("\n## ").next().unwrap_or_default());
        assert_eq!(formulas.len(), 1, "`{name}` must have one formula");
        for line in &formulas[0].lines {
            assert!(explained.contains(line.trim_end()), "`{name}`: {line}\n\n{explained}");
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} formula lines were checked");
}

/// Returns true if `output` matches the pattern `shown`, in which `…` stands for any text or lines.
fn matches(shown: &[String], output: &[&str]) -> bool {
    match shown.split_first() {
        None => output.is_empty(),
        Some((line, rest)) if line == "…" => {
            (0..=output.len()).any(|skipped| matches(rest, &output[skipped..]))
        }
        Some((line, rest)) => output.split_first().is_some_and(|(first, others)| {
            let mut parts = line.trim_end().split('…');
            let start = parts.next().unwrap_or_default();
            let mut found = first.trim_end().strip_prefix(start);
            let mut exact = true;
            for part in parts {
                exact = part.is_empty();
                found = found.and_then(|text| Some(&text[text.rfind(part)? + part.len()..]));
            }
            found.is_some_and(|left| left.is_empty() || (exact && line.contains('…')))
                && matches(rest, others)
        }),
    }
}

#[test]
fn an_ellipsis_matches_any_text_or_lines() {
    let shown = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let like =
        |text: &str, output: &str| matches(&shown(text), &output.lines().collect::<Vec<_>>());
    assert!(like("a\nb", "a\nb") && like("a  ", "a") && like("…\nb\n…", "a\nb\nc\nd"));
    assert!(like("took … s, all", "took 3.1 s, all") && like("took …", "took 3 s"));
    assert!(!like("a", "a\nb") && !like("a\nb", "a") && !like("…\nb", "a\nc"));
    assert!(!like("took … s", "took 3 min") && !like("a", "ab"));
}

/// True if the model smollm2-135m-instruct was fetched. In continuous integration, the tests that
/// need it must not be skipped.
pub(crate) fn has_smollm2() -> bool {
    let fetched = stdout(&reprpo(&["list", "models", "--json"])).contains("\"fetched\": true")
        || std::env::var("CI").as_deref() == Ok("true");
    if !fetched {
        eprintln!("skipped: run `reprpo model fetch smollm2-135m-instruct` first");
    }
    fetched
}

#[test]
fn every_documented_session_prints_the_documented_output() {
    if !has_smollm2() {
        return;
    }
    let program = reprpo_command(&[]);
    let folder = Path::new(program.get_program()).parent().expect("a folder").to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([folder].into_iter().chain(std::env::split_paths(&path)));
    let path = path.expect("a path");
    let mut sessions = 0;
    for name in PAGES {
        let here = tempfile::tempdir().expect("a folder");
        for block in blocks(&page(name)).iter().filter(|block| block.language == "console") {
            let mut lines = block.lines.iter().enumerate().peekable();
            while let Some((i, line)) = lines.next() {
                let command = line.strip_prefix("$ ").unwrap_or_else(|| panic!("{name}: {line}"));
                let mut shown = Vec::new();
                while let Some((_, line)) = lines.next_if(|(_, line)| !line.starts_with("$ ")) {
                    shown.push(line.clone());
                }
                if let Some(file) = command.strip_prefix("cat ")
                    && !here.path().join(file).exists()
                {
                    let text = shown.join("\n") + "\n";
                    std::fs::write(here.path().join(file), text).expect("the file is written");
                    continue;
                }
                let output = Command::new("sh")
                    .args(["-c", &format!("{command} 2>&1")])
                    .current_dir(here.path())
                    .env("PATH", &path)
                    .env("NO_COLOR", "1")
                    .env("OMP_NUM_THREADS", "1")
                    .stdin(Stdio::null())
                    .output()
                    .expect("sh runs");
                let text = String::from_utf8_lossy(&output.stdout);
                let place = format!("{name}:{}", block.line + i);
                assert!(output.status.success(), "{place}: `{command}`\n{text}");
                let printed: Vec<&str> = text.lines().collect();
                assert!(matches(&shown, &printed), "{place}: `{command}` printed\n{text}");
                sessions += 1;
            }
        }
    }
    assert!(sessions > 1, "only {sessions} commands were run");
}
