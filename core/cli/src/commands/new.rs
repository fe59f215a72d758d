//! `reprpo new`: the crate of a new method, as text with a few words replaced.

use std::path::{Path, PathBuf};

use reprpo_core::error::{Context, quoted};
use reprpo_core::registry::{Kind, Registry};
use reprpo_core::{Error, Result, ffi};

use crate::App;
use crate::args::NewArgs;

/// The versions that this program was built with: a plugin that is built with others need not fit.
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
    let files = files(kind, &args.name, &Place::of_this_build());
    write(&folder, &files)?;
    let (name, place, folder) = (&args.name, quoted(&folder), folder.display());
    app.printer.data(&format!(
        "the {} `{name}` is in `{folder}`; its formula goes into `{folder}/src/lib.rs`. \
            Then:\n\n    cd {place}\n    cargo test\n    cargo build --release\n    {}\n",
        kind.name(),
        run_line(kind, name)
    ))
}

/// Where the crate finds what it is built from and with.
struct Place {
    /// The right-hand side of `reprpo-plugin =`.
    sdk: String,
    /// The folder of libtorch.
    libtorch: PathBuf,
    /// What the checkout has built, and need not be built again; none without a checkout.
    built: Option<PathBuf>,
}

impl Place {
    /// The checkout that this program was built in where it is still there, else its release.
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
                // The build script's own folder is `BUILD/PROFILE/build/CRATE/out`.
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

    /// `.cargo/config.toml`, which is this machine's own.
    fn cargo_config(&self) -> String {
        let mut text = format!(
            "# Of this machine alone, and not for git. Where libtorch lies:\n[env]\nLIBTORCH = \
                {:?}\n",
            self.libtorch
        );
        if let Some(built) = &self.built {
            text += &format!(
                "\n# What the checkout of reprpo has built is taken from there; the plugin itself \
                    stays in `target`.\n[build]\nbuild-dir = {built:?}\n"
            );
        }
        text
    }
}

/// A name for a crate, a library and a command line, which nothing has yet.
fn check_name(name: &str, kind: Kind, registry: &Registry) -> Result<()> {
    let letters = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !letters || name.ends_with('-') || name.contains("--") {
        return Err(Error::new(format!("`{name}` is no name for a plugin"))
            .hint("use a-z, 0-9 and single -, and begin with a letter"));
    }
    if let Some(entry) =
        registry.of(kind).find(|e| e.about().name == name || e.about().aliases.contains(&name))
    {
        let about = entry.about();
        return Err(Error::new(format!(
            "the {} `{name}` exists already, in {} {}",
            kind.name(),
            about.origin,
            about.version
        ))
        .hint("choose another name"));
    }
    // Cargo's own rules: a crate's name is a word of Rust's, and no other crate here has it.
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
            "`{name}` is a word of Rust's own, and no name for a crate"
        ))
        .hint(format!("`my-{name}` would do")));
    }
    if LOCK.lines().any(|line| {
        line.strip_prefix("name = ").is_some_and(|other| other.trim_matches('"') == name)
    }) {
        return Err(Error::new(format!(
            "`{name}` is the name of a crate that a plugin depends on"
        ))
        .hint(format!("`my-{name}` would do")));
    }
    Ok(())
}

/// A command that uses the method once it is built.
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

/// The crate's files: path and text.
fn files(kind: Kind, name: &str, place: &Place) -> Vec<(&'static str, String)> {
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
        text.replace("{{dependency}}", &place.sdk)
            .replace("{{kind}}", kind.name())
            .replace("{{run}}", &run)
    };
    vec![
        ("Cargo.toml", fill(template!("Cargo.toml"))),
        ("Cargo.lock", LOCK.to_owned()),
        ("README.md", fill(template!("README.md"))),
        ("build.rs", fill(template!("build.rs"))),
        (".gitignore", fill(template!("gitignore"))),
        (".cargo/config.toml", place.cargo_config()),
        ("src/lib.rs", fill(code)),
    ]
}

/// Writes the crate into a new folder; nothing of it stays where that fails.
fn write(folder: &Path, files: &[(&str, String)]) -> Result<()> {
    let within = |path: &Path| format!("cannot make `{}`", path.display());
    if folder.exists() {
        return Err(Error::new(format!("`{}` exists already", folder.display()))
            .hint("choose another name, or another place with `--path DIR`"));
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
        // The error that is on its way says more.
        let _ = std::fs::remove_dir_all(folder);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_cargo_and_the_registry_take() {
        let registry = Registry::builtin().expect("plugins");
        let check = |name: &str| check_name(name, Kind::Adapter, &registry);
        assert!(check("twist").is_ok() && check("my-twist-2").is_ok());
        for bad in ["", "Twist", "2twist", "my_twist", "twist-", "a--b", "über", "../x", "type x"]
        {
            assert!(check(bad).unwrap_err().message().contains("is no name for a plugin"), "{bad}");
        }
        assert!(check("test").unwrap_err().message().contains("word of Rust's own"));
        assert!(check("serde").unwrap_err().message().contains("that a plugin depends on"));
    }

    #[test]
    fn every_word_of_a_template_is_filled_in() {
        let place = Place {
            sdk: "{ path = \"/sdk\" }".to_owned(),
            libtorch: "/libtorch".into(),
            built: None,
        };
        for kind in Kind::ALL {
            for (file, text) in files(kind, "two-words", &place) {
                for left in ["{{", "my-method", "my_method", "MyMethod", "MY_METHOD"] {
                    assert!(!text.contains(left), "{} {file}: {left}", kind.name());
                }
            }
        }
        let lib = &files(Kind::Tap, "two-words", &place)[6].1;
        assert!(lib.contains("\"two-words\"") && lib.contains("TwoWords"), "{lib}");
    }

    #[test]
    fn a_crate_without_a_checkout_does_not_speak_of_one() {
        let mut place = Place { sdk: String::new(), libtorch: "/libtorch".into(), built: None };
        assert!(
            place.cargo_config().contains("LIBTORCH = \"/libtorch\"")
                && !place.cargo_config().contains("build-dir")
        );
        place.built = Some("/checkout/target".into());
        assert!(place.cargo_config().contains("build-dir = \"/checkout/target\""));
    }
}
