//! Studies that cannot run.

use super::*;

fn refused(place: &Place, args: &[&str]) -> String {
    let output = place.reprpo(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", transcript(&output));
    stderr(&output)
}

#[test]
fn a_mistake_in_any_combination_is_reported_before_the_first_run() {
    let place = Place::new();
    let search = |fields: &str| format!("[search]\n[search.fields]\n{fields}\n");
    for (text, expected) in [
        // Fields of the experiment, with the table that contains them.
        (
            format!("{BASE}\"train.lrr\" = 1e-3\n"),
            &["unknown configuration field `train.lrr` (`[base]` in x.toml)", "`train.lr`"][..],
        ),
        (
            format!(
                "{BASE}[methods.a]\nintervention = \"dpo\"\n[methods.b]\nintervention = \
                \"prefvek\"\n"
            ),
            &[
                "the run `b` is not valid",
                "`intervention` in `[methods.b]` in x.toml cannot be used",
                "did you mean `prefvec`?",
            ],
        ),
        (
            format!("{BASE}{}", search("\"train.lr\" = [1e-3, -1]")),
            &["the run `x-lr=-1` is not valid", "`train.lr`", "must be greater than 0"],
        ),
        (
            format!("{BASE}{}", search("adapter = [\"lora\", \"lorra\"]")),
            &["`adapter` in `[search.fields]` in x.toml cannot be used", "did you mean `lora`?"],
        ),
        (
            format!("{BASE}[grid]\ndataset = [\"pairs.jsonl\"]\nintervention = [\"dop\"]\n"),
            &["`[grid]` in x.toml cannot be used", "did you mean `dpo`?"],
        ),
        // Keys of the study.
        (format!("{BASE}[methdos.a]\n"), &["unknown key `methdos`", "did you mean `methods`?"]),
        (
            format!("{BASE}[search]\nsampler = \"gird\"\n"),
            &["in the study `x.toml`", "unknown sampler `gird`", "did you mean `grid`?"],
        ),
        (
            format!("{BASE}{}", search("\"train.lr\" = { low = 1e-5, high = 1e-3 }")),
            &["the sampler `grid` needs a list of values for `train.lr`"],
        ),
        (
            format!("{BASE}\"train.validate_every\" = \"none\"\n{}", search("\"train.lr\" = [1]")),
            &["the search selects by validation, but the runs do not validate"],
        ),
        ("seeds = [1,\n".to_owned(), &["is not TOML"]),
    ] {
        place.write("x.toml", &text);
        let error = refused(&place, &["sweep", "x.toml", "--out", "out"]);
        for part in expected {
            assert!(error.contains(part), "{text}\n{error}");
        }
        assert!(!place.path("out").exists(), "{text}");
    }
}

#[test]
fn flags_and_variables_that_contradict_the_study_are_refused() {
    let place = Place::new();
    let study = format!("{BASE}[search]\n[search.fields]\n\"train.lr\" = [1e-3]\n");
    place.write("x.toml", &study);
    place.write("final.toml", BASE);
    for (args, expected) in [
        (
            &["sweep", "final.toml", "--trials", "3"][..],
            "`--trials` needs a study with a `[search]`",
        ),
        (&["sweep", "--over", "adapter=lora", "--select-on-shift"], "`--select-on-shift` needs"),
        (&["sweep", "x.toml", "--sampler", "tree"], "unknown sampler `tree`"),
        (
            &["sweep", "x.toml", "--sampler", "external", "--json"],
            "`--json` cannot be used with an external sampler",
        ),
        (
            &["sweep", "x.toml", "--sampler", "external", "--launcher", "slurm"],
            "an external sampler cannot be used with `--launcher slurm`",
        ),
        (&["sweep", "x.toml", "--sbatch=--gpus=1"], "`--sbatch` needs `--launcher slurm`"),
        (&["sweep", "x.toml", "--select-on-shift", "--no-eval"], "but the runs do not score `oos`"),
        (&["sweep"], "the sweep has no fields to vary"),
    ] {
        let error = refused(&place, args);
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    let mut command = place.command(&["sweep", "x.toml"]);
    let output = command.env("REPRPO_TRAIN__LR", "1").output().expect("the command runs");
    let text = stderr(&output);
    assert!(
        output.status.code() == Some(1)
            && text.contains("the environment variable `REPRPO_TRAIN__LR` sets it"),
        "{text}"
    );
    assert!(!place.path("runs").exists());
}

#[test]
fn a_run_that_fails_does_not_end_the_study() {
    let place = Place::new();
    // The second method reads a layer that the model does not have.
    let methods = "[methods.a]\nintervention = \"dpo\"\n[methods.b]\nintervention = \"prefvec\"\n\
        \"tap.layers\" = \"7\"\n[methods.c]\nintervention = \"sft\"\n";
    place.write("f.toml", &format!("{BASE}{methods}"));
    for jobs in [&[][..], &["--jobs", "2", "--threads", "1"]] {
        let out = format!("out-{}", jobs.len());
        let output = place.reprpo(&[&["sweep", "f.toml", "--out", &out][..], jobs].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("1 of 3 runs failed"), "{text}");
        let study = place.study(&out);
        let states: Vec<_> = study["trials"]
            .as_array()
            .expect("trials")
            .iter()
            .map(|trial| trial["state"].as_str().expect("text"))
            .collect();
        assert_eq!(states, ["finished", "failed", "finished"]);
        let error = study["trials"][1]["error"].as_str().expect("an error");
        assert!(error.contains("layer"), "{error}");
    }
}
