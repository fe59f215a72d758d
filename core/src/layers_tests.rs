//! Checks the layering of this crate. A module may only import modules from lower layers.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The top-level modules of the crate, from the lowest to the highest layer.
const ORDER: [&str; 36] = [
    "panics",
    "error",
    "files",
    "statistics",
    "ffi",
    "world",
    "memory",
    "api",
    "hub",
    "guard",
    "registry",
    "plugin",
    "weights",
    "text",
    "model",
    "batch",
    "fingerprint",
    "config",
    "reference",
    "other_base",
    "report",
    "data",
    "generate",
    "session",
    "eval",
    "shifts",
    "train",
    "run",
    "study",
    "results",
    "page",
    "doctor",
    "conformance",
    "selftest",
    "testing",
    "layers_tests",
];

/// The importing and the imported top-level module.
type Import = (String, String);

#[test]
fn modules_only_import_lower_modules() {
    let found = imports();
    let level = |module: &str| {
        ORDER
            .iter()
            .position(|m| *m == module)
            .unwrap_or_else(|| panic!("module `{module}` is missing from `ORDER`"))
    };
    let upward: Vec<&Import> = found.iter().filter(|(from, to)| level(from) < level(to)).collect();
    assert!(
        upward.is_empty(),
        "imports of a module from a higher layer (importing module, imported module): {upward:?}"
    );
}

/// Returns all imports between top-level modules, except those in tests.
fn imports() -> BTreeSet<Import> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeSet::new();
    for file in files(&root) {
        let from = module(&root, &file);
        let text = fs::read_to_string(&file).expect("a source file");
        for to in paths(&without_tests(&text)) {
            if to != from && ORDER.contains(&to.as_str()) {
                found.insert((from.clone(), to));
            }
        }
    }
    found
}

/// Returns the source files in a folder and its subfolders, except test files.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if stem == "tests" || stem.ends_with("_tests") || stem == "testing" {
            continue;
        }
        match path.is_dir() {
            true => all.extend(files(&path)),
            false if path.extension().is_some_and(|ending| ending == "rs") && stem != "lib" => {
                all.push(path)
            }
            false => {}
        }
    }
    all
}

/// Returns the name of the top-level module that contains `file`.
fn module(root: &Path, file: &Path) -> String {
    let inner = file.strip_prefix(root).expect("a file of the crate");
    let first = inner.components().next().expect("a name").as_os_str();
    Path::new(first).with_extension("").to_string_lossy().into_owned()
}

/// Removes all comments, and the test module at the end of a source file.
fn without_tests(text: &str) -> String {
    let code = text.lines().take_while(|line| *line != "mod tests {");
    code.map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Returns the identifiers that follow `crate::` or `$crate::`, including those in `crate::{…}`
/// groups.
fn paths(code: &str) -> Vec<String> {
    let name = |rest: &str| {
        rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
    };
    let mut found: Vec<String> =
        code.split("crate::").skip(1).filter(|rest| !rest.starts_with('{')).map(name).collect();
    for group in code.split("crate::{").skip(1) {
        let group = group.split(';').next().unwrap_or_default();
        found.extend(group.split([',', '{', '}']).map(|part| name(part.trim())));
    }
    found
}

#[test]
fn every_module_is_in_the_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let modules: BTreeSet<String> = files(&root).iter().map(|file| module(&root, file)).collect();
    let missing: Vec<&String> =
        modules.iter().filter(|module| !ORDER.contains(&module.as_str())).collect();
    assert!(missing.is_empty(), "modules missing from `ORDER`: {missing:?}");
}

#[test]
fn imports_are_found_in_every_syntax() {
    let of = |code: &str| paths(&without_tests(code));
    assert_eq!(of("use crate::error::Result;\nlet x = crate::files::hex(b);"), ["error", "files"]);
    assert_eq!(
        of("use crate::{data, text::{Cut, Drop}};")
            .iter()
            .filter(|m| ORDER.contains(&m.as_str()))
            .count(),
        2
    );
    assert!(of("// crate::train is above\nmod tests {\n    use crate::train;\n}").is_empty());
}
