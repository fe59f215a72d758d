//! Uses `cargo metadata` to find the version of this project and the crates that are linked into
//! its binary.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run;

/// The crate that contains the packaged binary.
const ROOT: &str = "reprpo";

/// Metadata of the `reprpo` crate, and the third-party crates in its binary.
pub struct Metadata {
    pub version: String,
    pub description: String,
    pub repository: String,
    /// The third-party crates, sorted by name and version.
    pub linked: Vec<Linked>,
}

/// A crate whose code is in the binary.
#[derive(Clone, Debug)]
pub struct Linked {
    pub name: String,
    pub version: String,
    /// The licence as an SPDX expression.
    pub licence: Option<String>,
    pub authors: Vec<String>,
    /// Source folder of the crate on this machine.
    pub folder: PathBuf,
}

impl Metadata {
    pub fn read(libtorch: &Path) -> Result<Self> {
        let mut cargo = run::cargo(libtorch);
        cargo.args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ]);
        let output = cargo.output().context("cannot run `cargo metadata`")?;
        if !output.status.success() {
            bail!("`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Self::parse(
            &serde_json::from_slice(&output.stdout)
                .context("`cargo metadata` did not write JSON")?,
        )
    }

    fn parse(json: &Value) -> Result<Self> {
        let packages: BTreeMap<&str, &Value> = list(&json["packages"])
            .filter_map(|package| Some((package["id"].as_str()?, package)))
            .collect();
        let nodes: BTreeMap<&str, &Value> = list(&json["resolve"]["nodes"])
            .filter_map(|node| Some((node["id"].as_str()?, node)))
            .collect();
        let is_root = |id: &&str| packages.get(id).is_some_and(|package| package["name"] == ROOT);
        let Some(root) = list(&json["workspace_members"]).filter_map(Value::as_str).find(is_root)
        else {
            bail!("the workspace has no package `{ROOT}`")
        };

        let (mut waiting, mut seen) = (vec![root], HashSet::from([root]));
        let mut linked = Vec::new();
        while let Some(id) = waiting.pop() {
            let package = packages
                .get(id)
                .with_context(|| format!("`cargo metadata` does not describe `{id}`"))?;
            // Procedural macros and their dependencies run in the compiler, and are not in the
            // binary.
            if list(&package["targets"])
                .any(|target| list(&target["kind"]).any(|kind| kind == "proc-macro"))
            {
                continue;
            }
            if !package["source"].is_null() {
                linked.push(Linked::of(package)?);
            }
            for dependency in nodes.get(id).into_iter().flat_map(|node| list(&node["deps"])) {
                let runs = list(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null());
                if let Some(id) = dependency["pkg"].as_str().filter(|_| runs)
                    && seen.insert(id)
                {
                    waiting.push(id);
                }
            }
        }
        linked.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        let root = packages[root];
        Ok(Self {
            version: text(root, "version")?,
            description: text(root, "description")?,
            repository: text(root, "repository")?,
            linked,
        })
    }

    #[cfg(test)]
    pub fn fixed(version: &str, description: &str) -> Self {
        Self {
            version: version.into(),
            description: description.into(),
            repository: "https://example.org/reprpo".into(),
            linked: Vec::new(),
        }
    }
}

impl Linked {
    fn of(package: &Value) -> Result<Self> {
        let manifest = PathBuf::from(text(package, "manifest_path")?);
        Ok(Self {
            name: text(package, "name")?,
            version: text(package, "version")?,
            licence: package["license"].as_str().map(str::to_owned),
            authors: list(&package["authors"])
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            folder: manifest.parent().unwrap_or(Path::new("")).to_owned(),
        })
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(package: &Value, field: &str) -> Result<String> {
    package[field]
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("`cargo metadata` has no `{field}` for `{}`", package["name"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_linked_crates_are_listed() {
        let package = |name: &str, kind: &str, source: Value| {
            json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT", "authors": [],
                "source": source, "description": "d", "repository": "r",
                "manifest_path": format!("/registry/{name}/Cargo.toml"),
                "targets": [{"kind": [kind]}]})
        };
        let to = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let registry = || json!("registry");
        let metadata = Metadata::parse(&json!({
            "packages": [
                package("reprpo", "bin", Value::Null), package("core", "lib", Value::Null),
                package("b", "lib", registry()), package("a", "lib", registry()),
                package("build", "lib", registry()), package("dev", "lib", registry()),
                package("macro", "proc-macro", registry()), package("syn", "lib", registry()),
            ],
            "workspace_members": ["core", "reprpo"],
            "resolve": {"nodes": [
                {"id": "reprpo", "deps": [to("core", Value::Null), to("dev", json!("dev"))]},
                {"id": "core", "deps": [to("b", Value::Null), to("build", json!("build")),
                to("macro", Value::Null)]},
                {"id": "b", "deps": [to("a", Value::Null)]},
                {"id": "macro", "deps": [to("syn", Value::Null)]},
            ]},
        }))
        .unwrap();
        assert_eq!(
            metadata.linked.iter().map(|linked| linked.name.as_str()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(metadata.linked[0].folder, Path::new("/registry/a"));
        assert_eq!(metadata.version, "1.0.0");
    }
}
