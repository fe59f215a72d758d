//! Studies that are killed and continued.

use std::process::{Child, Stdio};
use std::time::Duration;

use super::*;

fn start(place: &Place, args: &[&str]) -> Child {
    std::process::Command::new(assert_cmd::cargo::cargo_bin!("reprpo"))
        .args(args)
        .env("OMP_NUM_THREADS", "1")
        .env("REPRPO_CACHE", place.path("cache"))
        .env("HF_HOME", place.path("hub"))
        .current_dir(place.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command runs")
}

/// Number of runs of the study that are finished.
fn finished(place: &Place, out: &str) -> usize {
    let Ok(runs) = std::fs::read_dir(place.path(out).join("runs")) else { return 0 };
    runs.filter(|run| run.as_ref().expect("an entry").path().join("eval/summary.json").is_file())
        .count()
}

/// Six methods with four seeds: 24 runs.
fn study() -> String {
    let methods: String = [
        ("a", "dpo", "lora"),
        ("b", "dpo", "hra"),
        ("c", "sft", "lora"),
        ("d", "prefvec", "lora"),
        ("e", "prefvec", "hra"),
        ("f", "mse", "lora"),
    ]
    .iter()
    .map(|(name, intervention, adapter)| {
        format!(
            "[methods.{name}]\nintervention = \"{intervention}\"\nadapter = \"{adapter}\"\n\
                \"tap.layers\" = \"1\"\n"
        )
    })
    .collect();
    format!(
        "seeds = [1, 2, 3, 4]\n{BASE}\"train.checkpoint_every\" = 2\n\"train.validate_every\" = \
            3\n{methods}"
    )
}

#[test]
fn a_study_that_is_killed_three_times_ends_like_an_undisturbed_one() {
    let place = Place::new();
    place.write("k.toml", &study());
    place.succeeds(&["sweep", "k.toml", "--out", "whole"]);
    let args = ["sweep", "k.toml", "--out", "killed"];
    let jobs = ["--jobs", "2", "--threads", "1"];
    // The number of finished runs after which the study is killed, and whether it has workers.
    for (count, flags) in [(3, &[][..]), (9, &jobs[..]), (15, &[][..])] {
        let mut child = start(&place, &[&args[..], flags].concat());
        while finished(&place, "killed") < count {
            let state = child.try_wait().expect("a state");
            assert!(state.is_none(), "the study ended before it was killed: {state:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        // `kill` sends SIGKILL. The workers notice that the study has ended.
        child.kill().expect("killed");
        child.wait().expect("the command ends");
        assert!(finished(&place, "killed") < 24);
    }
    let last = place.succeeds(&[&args[..], &jobs].concat());
    let text = stderr(&last);
    assert!(text.contains("of 24 runs were already finished"), "{text}");
    assert_eq!(place.runs("whole").len(), 24);
    assert_same_results(&place, "whole", "killed");
    let whole = place.study("whole");
    let killed = place.study("killed");
    let without = |study: &Value| -> Vec<Value> {
        let mut trials = study["trials"].as_array().expect("trials").clone();
        trials.iter_mut().for_each(|trial| trial["threads"] = Value::Null);
        trials
    };
    assert_eq!(without(&whole), without(&killed));
    let again = place.succeeds(&args);
    assert!(stderr(&again).contains("nothing to do: 24 of 24 runs are finished"));
}

#[test]
fn workers_write_a_checkpoint_when_the_study_is_interrupted() {
    let place = Place::new();
    let long = "\"train.epochs\" = 400\n";
    place.write("i.toml", &format!("seeds = [1, 2]\n{BASE}{long}"));
    let args = ["sweep", "i.toml", "--out", "out", "--jobs", "2", "--threads", "1"];
    let mut child = start(&place, &args);
    let begun = |seed: &str| {
        let file = place.path(&format!("out/runs/i-seed={seed}/metrics.jsonl"));
        std::fs::read_to_string(file).is_ok_and(|text| text.lines().count() > 2)
    };
    while !(begun("1") && begun("2")) {
        assert!(child.try_wait().expect("a state").is_none(), "the study ended too early");
        std::thread::sleep(Duration::from_millis(5));
    }
    let second = place.reprpo(&args);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        stderr(&second).contains("another process is running the study in `out`"),
        "{}",
        stderr(&second)
    );
    let kill = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(kill.expect("kill").success());
    let output = child.wait_with_output().expect("the command ends");
    assert_eq!(output.status.code(), Some(130));
    for seed in ["1", "2"] {
        let run = place.path(&format!("out/runs/i-seed={seed}"));
        assert!(run.join("checkpoints/latest").is_file(), "seed {seed}");
    }
    let states = place.study("out")["trials"].as_array().expect("trials").clone();
    assert!(states.iter().all(|trial| trial["state"] == "missing"), "{states:?}");
}
