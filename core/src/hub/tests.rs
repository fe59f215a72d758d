use std::fs;
use std::path::Path;

use local_hub::{Fault, LocalHub, TOKEN, Traits};

use super::*;
use crate::error::Fault as ErrorFault;

const MODEL: &str = "models/org/name";
const WEIGHTS: &str = "model.safetensors";

/// Returns `n` bytes with a non-repeating pattern, so that the tests detect swapped byte ranges.
fn weights(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 + i / 251) as u8).collect()
}

struct Fixture {
    dir: tempfile::TempDir,
    hub: LocalHub,
    commit: String,
    weights: Vec<u8>,
}

impl Fixture {
    /// Starts a local hub that contains one model.
    fn new() -> Self {
        Self::of(LocalHub::start())
    }

    fn of(hub: LocalHub) -> Self {
        let weights = weights(300_000);
        let commit = hub.push(
            MODEL,
            "main",
            &[("config.json", b"{}"), (WEIGHTS, &weights), ("sub/deep/x.txt", b"deep")],
        );
        Self { dir: tempfile::tempdir().unwrap(), hub, commit, weights }
    }

    fn settings(&self) -> Settings {
        let (cache, listings) = (self.dir.path().join("cache"), self.dir.path().join("listings"));
        Settings {
            endpoint: self.hub.endpoint(),
            cache,
            listings,
            offline: false,
            token: None,
            authorities: None,
        }
    }

    fn client(&self) -> Hub {
        Hub::new(self.settings()).unwrap()
    }

    fn client_with(&self, token: &str) -> Hub {
        Hub::new(Settings {
            token: Some(Token { secret: token.into(), source: "`HF_TOKEN`".into() }),
            ..self.settings()
        })
        .unwrap()
    }

    fn offline(&self) -> Hub {
        Hub::new(Settings { offline: true, ..self.settings() }).unwrap()
    }

    fn cache(&self) -> std::path::PathBuf {
        self.dir.path().join("cache/models--org--name")
    }
}

fn id(text: &str) -> RepoId {
    RepoId::read(RepoKind::Model, text).unwrap()
}

fn message_of(e: &Error) -> String {
    format!("{e:?}")
}

fn transfers(hub: &LocalHub) -> Vec<local_hub::Request> {
    hub.requests().into_iter().filter(|r| !r.head && !r.path.contains("/revision/")).collect()
}

#[test]
fn downloaded_files_have_the_cache_layout_of_the_python_client() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let snapshot = client.open(&id("org/name")).unwrap();
    assert_eq!(snapshot.files(), ["config.json", WEIGHTS, "sub/deep/x.txt"]);
    assert_eq!(
        (snapshot.commit(), snapshot.pinned().to_string()),
        (fixture.commit.as_str(), format!("org/name@{}", fixture.commit))
    );
    let path = snapshot.get(WEIGHTS).unwrap();
    assert_eq!(path, fixture.cache().join("snapshots").join(&fixture.commit).join(WEIGHTS));
    assert_eq!(fs::read(&path).unwrap(), fixture.weights);
    assert_eq!(fs::read_to_string(snapshot.get("sub/deep/x.txt").unwrap()).unwrap(), "deep");
    assert!(
        fs::symlink_metadata(&path).unwrap().is_symlink()
            && path
                .canonicalize()
                .unwrap()
                .starts_with(fixture.cache().canonicalize().unwrap().join("blobs"))
    );
    let refs: Vec<_> = fs::read_dir(fixture.cache().join("refs"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(refs, ["main"]);
    assert_eq!(fs::read_to_string(fixture.cache().join("refs/main")).unwrap(), fixture.commit);

    fixture.hub.requests();
    assert_eq!(snapshot.get(WEIGHTS).unwrap(), path);
    assert!(fixture.hub.requests().is_empty(), "a cached file must not cause a request");
}

#[test]
fn cached_files_are_found_without_a_network() {
    let fixture = Fixture::new();
    let client = fixture.client();
    client.open(&id("org/name")).unwrap().get("config.json").unwrap();
    fixture.hub.requests();

    let offline = fixture.offline();
    let snapshot = offline.open(&id("org/name")).unwrap();
    assert!(snapshot.get("config.json").unwrap().is_file());
    let e = snapshot.get(WEIGHTS).unwrap_err();
    assert!(
        message_of(&e).contains("`model.safetensors` of `org/name` is not in the cache")
            && message_of(&e).contains("hf download org/name"),
        "{e:?}"
    );
    let e = offline.open(&id("org/other")).unwrap_err();
    assert!(
        message_of(&e).contains("`org/other` is not in the cache")
            && message_of(&e).contains("--offline"),
        "{e:?}"
    );
    assert!(
        offline.open(&id("org/name@v2")).is_err()
            && offline.open(&id(&format!("org/name@{}", fixture.commit))).is_ok()
    );
    assert!(fixture.hub.requests().is_empty(), "an offline client must not send requests");

    // The cache is used if the hub cannot be reached.
    let nowhere =
        Hub::new(Settings { endpoint: "http://127.0.0.1:9".into(), ..fixture.settings() }).unwrap();
    assert_eq!(nowhere.open(&id("org/name")).unwrap().commit(), fixture.commit);
    let e = nowhere.open(&id("org/other")).unwrap_err();
    assert!(
        message_of(&e).contains("http://127.0.0.1:9")
            && message_of(&e).contains("--offline")
            && e.fault() == ErrorFault::Input,
        "{e:?}"
    );
}

#[test]
fn a_known_commit_is_not_looked_up_again() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let pinned = client.open(&id("org/name")).unwrap().pinned();
    client.open(&pinned).unwrap().get("config.json").unwrap();
    fixture.hub.requests();
    client.open(&pinned).unwrap().get("config.json").unwrap();
    assert!(fixture.hub.requests().is_empty());
}

