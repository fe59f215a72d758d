//! `reprpo new`: creates the crate of a new plugin by filling in a template.

use std::path::{Path, PathBuf};

use reprpo_core::error::{Context, quoted};
use reprpo_core::registry::{Kind, Registry};
use reprpo_core::{Error, Result, ffi};

use crate::App;
use crate::args::NewArgs;

/// The lock file of this program, which is copied into the new crate. With other versions of the
/// dependencies, the plugin might be incompatible with this program.
const LOCK: &str = include_str!("../../../../Cargo.lock");

macro_rules! template {
    ($file:literal) => {
        include_str!(concat!("../../../../plugins/template/", $file))
    };
}

pub fn run(args: &NewArgs, app: &App<'_>) -> Result<()> {
    let kind = args.kind.kind();
    check_name(&args.name, kind, app.registry)?;
    let folder = args.path.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    let files = files(kind, &args.name, &Locations::of_this_build());
    write(&folder, &files)?;
    let (name, place, folder) = (&args.name, quoted(&folder), folder.display());
    app.printer.data(&format!(
        "created the {} `{name}` in `{folder}`; put its formula into `{folder}/src/lib.rs`. \
            Then:\n\n    cd {place}\n    cargo test\n    cargo build --release\n    {}\n",
        kind.name(),
        run_line(kind, name)
    ))
}

/// The locations of the SDK, libtorch and the compiled dependencies for the new crate.
struct Locations {
    /// The right-hand side of `reprpo-plugin =` in `Cargo.toml`.
    sdk: String,
    /// The libtorch folder.
    libtorch: PathBuf,
    /// The build folder of the checkout; `None` without a checkout. The crate reuses this folder,
    /// so that the dependencies are not built again.
    built: Option<PathBuf>,
}

impl Locations {
    /// Uses the checkout that this program was built in. If the checkout no longer exists, uses the
    /// release of the same version.
    fn of_this_build() -> Self {
        let lib = ffi::libtorch_folder();
        let libtorch = lib.parent().unwrap_or(lib).to_owned();
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .filter(|root| root.join("plugins/sdk/Cargo.toml").is_file());
        match checkout {
            Some(root) => {
                let sdk = format!("{{ path = {:?} }}", root.join("plugins/sdk"));
                // `OUT_DIR` of the build script is `BUILD/PROFILE/build/CRATE/out`.
                let built =
                    Path::new(env!("OUT_DIR")).ancestors().nth(4).filter(|folder| folder.is_dir());
                Self { sdk, libtorch, built: built.map(Path::to_owned) }
            }
            None => {
                let sdk = format!(
                    "{{ git = {:?}, tag = \"v{}\" }}",
                    env!("CARGO_PKG_REPOSITORY"),
                    env!("CARGO_PKG_VERSION")
                );
                Self { sdk, libtorch, built: None }
            }
        }
    }

    /// The contents of `.cargo/config.toml`, which only applies to this machine.
    fn cargo_config(&self) -> String {
        let mut text = format!(
            "# Settings for this machine. Do not add this file to git.\n\n# The libtorch folder:\n\
                [env]\nLIBTORCH = {:?}\n",
            self.libtorch
        );
        if let Some(built) = &self.built {
            text += &format!(
                "\n# Reuse the dependencies that the checkout of reprpo has built. The plugin \
                    itself is still written to `target`.\n[build]\nbuild-dir = {built:?}\n"
            );
        }
        text
    }
}

/// Checks that `name` is not taken, and that a crate, a library and a plugin may have this name.
fn check_name(name: &str, kind: Kind, registry: &Registry) -> Result<()> {
    let letters = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !letters || name.ends_with('-') || name.contains("--") {
        return Err(Error::new(format!("`{name}` is not a valid name for a plugin"))
            .hint("use a-z, 0-9 and single hyphens, and begin with a letter"));
    }
    if let Some(entry) =
        registry.of(kind).find(|e| e.about().name == name || e.about().aliases.contains(&name))
    {
        let about = entry.about();
        return Err(Error::new(format!(
            "the {} `{name}` is already defined by {} {}",
            kind.name(),
            about.origin,
            about.version
        ))
        .hint("choose another name"));
    }
    // Cargo rejects Rust keywords, names that it reserves, and the names of the crate's own
    // dependencies.
    const TAKEN: [&str; 9] =
        ["test", "core", "std", "alloc", "proc-macro", "build", "deps", "examples", "incremental"];
    const KEYWORDS: [&str; 35] = [
        "as", "async", "await", "break", "const", "continue", "crate", "dyn", "else", "enum",
        "extern", "false", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "match", "mod",
        "move", "mut", "pub", "ref", "return", "self", "static", "struct", "super", "trait",
        "true", "use", "while",
    ];
    if TAKEN.contains(&name) || KEYWORDS.contains(&name) {
        return Err(Error::new(format!(
            "`{name}` is reserved by Rust or Cargo and cannot be the name of a crate"
        ))
        .hint(format!("choose another name, e.g. `my-{name}`")));
    }
    if LOCK.lines().any(|line| {
        line.strip_prefix("name = ").is_some_and(|other| other.trim_matches('"') == name)
    }) {
        return Err(Error::new(format!(
            "`{name}` is the name of a crate that a plugin depends on"
        ))
        .hint(format!("choose another name, e.g. `my-{name}`")));
    }
    Ok(())
}

