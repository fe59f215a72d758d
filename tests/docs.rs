//! The commands and outputs that the documentation shows.
//!
//! A block marked `console` is run in the order of its page, in a folder of that page, and its
//! output is compared with what the page shows. `…` on a line of its own stands for any lines, and
//! within a line for any text. `cat FILE` of a file that does not exist creates the file with the
//! lines that are shown. In all other blocks, the command lines of `reprpo` must be valid.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{reprpo, reprpo_command, reprpo_in, stdout};

/// The pages that show commands.
const PAGES: [&str; 8] = [
    "README.md",
    "docs/adapters-elsewhere.md",
    "docs/clusters.md",
    "docs/guide.md",
    "docs/install.md",
    "docs/methods.md",
    "docs/plugins.md",
    "CONTRIBUTING.md",
];

/// A fenced block.
struct Block {
    /// Number of its first line, from 1.
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
    assert!(open.is_none(), "a block does not end");
    found
}

/// The commands of a block: lines that end with a backslash continue, and comments are left out.
fn commands(block: &Block) -> Vec<String> {
    let joined = block.lines.join("\n").replace("\\\n", " ");
    let lines = joined.lines().map(|line| line.trim().trim_start_matches("$ "));
    lines.map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned()).collect()
}

/// The words of a command line, as a shell splits it.
fn words(command: &str) -> Vec<String> {
    let script = format!("printf '%s\\0' {command}");
    let output = Command::new("sh").args(["-c", &script]).output().expect("sh runs");
    assert!(output.status.success(), "a shell cannot read `{command}`");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.split_terminator('\0').map(str::to_owned).collect()
}

#[test]
fn every_command_that_is_shown_is_valid() {
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
                // The files of the example only have to exist.
                for word in words.iter().flat_map(|word| word.split('=')) {
                    if word.ends_with(".jsonl") {
                        std::fs::write(here.path().join(word), "").expect("it is written");
                    }
                }
                let mut args: Vec<&str> = words[1..].iter().map(String::as_str).collect();
                // Help comes after the flags before it were read.
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

#[test]
fn the_formulas_of_the_methods_page_are_those_of_explain() {
    let text = page("docs/methods.md");
    let mut checked = 0;
    for section in text.split("\n### `").skip(1) {
        let (name, rest) = section.split_once('`').expect("a heading ends");
        let explained = stdout(&reprpo(&["explain", name]));
        let formulas = blocks(rest.split("\n## ").next().unwrap_or_default());
        assert_eq!(formulas.len(), 1, "`{name}` has one formula");
        for line in &formulas[0].lines {
            assert!(explained.contains(line.trim_end()), "`{name}`: {line}\n\n{explained}");
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} lines were found");
}

/// True if `output` is what `shown` stands for.
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
fn output_is_compared_with_gaps() {
    let shown = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let like =
        |text: &str, output: &str| matches(&shown(text), &output.lines().collect::<Vec<_>>());
    assert!(like("a\nb", "a\nb") && like("a  ", "a") && like("…\nb\n…", "a\nb\nc\nd"));
    assert!(like("took … s, all", "took 3.1 s, all") && like("took …", "took 3 s"));
    assert!(!like("a", "a\nb") && !like("a\nb", "a") && !like("…\nb", "a\nc"));
    assert!(!like("took … s", "took 3 min") && !like("a", "ab"));
}

#[test]
fn every_session_prints_what_is_shown() {
    if !stdout(&reprpo(&["list", "models", "--json"])).contains("\"fetched\": true")
        && std::env::var("CI").as_deref() != Ok("true")
    {
        eprintln!("skipped: `reprpo model fetch smollm2-135m-instruct` fetches the model");
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
                    std::fs::write(here.path().join(file), text).expect("it is written");
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
    assert!(sessions > 1, "only {sessions} commands were found");
}