#[test]
fn files_that_other_programs_stored_in_the_cache_are_found() {
    let fixture = Fixture::new();
    let write = |path: &str, text: &str| {
        let path = fixture.cache().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("snapshots/aaa/config.json", "{}");
    write("snapshots/aaa/sub/x", "");
    let offline = fixture.offline();
    assert_eq!(
        offline.open(&id("org/name")).unwrap().files(),
        ["config.json", "sub/x"],
        "the only snapshot is used"
    );
    write("snapshots/bbb/config.json", "{}");
    assert!(
        offline.open(&id("org/name")).is_err(),
        "with two snapshots and no refs, `main` is unknown"
    );
    write("refs/main", "bbb\n");
    assert_eq!(offline.open(&id("org/name")).unwrap().commit(), "bbb");
    write("refs/main", "../../../secret");
    assert!(offline.open(&id("org/name")).is_err());
}

#[test]
fn only_changed_files_are_downloaded_when_a_branch_moves() {
    let fixture = Fixture::new();
    let client = fixture.client();
    client.open(&id("org/name")).unwrap().get_all(["config.json", WEIGHTS]).unwrap();
    let second = fixture.hub.push(
        MODEL,
        "main",
        &[("config.json", b"{\"new\": 1}"), (WEIGHTS, &fixture.weights)],
    );
    fixture.hub.requests();
    let folder = client.open(&id("org/name")).unwrap().get_all(["config.json", WEIGHTS]).unwrap();
    assert!(folder.ends_with(&second));
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), fixture.weights);
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"{\"new\": 1}");
    let downloads = transfers(&fixture.hub);
    assert!(
        downloads.len() == 1 && downloads[0].path.contains("resolve-cache"),
        "the unchanged weights must not be downloaded, but the downloads are {downloads:?}"
    );
    assert_eq!(fs::read_to_string(fixture.cache().join("refs/main")).unwrap(), second);
}

#[test]
fn a_download_resumes_after_the_connection_is_cut() {
    for fault in [Fault::Cut(100_000), Fault::CutUnannounced(100_000)] {
        let fixture = Fixture::new();
        let client = fixture.client();
        let snapshot = client.open(&id("org/name")).unwrap();
        fixture.hub.requests();
        fixture.hub.fail(&[fault.clone(), Fault::Cut(50_000)]);
        let path = snapshot.get(WEIGHTS).unwrap();
        assert_eq!(fs::read(path).unwrap(), fixture.weights, "{fault:?}");
        let ranges: Vec<_> =
            transfers(&fixture.hub).into_iter().map(|r| r.range.unwrap_or_default()).collect();
        assert_eq!(ranges, ["", "bytes=100000-", "bytes=150000-"], "{fault:?}");
    }
}