/// The command that runs the plugin once it is built.
fn run_line(kind: Kind, name: &str) -> String {
    let library = format!(
        "{}{}{}",
        std::env::consts::DLL_PREFIX,
        name.replace('-', "_"),
        std::env::consts::DLL_SUFFIX
    );
    let with = match kind {
        Kind::Intervention => " --adapter hra",
        Kind::Transform | Kind::Tap => " --intervention prefvec",
        Kind::Adapter | Kind::Dataset => "",
    };
    format!("reprpo run --plugin target/release/{library} --{} {name}{with}", kind.name())
}

/// The paths and contents of the crate's files.
fn files(kind: Kind, name: &str, locations: &Locations) -> Vec<(&'static str, String)> {
    let code = match kind {
        Kind::Intervention => template!("intervention.rs"),
        Kind::Adapter => template!("adapter.rs"),
        Kind::Transform => template!("transform.rs"),
        Kind::Tap => template!("tap.rs"),
        Kind::Dataset => template!("dataset.rs"),
    };
    let camel: String = name.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
    let run = run_line(kind, name);
    let fill = |text: &str| {
        let text = text
            .replace("my-method", name)
            .replace("my_method", &name.replace('-', "_"))
            .replace("MyMethod", &camel);
        let text = text.replace("MY_METHOD", &name.replace('-', "_").to_uppercase());
        text.replace("{{dependency}}", &locations.sdk)
            .replace("{{kind}}", kind.name())
            .replace("{{run}}", &run)
    };
    vec![
        ("Cargo.toml", fill(template!("Cargo.toml"))),
        ("Cargo.lock", LOCK.to_owned()),
        ("README.md", fill(template!("README.md"))),
        ("build.rs", fill(template!("build.rs"))),
        (".gitignore", fill(template!("gitignore"))),
        (".cargo/config.toml", locations.cargo_config()),
        ("src/lib.rs", fill(code)),
    ]
}

/// Writes the crate into a new folder. The folder is removed again if that fails.
fn write(folder: &Path, files: &[(&str, String)]) -> Result<()> {
    let within = |path: &Path| format!("cannot create `{}`", path.display());
    if folder.exists() {
        return Err(Error::new(format!("`{}` already exists", folder.display()))
            .hint("choose a different name, or a different folder with `--path DIR`"));
    }
    let all = || -> Result<()> {
        for (file, text) in files {
            let path = folder.join(file);
            let parent = path.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent).within(|| within(parent))?;
            std::fs::write(&path, text).within(|| within(&path))?;
        }
        Ok(())
    };
    all().inspect_err(|_| {
        // Ignore a failure to clean up, because the first error is more useful.
        let _ = std::fs::remove_dir_all(folder);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_must_be_valid_for_cargo_and_for_the_registry() {
        let registry = Registry::builtin().expect("plugins");
        let check = |name: &str| check_name(name, Kind::Adapter, &registry);
        assert!(check("twist").is_ok() && check("my-twist-2").is_ok());
        for bad in ["", "Twist", "2twist", "my_twist", "twist-", "a--b", "über", "../x", "type x"]
        {
            let e = check(bad).unwrap_err();
            assert!(e.message().contains("is not a valid name for a plugin"), "{bad}");
        }
        assert!(check("test").unwrap_err().message().contains("reserved by Rust or Cargo"));
        assert!(check("serde").unwrap_err().message().contains("that a plugin depends on"));
    }

    #[test]
    fn every_placeholder_of_a_template_is_filled_in() {
        let locations = Locations {
            sdk: "{ path = \"/sdk\" }".to_owned(),
            libtorch: "/libtorch".into(),
            built: None,
        };
        for kind in Kind::ALL {
            for (file, text) in files(kind, "two-words", &locations) {
                for left in ["{{", "my-method", "my_method", "MyMethod", "MY_METHOD"] {
                    assert!(!text.contains(left), "{} {file}: {left}", kind.name());
                }
            }
        }
        let lib = &files(Kind::Tap, "two-words", &locations)[6].1;
        assert!(lib.contains("\"two-words\"") && lib.contains("TwoWords"), "{lib}");
    }

    #[test]
    fn a_crate_without_a_checkout_has_no_build_folder() {
        let mut locations =
            Locations { sdk: String::new(), libtorch: "/libtorch".into(), built: None };
        assert!(
            locations.cargo_config().contains("LIBTORCH = \"/libtorch\"")
                && !locations.cargo_config().contains("build-dir")
        );
        locations.built = Some("/checkout/target".into());
        assert!(locations.cargo_config().contains("build-dir = \"/checkout/target\""));
    }
}
