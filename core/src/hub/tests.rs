use std::fs;
use std::path::Path;

use local_hub::{Fault, LocalHub, TOKEN, Traits};

use super::*;
use crate::error::Fault as Whose;

const MODEL: &str = "models/org/name";
const WEIGHTS: &str = "model.safetensors";

/// Bytes that no two places share.
fn weights(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 + i / 251) as u8).collect()
}

struct There {
    dir: tempfile::TempDir,
    hub: LocalHub,
    commit: String,
    weights: Vec<u8>,
}

impl There {
    /// A hub with one model.
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

fn told(e: &Error) -> String {
    format!("{e:?}")
}

fn transfers(hub: &LocalHub) -> Vec<local_hub::Request> {
    hub.requests().into_iter().filter(|r| !r.head && !r.path.contains("/revision/")).collect()
}

#[test]
fn files_come_into_the_cache_as_the_python_client_lays_it_out() {
    let there = There::new();
    let client = there.client();
    let snapshot = client.open(&id("org/name")).unwrap();
    assert_eq!(snapshot.files(), ["config.json", WEIGHTS, "sub/deep/x.txt"]);
    assert_eq!(
        (snapshot.commit(), snapshot.pinned().to_string()),
        (there.commit.as_str(), format!("org/name@{}", there.commit))
    );
    let path = snapshot.get(WEIGHTS).unwrap();
    assert_eq!(path, there.cache().join("snapshots").join(&there.commit).join(WEIGHTS));
    assert_eq!(fs::read(&path).unwrap(), there.weights);
    assert_eq!(fs::read_to_string(snapshot.get("sub/deep/x.txt").unwrap()).unwrap(), "deep");
    assert!(
        fs::symlink_metadata(&path).unwrap().is_symlink()
            && path
                .canonicalize()
                .unwrap()
                .starts_with(there.cache().canonicalize().unwrap().join("blobs"))
    );
    let refs: Vec<_> =
        fs::read_dir(there.cache().join("refs")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(refs, ["main"]);
    assert_eq!(fs::read_to_string(there.cache().join("refs/main")).unwrap(), there.commit);

    there.hub.requests();
    assert_eq!(snapshot.get(WEIGHTS).unwrap(), path);
    assert!(there.hub.requests().is_empty(), "what is there is not asked for");
}

#[test]
fn what_was_fetched_is_found_without_a_network() {
    let there = There::new();
    let client = there.client();
    client.open(&id("org/name")).unwrap().get("config.json").unwrap();
    there.hub.requests();

    let offline = there.offline();
    let snapshot = offline.open(&id("org/name")).unwrap();
    assert!(snapshot.get("config.json").unwrap().is_file());
    let e = snapshot.get(WEIGHTS).unwrap_err();
    assert!(
        told(&e).contains("`model.safetensors` of `org/name` is not in the cache")
            && told(&e).contains("hf download org/name"),
        "{e:?}"
    );
    let e = offline.open(&id("org/other")).unwrap_err();
    assert!(
        told(&e).contains("`org/other` is not in the cache") && told(&e).contains("--offline"),
        "{e:?}"
    );
    assert!(
        offline.open(&id("org/name@v2")).is_err()
            && offline.open(&id(&format!("org/name@{}", there.commit))).is_ok()
    );
    assert!(there.hub.requests().is_empty(), "offline nothing is asked");

    // A hub that cannot be reached is as good as none.
    let nowhere =
        Hub::new(Settings { endpoint: "http://127.0.0.1:9".into(), ..there.settings() }).unwrap();
    assert_eq!(nowhere.open(&id("org/name")).unwrap().commit(), there.commit);
    let e = nowhere.open(&id("org/other")).unwrap_err();
    assert!(
        told(&e).contains("http://127.0.0.1:9")
            && told(&e).contains("--offline")
            && e.fault() == Whose::Input,
        "{e:?}"
    );
}

#[test]
fn a_commit_that_is_known_is_not_asked_for_again() {
    let there = There::new();
    let client = there.client();
    let pinned = client.open(&id("org/name")).unwrap().pinned();
    client.open(&pinned).unwrap().get("config.json").unwrap();
    there.hub.requests();
    client.open(&pinned).unwrap().get("config.json").unwrap();
    assert!(there.hub.requests().is_empty());
}

#[test]
fn files_that_other_programs_put_into_the_cache_are_found() {
    let there = There::new();
    let put = |path: &str, text: &str| {
        let path = there.cache().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("snapshots/aaa/config.json", "{}");
    put("snapshots/aaa/sub/x", "");
    let offline = there.offline();
    assert_eq!(
        offline.open(&id("org/name")).unwrap().files(),
        ["config.json", "sub/x"],
        "the only revision"
    );
    put("snapshots/bbb/config.json", "{}");
    assert!(offline.open(&id("org/name")).is_err(), "two revisions, and none of them is main");
    put("refs/main", "bbb\n");
    assert_eq!(offline.open(&id("org/name")).unwrap().commit(), "bbb");
    put("refs/main", "../../../secret");
    assert!(offline.open(&id("org/name")).is_err());
}

#[test]
fn a_branch_that_moved_brings_only_what_changed() {
    let there = There::new();
    let client = there.client();
    client.open(&id("org/name")).unwrap().get_all(["config.json", WEIGHTS]).unwrap();
    let second = there.hub.push(
        MODEL,
        "main",
        &[("config.json", b"{\"new\": 1}"), (WEIGHTS, &there.weights)],
    );
    there.hub.requests();
    let folder = client.open(&id("org/name")).unwrap().get_all(["config.json", WEIGHTS]).unwrap();
    assert!(folder.ends_with(&second));
    assert_eq!(fs::read(folder.join(WEIGHTS)).unwrap(), there.weights);
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"{\"new\": 1}");
    let moved = transfers(&there.hub);
    assert!(
        moved.len() == 1 && moved[0].path.contains("resolve-cache"),
        "the weights are linked: {moved:?}"
    );
    assert_eq!(fs::read_to_string(there.cache().join("refs/main")).unwrap(), second);
}

#[test]
fn a_cut_connection_goes_on_where_it_was() {
    for fault in [Fault::Cut(100_000), Fault::CutUnannounced(100_000)] {
        let there = There::new();
        let client = there.client();
        let snapshot = client.open(&id("org/name")).unwrap();
        there.hub.requests();
        there.hub.fail(&[fault.clone(), Fault::Cut(50_000)]);
        let path = snapshot.get(WEIGHTS).unwrap();
        assert_eq!(fs::read(path).unwrap(), there.weights, "{fault:?}");
        let ranges: Vec<_> =
            transfers(&there.hub).into_iter().map(|r| r.range.unwrap_or_default()).collect();
        assert_eq!(ranges, ["", "bytes=100000-", "bytes=150000-"], "{fault:?}");
    }
}

#[test]
fn a_transfer_that_was_given_up_is_gone_on_with_by_the_next_process() {
    let there = There::new();
    let client = there.client();
    let snapshot = client.open(&id("org/name")).unwrap();
    // One that brings something, and then none.
    there.hub.fail(&[vec![Fault::Cut(1000)], vec![Fault::Cut(0); 20]].concat());
    let e = snapshot.get(WEIGHTS).unwrap_err();
    assert!(
        told(&e).contains("cannot fetch `model.safetensors` of `org/name`")
            && told(&e).contains("goes on from there"),
        "{e:?}"
    );
    assert!(!snapshot.folder().join(WEIGHTS).exists(), "half a file is none");
    there.hub.fail(&[]);
    there.hub.requests();
    let client = there.client();
    assert_eq!(
        fs::read(client.open(&id("org/name")).unwrap().get(WEIGHTS).unwrap()).unwrap(),
        there.weights
    );
    assert!(transfers(&there.hub).iter().any(|r| r.range.as_deref() == Some("bytes=1000-")));
}

#[test]
fn a_part_that_is_whole_or_too_long_is_fetched_anew() {
    for length in [300_000, 300_001] {
        let there = There::new();
        let client = there.client();
        let snapshot = client.open(&id("org/name")).unwrap();
        snapshot.get(WEIGHTS).unwrap();
        let blob = snapshot.folder().join(WEIGHTS).canonicalize().unwrap();
        fs::remove_file(&blob).unwrap();
        // What a process leaves that was killed at the wrong moment.
        fs::write(blob.with_extension("incomplete"), vec![7; length]).unwrap();
        assert_eq!(fs::read(snapshot.get(WEIGHTS).unwrap()).unwrap(), there.weights, "{length}");
    }
}

#[test]
fn bytes_that_are_not_those_announced_do_not_stay() {
    let there = There::new();
    let client = there.client();
    let snapshot = client.open(&id("org/name")).unwrap();
    there.hub.fail(&[Fault::Garbled]);
    assert_eq!(
        fs::read(snapshot.get(WEIGHTS).unwrap()).unwrap(),
        there.weights,
        "once is repeated"
    );

    let there = There::new();
    let client = there.client();
    let snapshot = client.open(&id("org/name")).unwrap();
    there.hub.fail(&[Fault::Garbled, Fault::Garbled]);
    let e = snapshot.get(WEIGHTS).unwrap_err();
    assert!(told(&e).contains("not what the hub announced"), "{e:?}");
    assert!(!snapshot.folder().join(WEIGHTS).exists());

    // A server that does not know of ranges sends it all behind what was there.
    let there = There::new();
    let client = there.client();
    there.hub.fail(&[Fault::Cut(1000), Fault::Whole]);
    assert_eq!(
        fs::read(client.open(&id("org/name")).unwrap().get(WEIGHTS).unwrap()).unwrap(),
        there.weights
    );
}

#[test]
fn what_is_private_or_gated_needs_the_token() {
    let there = There::new();
    there.hub.describe(MODEL, Traits { gated: true, ..Traits::default() });
    for (client, who) in [
        (there.client(), "without a token"),
        (there.client_with("hf_another"), "token of `HF_TOKEN`"),
    ] {
        let e = client.open(&id("org/name")).unwrap().get(WEIGHTS).unwrap_err();
        let text = told(&e);
        assert!(
            text.contains("gated")
                && text.contains(&format!("{}/org/name", there.hub.endpoint()))
                && text.contains(who),
            "{text}"
        );
        assert!(!text.contains("hf_another") && e.fault() == Whose::Input, "{text}");
    }
    assert!(there.client_with(TOKEN).open(&id("org/name")).unwrap().get(WEIGHTS).is_ok());

    there.hub.describe(MODEL, Traits { private: true, ..Traits::default() });
    for (client, who) in [
        (there.client(), "without a token"),
        (there.client_with("hf_another"), "token of `HF_TOKEN`"),
    ] {
        let text = told(&client.open(&id("org/name")).unwrap_err());
        assert!(
            text.contains("no model `org/name`")
                && text.contains(who)
                && !text.contains("hf_another"),
            "{text}"
        );
    }
    assert!(there.client_with(TOKEN).open(&id("org/name")).is_ok());
}

#[test]
fn a_token_that_the_hub_does_not_know_is_told_apart_from_a_missing_repository() {
    let there = There::new();
    there.hub.fail(&[Fault::Credentials]);
    let text = told(&there.client_with("hf_old").open(&id("org/name")).unwrap_err());
    assert!(
        text.contains("does not know the token")
            && text.contains("`HF_TOKEN`")
            && !text.contains("hf_old"),
        "{text}"
    );
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let there = There::new();
    let client = there.client_with(TOKEN);
    let snapshot = client.open(&id("org/name")).unwrap();
    snapshot.get(WEIGHTS).unwrap();
    assert!(!format!("{client:?} {snapshot:?}").contains(TOKEN), "nor is it in what is printed");
    let requests = there.hub.requests();
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
fn over_tls_it_is_asked_where_somebody_who_is_trusted_vouches_for_it() {
    let there = There::of(LocalHub::start_secure());
    let e = there.client().open(&id("org/name")).unwrap_err();
    assert!(
        told(&e).contains("cannot be reached") && told(&e).contains("`SSL_CERT_FILE` names"),
        "{e:?}"
    );
    assert!(there.hub.requests().is_empty());

    let folder = there.dir.path().join("certificates");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("own.pem");
    fs::write(&file, format!("An authority of the tests.\n{}", there.hub.certificate())).unwrap();
    let trusting = |path: &Path| {
        Hub::new(Settings {
            authorities: Some(Authorities { path: path.into(), source: "`SSL_CERT_FILE`".into() }),
            ..there.settings()
        })
    };
    let client = trusting(&file).unwrap();
    // What a large file is fetched from is another host, which is asked over TLS as well.
    let path = client.open(&id("org/name")).unwrap().get(WEIGHTS).unwrap();
    assert!(
        fs::read(path).unwrap() == there.weights
            && there.hub.requests().iter().any(|r| r.host.starts_with("localhost"))
    );
    assert!(
        trusting(&folder).unwrap().open(&id("org/name@main")).unwrap().get("config.json").is_ok()
            && !there.hub.requests().is_empty()
    );

    // A certificate of another hub vouches for none of this one.
    fs::write(&file, LocalHub::start_secure().certificate()).unwrap();
    let other = trusting(&file).unwrap();
    let e = other.open(&id("org/other")).unwrap_err();
    assert!(told(&e).contains("own.pem`, as `SSL_CERT_FILE` says"), "{e:?}");
    for (text, says) in [
        ("no certificate here", "holds no certificate"),
        ("-----BEGIN CERTIFICATE-----\n!\n", "no PEM"),
    ] {
        fs::write(&file, text).unwrap();
        let e = trusting(&file).unwrap_err();
        assert!(told(&e).contains("`SSL_CERT_FILE`") && told(&e).contains(says), "{e:?}");
    }
    assert!(told(&trusting(Path::new("/nowhere")).unwrap_err()).contains("`/nowhere`"));
}

#[test]
fn what_is_missing_is_named() {
    let there = There::new();
    let client = there.client();
    let of = |text: &str| told(&client.open(&id(text)).unwrap_err());
    assert!(
        of("org/nothing").contains("no model `org/nothing`")
            && of("org/nothing").contains(&there.hub.endpoint())
    );
    assert!(of("org/name@v9").contains("has no revision `v9`"));
    assert!(
        told(&client.open(&id("org/name")).unwrap().get("x.json").unwrap_err())
            .contains("has no file `x.json`")
    );
    assert!(
        told(&client.open(&id("org/name")).unwrap().get("../../x").unwrap_err())
            .contains("has no file")
    );
}

#[test]
fn a_new_name_and_a_busy_hub_are_waited_for() {
    let there = There::new();
    there.hub.rename("models/org/old", MODEL);
    let client = there.client();
    there.hub.fail(&[Fault::Busy, Fault::Busy]);
    let snapshot = client.open(&id("org/old")).unwrap();
    assert_eq!(snapshot.commit(), there.commit);
    there.hub.fail(&[Fault::Busy]);
    assert_eq!(fs::read(snapshot.get(WEIGHTS).unwrap()).unwrap(), there.weights);
    assert_eq!(there.hub.faults_left(), 0);
}

#[test]
fn a_mirror_leads_to_the_hub_and_the_token_stays_with_the_mirror() {
    let (there, mirror) = (There::new(), LocalHub::start());
    // On another host, as a mirror is.
    mirror.mirror(&there.hub.endpoint().replace("127.0.0.1", "localhost"));
    let token = Some(Token { secret: TOKEN.into(), source: "`HF_TOKEN`".into() });
    let client =
        Hub::new(Settings { endpoint: mirror.endpoint(), token, ..there.settings() }).unwrap();
    let snapshot = client.open(&id("org/name")).unwrap();
    assert_eq!(fs::read(snapshot.get(WEIGHTS).unwrap()).unwrap(), there.weights);
    assert_eq!(fs::read(snapshot.get("config.json").unwrap()).unwrap(), b"{}");
    let led = there.hub.requests();
    assert!(!led.is_empty() && led.iter().all(|r| r.authorization.is_none()), "{led:?}");
    assert!(mirror.requests().iter().all(|r| r.authorization.is_some()));
}

#[test]
fn answers_that_make_no_sense_are_errors() {
    let outside = |there: &There| {
        Path::new(there.dir.path()).join("outside").exists()
            || there.cache().join("outside").exists()
    };
    for (fault, says) in [(Fault::Tag, "tag"), (Fault::Astray, "an address that is none")] {
        let there = There::new();
        let client = there.client();
        let snapshot = client.open(&id("org/name")).unwrap();
        there.hub.fail(std::slice::from_ref(&fault));
        let e = snapshot.get("config.json").unwrap_err();
        assert!(told(&e).contains(says) && !outside(&there), "{fault:?}: {e:?}");
    }
    let there = There::new();
    let client = there.client();
    for said in ["no JSON", "{}", r#"{"sha": "../x", "siblings": []}"#, r#"{"sha": "main"}"#] {
        assert!(Listing::read(&client, &id("org/name"), said).is_err(), "{said}");
    }
    let said = format!(
        r#"{{"sha": "{}", "siblings": [{{"rfilename": "../x"}}, {{"rfilename": "/etc/x"}}, {{"rfilename": "a//b"}}, {{"rfilename": "ok"}}, 3]}}"#,
        there.commit
    );
    assert_eq!(Listing::read(&client, &id("org/name"), &said).unwrap().files, ["ok"]);
}

#[test]
fn a_cache_that_cannot_be_written_to_is_named() {
    let there = There::new();
    fs::write(there.dir.path().join("cache"), "a file").unwrap();
    let e = there.client().open(&id("org/name")).unwrap().get("config.json").unwrap_err();
    assert!(told(&e).contains("cannot be written to") && told(&e).contains("HF_HOME"), "{e:?}");
}

/// The files in such a cache do not show which other files the repository has.
#[test]
fn offline_a_file_that_another_tool_did_not_fetch_is_not_in_the_cache() {
    let there = There::new();
    let snapshot = there.cache().join("snapshots").join(&there.commit);
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    let offline = there.offline();
    let found = offline.open(&id("org/name")).unwrap();
    assert!(found.get("config.json").is_ok() && !found.has("model-00002-of-00002.safetensors"));
    let e = told(&found.get("model-00002-of-00002.safetensors").unwrap_err());
    assert!(
        e.starts_with("`model-00002-of-00002.safetensors` of `org/name` is not in the cache, `"),
        "{e}"
    );
    assert!(
        e.contains("`hf download org/name model-00002-of-00002.safetensors` fetches it"),
        "{e}"
    );
}