#[test]
fn the_next_process_resumes_a_failed_download() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let snapshot = client.open(&id("org/name")).unwrap();
    // The first attempt receives some bytes, and all later attempts receive none.
    fixture.hub.fail(&[vec![Fault::Cut(1000)], vec![Fault::Cut(0); 20]].concat());
    let e = snapshot.get(WEIGHTS).unwrap_err();
    assert!(
        message_of(&e).contains("cannot fetch `model.safetensors` of `org/name`")
            && message_of(&e).contains("resume the download"),
        "{e:?}"
    );
    assert!(
        !snapshot.folder().join(WEIGHTS).exists(),
        "a partial file must not appear in the snapshot"
    );
    fixture.hub.fail(&[]);
    fixture.hub.requests();
    let client = fixture.client();
    assert_eq!(
        fs::read(client.open(&id("org/name")).unwrap().get(WEIGHTS).unwrap()).unwrap(),
        fixture.weights
    );
    assert!(transfers(&fixture.hub).iter().any(|r| r.range.as_deref() == Some("bytes=1000-")));
}

#[test]
fn a_corrupt_partial_file_is_downloaded_again() {
    for length in [300_000, 300_001] {
        let fixture = Fixture::new();
        let client = fixture.client();
        let snapshot = client.open(&id("org/name")).unwrap();
        snapshot.get(WEIGHTS).unwrap();
        let blob = snapshot.folder().join(WEIGHTS).canonicalize().unwrap();
        fs::remove_file(&blob).unwrap();
        // A process that is killed during a download can leave a corrupted partial file.
        fs::write(blob.with_extension("incomplete"), vec![7; length]).unwrap();
        assert_eq!(fs::read(snapshot.get(WEIGHTS).unwrap()).unwrap(), fixture.weights, "{length}");
    }
}

#[test]
fn damaged_downloads_are_discarded() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let snapshot = client.open(&id("org/name")).unwrap();
    fixture.hub.fail(&[Fault::Garbled]);
    assert_eq!(
        fs::read(snapshot.get(WEIGHTS).unwrap()).unwrap(),
        fixture.weights,
        "a damaged download must be retried once"
    );

    let fixture = Fixture::new();
    let client = fixture.client();
    let snapshot = client.open(&id("org/name")).unwrap();
    fixture.hub.fail(&[Fault::Garbled, Fault::Garbled]);
    let e = snapshot.get(WEIGHTS).unwrap_err();
    assert!(message_of(&e).contains("does not match the length or hash"), "{e:?}");
    assert!(!snapshot.folder().join(WEIGHTS).exists());

    // If the server rejects a partial download, the download starts again.
    let fixture = Fixture::new();
    let client = fixture.client();
    fixture.hub.fail(&[Fault::Cut(1000), Fault::OutOfRange]);
    assert_eq!(
        fs::read(client.open(&id("org/name")).unwrap().get(WEIGHTS).unwrap()).unwrap(),
        fixture.weights
    );
    assert_eq!(transfers(&fixture.hub).last().unwrap().range, None);

    // A server that does not support ranges sends the whole file when the download resumes.
    let fixture = Fixture::new();
    let client = fixture.client();
    fixture.hub.fail(&[Fault::Cut(1000), Fault::Whole]);
    assert_eq!(
        fs::read(client.open(&id("org/name")).unwrap().get(WEIGHTS).unwrap()).unwrap(),
        fixture.weights
    );
}

#[test]
fn private_and_gated_repositories_need_a_token_with_access() {
    let fixture = Fixture::new();
    fixture.hub.describe(MODEL, Traits { gated: true, ..Traits::default() });
    for (client, who) in [
        (fixture.client(), "without a token"),
        (fixture.client_with("hf_another"), "token from `HF_TOKEN`"),
    ] {
        let e = client.open(&id("org/name")).unwrap().get(WEIGHTS).unwrap_err();
        let text = message_of(&e);
        assert!(
            text.contains("gated")
                && text.contains(&format!("{}/org/name", fixture.hub.endpoint()))
                && text.contains(who),
            "{text}"
        );
        assert!(!text.contains("hf_another") && e.fault() == ErrorFault::Input, "{text}");
    }
    assert!(fixture.client_with(TOKEN).open(&id("org/name")).unwrap().get(WEIGHTS).is_ok());

    fixture.hub.describe(MODEL, Traits { private: true, ..Traits::default() });
    for (client, who) in [
        (fixture.client(), "without a token"),
        (fixture.client_with("hf_another"), "token from `HF_TOKEN`"),
    ] {
        let text = message_of(&client.open(&id("org/name")).unwrap_err());
        assert!(
            text.contains("the model `org/name` was not found")
                && text.contains(who)
                && !text.contains("hf_another"),
            "{text}"
        );
    }
    assert!(fixture.client_with(TOKEN).open(&id("org/name")).is_ok());
}

