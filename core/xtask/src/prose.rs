//! `cargo xtask prose`: searches comments, strings and Markdown for violations of the style guide,
//! `docs/style.md`.
//!
//! The search finds only some problems, so it does not replace a review.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::failure::at;
use crate::{paths, progress};

/// Maximum length of a line in characters.
const WIDTH: usize = 100;

const EXTENSIONS: [&str; 7] = ["rs", "md", "py", "sh", "cc", "toml", "yml"];

/// A violation in one line.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// Line number, counted from 1.
    line: usize,
    rule: String,
}

/// Searches all text files that git tracks, and prints one line per violation. The exit code is 1
/// if violations were found.
pub fn run() -> Result<ExitCode> {
    let checkout = paths::checkout();
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(&checkout)
        .output()
        .context("cannot run `git`")?;
    ensure!(output.status.success(), "`git ls-files` failed in `{}`", checkout.display());
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let (mut files, mut violations) = (0, 0);
    for name in names.split('\0').filter(|name| is_searched(Path::new(name))) {
        let path = checkout.join(name);
        // Skip files that were deleted but are still in the index.
        if !path.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|e| at(&path, "read", e))?;
        for Finding { line, rule } in findings(Path::new(name), &text) {
            println!("{name}:{line}: {rule}");
            violations += 1;
        }
        files += 1;
    }
    progress::line(&format!("searched {files} files, found {violations} violations"));
    Ok(if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns true for source code and documentation, and false for data.
fn is_searched(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    EXTENSIONS.contains(&extension)
}

fn findings(path: &Path, text: &str) -> Vec<Finding> {
    let is_markdown = path.extension().is_some_and(|e| e == "md");
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let mut is_code = false;
    for (i, line) in lines.iter().enumerate() {
        if is_markdown && line.trim_start().starts_with("```") {
            is_code = !is_code;
        }
        let mut rules = phrases(line);
        if line.chars().count() > WIDTH && !may_be_long(line) && !is_code {
            rules.push(format!("longer than {WIDTH} characters"));
        }
        if comment(line) == Some("# Errors") {
            let next = lines[i + 1..].iter().map_while(|l| comment(l)).find(|l| !l.is_empty());
            if next.is_some_and(|l| l.starts_with("What ") && l.contains(" says")) {
                rules
                    .push("`# Errors` must state when the function fails: `Fails if …`".to_owned());
            }
        }
        found.extend(rules.into_iter().map(|rule| Finding { line: i + 1, rule }));
    }
    found
}

/// Returns the text of a comment without `//` or a similar prefix, or `None` if the line is not a
/// comment.
fn comment(line: &str) -> Option<&str> {
    let text = line.trim_start();
    let text = ["///", "//!", "//", "#:"].iter().find_map(|mark| text.strip_prefix(mark))?;
    Some(text.trim())
}

/// Finds phrases that the style guide forbids. Code in backticks is not searched.
fn phrases(line: &str) -> Vec<String> {
    let text: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
    let mut found = Vec::new();
    // Build the phrases from parts, so that this file does not violate the rules itself.
    for verb in ["is", "are"] {
        let phrase = format!(" {verb} no ");
        let mut places = text.match_indices(&phrase).map(|(at, _)| (&text[..at], &text[at..]));
        let is_idiomatic = |before: &str, after: &str| {
            ["there", "There"].iter().any(|word| before.ends_with(word))
                || after[phrase.len()..].starts_with("longer")
        };
        if places.any(|(before, after)| !is_idiomatic(before, after)) {
            found.push(format!("`{verb} no …`: write `{verb} not a …`"));
        }
    }
    let alone = concat!(" alo", "ne");
    if ['.', ',', ')', ']'].iter().any(|end| text.contains(&format!("{alone}{end}"))) {
        found.push("`alone` at the end: write `only` before the verb".to_owned());
    }
    let seen = concat!("may be ", "seen");
    if text.contains(seen) {
        found.push(format!("`{seen}`: write who can see the text"));
    }
    found
}

/// Returns true for lines that cannot be split: table rows, URLs, raw strings and wheel names.
fn may_be_long(line: &str) -> bool {
    let text = line.trim_start();
    let text = ["///", "//!"].iter().find_map(|mark| text.strip_prefix(mark)).unwrap_or(text);
    text.trim_start().starts_with('|')
        || line.contains("://")
        || line.contains("r#\"")
        || line.contains("r\"")
        || line.contains(".whl\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(name: &str, text: &str) -> Vec<(usize, String)> {
        findings(Path::new(name), text).into_iter().map(|f| (f.line, f.rule)).collect()
    }

    #[test]
    fn the_phrases_of_the_style_guide_are_found() {
        let bad = |text: &str| text.replace('~', "");
        for text in [
            "// `x` is ~no layer",
            "// these are ~no layers",
            "// PEFT adapts modules alo~ne.",
            "// (with this alo~ne)",
            "// it may be ~seen",
        ] {
            assert_eq!(rules("a.rs", &bad(text)).len(), 1, "{text}");
        }
        for text in [
            "// there is no layer",
            "// There are no layers",
            "// these are no longer layers",
            "// it stands alone here",
            "// `is no `",
            "let is_no_layer = 1;",
        ] {
            assert_eq!(rules("a.rs", text), [], "{text}");
        }
    }

    #[test]
    fn an_error_section_without_a_condition_is_found() {
        let text = "/// # Errors\n/// What the hub says.\nfn f() {}\n";
        assert_eq!(rules("a.rs", text).len(), 1);
        assert_eq!(rules("a.rs", "/// # Errors\n/// Fails if the hub does.\n"), []);
    }

    #[test]
    fn long_lines_are_found_unless_they_cannot_be_split() {
        let long = "x ".repeat(51);
        assert_eq!(
            rules("a.rs", &format!("// {long}")),
            [(1, "longer than 100 characters".into())]
        );
        assert_eq!(rules("a.rs", &format!("/// | {long}")), []);
        assert_eq!(rules("a.rs", &format!("// https://{long}")), []);
        assert_eq!(rules("a.rs", &"é".repeat(100)), []);
        assert_eq!(rules("a.md", &format!("```\n{long}\n```\n")), []);
        assert_eq!(rules("a.md", &format!("```\n```\n{long}\n")).len(), 1);
    }
}