#[test]
fn an_invalid_token_and_a_missing_repository_have_different_errors() {
    let fixture = Fixture::new();
    fixture.hub.fail(&[Fault::Credentials]);
    let text = message_of(&fixture.client_with("hf_old").open(&id("org/name")).unwrap_err());
    assert!(
        text.contains("rejected the token")
            && text.contains("`HF_TOKEN`")
            && !text.contains("hf_old"),
        "{text}"
    );
}

#[test]
fn the_token_is_only_sent_to_the_hub() {
    let fixture = Fixture::new();
    let client = fixture.client_with(TOKEN);
    let snapshot = client.open(&id("org/name")).unwrap();
    snapshot.get(WEIGHTS).unwrap();
    assert!(!format!("{client:?} {snapshot:?}").contains(TOKEN), "the token must not be printed");
    let requests = fixture.hub.requests();
    let (cdn, hub): (Vec<_>, Vec<_>) =
        requests.iter().partition(|r| r.host.starts_with("localhost"));
    assert!(!cdn.is_empty() && cdn.iter().all(|r| r.authorization.is_none()), "{cdn:?}");
    assert!(
        !hub.is_empty()
            && hub.iter().all(|r| r.authorization.as_deref() == Some(&format!("Bearer {TOKEN}"))),
        "{hub:?}"
    );
}

#[test]
fn a_tls_connection_requires_a_trusted_certificate() {
    let fixture = Fixture::of(LocalHub::start_secure());
    let e = fixture.client().open(&id("org/name")).unwrap_err();
    assert!(
        message_of(&e).contains("cannot be reached")
            && message_of(&e).contains("set `SSL_CERT_FILE` to"),
        "{e:?}"
    );
    assert!(fixture.hub.requests().is_empty());

    let folder = fixture.dir.path().join("certificates");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("own.pem");
    fs::write(&file, format!("Test authority.\n{}", fixture.hub.certificate())).unwrap();
    let trusting = |path: &Path| {
        Hub::new(Settings {
            authorities: Some(Authorities { path: path.into(), source: "`SSL_CERT_FILE`".into() }),
            ..fixture.settings()
        })
    };
    let client = trusting(&file).unwrap();
    // Large files are served by another host, which also uses TLS.
    let path = client.open(&id("org/name")).unwrap().get(WEIGHTS).unwrap();
    assert!(
        fs::read(path).unwrap() == fixture.weights
            && fixture.hub.requests().iter().any(|r| r.host.starts_with("localhost"))
    );
    assert!(
        trusting(&folder).unwrap().open(&id("org/name@main")).unwrap().get("config.json").is_ok()
            && !fixture.hub.requests().is_empty()
    );

    // The certificate of another hub must not be accepted.
    fs::write(&file, LocalHub::start_secure().certificate()).unwrap();
    let other = trusting(&file).unwrap();
    let e = other.open(&id("org/other")).unwrap_err();
    assert!(message_of(&e).contains("own.pem`, which replace the default"), "{e:?}");
    for (text, expected) in [
        ("no certificate here", "does not contain a certificate"),
        ("-----BEGIN CERTIFICATE-----\n!\n", "not a valid PEM file"),
    ] {
        fs::write(&file, text).unwrap();
        let e = trusting(&file).unwrap_err();
        assert!(
            message_of(&e).contains("`SSL_CERT_FILE`") && message_of(&e).contains(expected),
            "{e:?}"
        );
    }
    assert!(message_of(&trusting(Path::new("/nowhere")).unwrap_err()).contains("`/nowhere`"));
}

#[test]
fn errors_name_the_missing_repository_revision_or_file() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let of = |text: &str| message_of(&client.open(&id(text)).unwrap_err());
    assert!(
        of("org/nothing").contains("the model `org/nothing` was not found")
            && of("org/nothing").contains(&fixture.hub.endpoint())
    );
    assert!(of("org/name@v9").contains("revision `v9` of the model `org/name` was not found"));
    assert!(
        message_of(&client.open(&id("org/name")).unwrap().get("x.json").unwrap_err())
            .contains("has no file `x.json`")
    );
    assert!(
        message_of(&client.open(&id("org/name")).unwrap().get("../../x").unwrap_err())
            .contains("has no file")
    );
}

#[test]
fn renamed_repositories_are_followed_and_requests_to_a_busy_hub_are_retried() {
    let fixture = Fixture::new();
    fixture.hub.rename("models/org/old", MODEL);
    let client = fixture.client();
    fixture.hub.fail(&[Fault::Busy, Fault::Busy]);
    let snapshot = client.open(&id("org/old")).unwrap();
    assert_eq!(snapshot.commit(), fixture.commit);
    fixture.hub.fail(&[Fault::Busy]);
    assert_eq!(fs::read(snapshot.get(WEIGHTS).unwrap()).unwrap(), fixture.weights);
    assert_eq!(fixture.hub.faults_left(), 0);
}

#[test]
fn a_mirrors_token_is_not_sent_to_the_hub_it_redirects_to() {
    let (fixture, mirror) = (Fixture::new(), LocalHub::start());
    // The mirror is at `127.0.0.1` and redirects to `localhost`, which counts as a different host.
    mirror.mirror(&fixture.hub.endpoint().replace("127.0.0.1", "localhost"));
    let token = Some(Token { secret: TOKEN.into(), source: "`HF_TOKEN`".into() });
    let client =
        Hub::new(Settings { endpoint: mirror.endpoint(), token, ..fixture.settings() }).unwrap();
    let snapshot = client.open(&id("org/name")).unwrap();
    assert_eq!(fs::read(snapshot.get(WEIGHTS).unwrap()).unwrap(), fixture.weights);
    assert_eq!(fs::read(snapshot.get("config.json").unwrap()).unwrap(), b"{}");
    let redirected = fixture.hub.requests();
    assert!(
        !redirected.is_empty() && redirected.iter().all(|r| r.authorization.is_none()),
        "{redirected:?}"
    );
    assert!(mirror.requests().iter().all(|r| r.authorization.is_some()));
}

#[test]
fn invalid_responses_are_errors() {
    let outside = |fixture: &Fixture| {
        Path::new(fixture.dir.path()).join("outside").exists()
            || fixture.cache().join("outside").exists()
    };
    for (fault, expected) in [(Fault::Tag, "ETag"), (Fault::Astray, "an invalid URL")] {
        let fixture = Fixture::new();
        let client = fixture.client();
        let snapshot = client.open(&id("org/name")).unwrap();
        fixture.hub.fail(std::slice::from_ref(&fault));
        let e = snapshot.get("config.json").unwrap_err();
        assert!(message_of(&e).contains(expected) && !outside(&fixture), "{fault:?}: {e:?}");
    }
    let fixture = Fixture::new();
    let client = fixture.client();
    for json in ["no JSON", "{}", r#"{"sha": "../x", "siblings": []}"#, r#"{"sha": "main"}"#] {
        assert!(Listing::read(&client, &id("org/name"), json).is_err(), "{json}");
    }
    let json = format!(
        r#"{{"sha": "{}", "siblings": [{{"rfilename": "../x"}}, {{"rfilename": "/etc/x"}},
            {{"rfilename": "a//b"}}, {{"rfilename": "ok"}}, 3]}}"#,
        fixture.commit
    );
    assert_eq!(Listing::read(&client, &id("org/name"), &json).unwrap().files, ["ok"]);
}

#[test]
fn a_cache_that_cannot_be_written_to_is_named() {
    let fixture = Fixture::new();
    fs::write(fixture.dir.path().join("cache"), "a file").unwrap();
    let e = fixture.client().open(&id("org/name")).unwrap().get("config.json").unwrap_err();
    assert!(
        message_of(&e).contains("cannot be written to") && message_of(&e).contains("HF_HOME"),
        "{e:?}"
    );
}

/// Some tools fill the cache without a list of the repository's files. The client then cannot know
/// which files are missing.
#[test]
fn an_offline_client_names_the_command_to_fetch_a_missing_file() {
    let fixture = Fixture::new();
    let snapshot = fixture.cache().join("snapshots").join(&fixture.commit);
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    let offline = fixture.offline();
    let found = offline.open(&id("org/name")).unwrap();
    assert!(found.get("config.json").is_ok() && !found.has("model-00002-of-00002.safetensors"));
    let e = message_of(&found.get("model-00002-of-00002.safetensors").unwrap_err());
    assert!(
        e.starts_with("`model-00002-of-00002.safetensors` of `org/name` is not in the cache at `"),
        "{e}"
    );
    assert!(
        e.contains("run `hf download org/name model-00002-of-00002.safetensors` on a machine"),
        "{e}"
    );
}
