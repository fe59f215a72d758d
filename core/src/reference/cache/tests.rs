//! Tests that cached values have the same bytes as computed ones, and that nothing else is found.

use std::fs;
use std::path::{Path, PathBuf};

use tch::Kind;

use super::*;
use crate::api::{Pooling, Side, Site};
use crate::config::Experiment;
use crate::conformance::{Bench, Case, pairs};
use crate::fingerprint::Fingerprint;
use crate::reference::disk::{collection_folders, stored};

/// A cache that keeps nothing in memory, so that everything is read from the folder `root`.
fn on_disk(name: &str, root: &Path, most_bytes: u64, model: &Model) -> ReferenceCache {
    let folder = Some(Folder::new(root.to_owned(), most_bytes));
    let shared = Shared { source: source(name, model), most_bytes: 0, folder };
    ReferenceCache { shared: Some(shared), usage: Usage::default() }
}

fn in_memory(source: Source) -> ReferenceCache {
    ReferenceCache::new(source, &CacheConfig::default())
}

fn source(name: &str, model: &Model) -> Source {
    Source::of_base(&Experiment::default(), model, &fingerprint(name))
}

fn fingerprint(name: &str) -> Fingerprint {
    Parts::new(name).describing(name)
}

fn quantities() -> Vec<Quantity> {
    let state = |site, pooling| Quantity::State(site, pooling);
    vec![
        Quantity::Logprobs,
        state(Site::Residual(1), Pooling::Completion),
        state(Site::Block(0), Pooling::Last),
    ]
}

fn bench() -> Bench {
    Bench::new(&Case::of_stand_ins(), 0).unwrap()
}

fn files(root: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        collection_folders(root).iter().flat_map(|f| stored(f)).map(|file| file.path).collect();
    files.sort();
    files
}

#[test]
fn values_do_not_depend_on_the_other_quantities() {
    let (Bench { model, adapted, .. }, pairs) = (bench(), pairs());
    for adapted in [None, Some(&adapted)] {
        let all = compute(&model, adapted, &pairs, &quantities()).unwrap();
        for (quantity, expected) in quantities().into_iter().zip(&all) {
            let alone = compute(&model, adapted, &pairs, &[quantity]).unwrap();
            assert_eq!(&alone[0], expected);
        }
        let logprobs = &all[0];
        assert_eq!(logprobs.kind(), Kind::Double);
        for (i, pair) in pairs.iter().enumerate() {
            for side in Side::BOTH {
                assert_eq!(logprobs.row(i, side).unwrap().len(), 8 * pair.completion(side).len());
                assert!(logprobs.sum(i, side).unwrap() < 0.0);
            }
        }
        assert!(logprobs.row(pairs.len(), Side::Chosen).is_err());
    }
}

#[test]
fn a_cold_and_a_warm_cache_have_the_same_bytes() {
    let (Bench { model, .. }, pairs) = (bench(), pairs());
    let expected = compute(&model, None, &pairs, &quantities()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let usage = |computed, from_memory, from_disk| Usage { computed, from_memory, from_disk };
    let check = |cache: &mut ReferenceCache, expected_usage: Usage| {
        let found = cache.values(&model, None, &pairs, &quantities()).unwrap();
        assert!(found.iter().map(|values| &**values).eq(&expected));
        assert_eq!(cache.usage(), expected_usage);
    };
    let source = source("cold and warm", &model);
    check(&mut in_memory(source.clone()), usage(6, 0, 0));
    check(&mut in_memory(source), usage(0, 6, 0));
    let on_disk = || on_disk("cold and warm on disk", folder.path(), 1 << 30, &model);
    check(&mut on_disk(), usage(6, 0, 0));
    check(&mut on_disk(), usage(0, 0, 6));
    let mut off = ReferenceCache::default();
    check(&mut off, usage(6, 0, 0));
    check(&mut off, usage(12, 0, 0));
    assert_eq!(files(folder.path()).len(), 3, "one file for each quantity");
}

#[test]
fn only_missing_quantities_and_blocks_are_computed() {
    let (Bench { model, .. }, pairs) = (bench(), pairs());
    let mut cache = in_memory(source("missing", &model));
    cache.values(&model, None, &pairs, &[Quantity::Logprobs]).unwrap();
    // The same tokens in another row of another file are the same pair.
    let moved: Vec<TokenPair> =
        pairs.iter().map(|p| TokenPair { index: p.index + 7, row: 99, ..p.clone() }).collect();
    cache.values(&model, None, &moved, &[Quantity::Logprobs]).unwrap();
    assert_eq!(cache.usage().from_memory, 6);
    let before = cache.usage().computed;
    cache.values(&model, None, &pairs, &quantities()).unwrap();
    assert_eq!(cache.usage().computed - before, 6, "the states were missing");
    // A changed token changes the key of its block.
    let mut changed = pairs.clone();
    changed[3].rejected[0] ^= 1;
    let found = cache.values(&model, None, &changed, &quantities()).unwrap();
    assert_eq!(cache.usage().computed - before, 12);
    let computed = compute(&model, None, &changed, &quantities()).unwrap();
    assert!(found.iter().map(|values| &**values).eq(&computed));
}

#[test]
fn another_reference_does_not_find_the_values() {
    let (Bench { model, adapted, .. }, pairs) = (bench(), pairs());
    let base = source("another", &model);
    let computes = |source: &Source, adapted| {
        let mut cache = in_memory(source.clone());
        cache.values(&model, adapted, &pairs, &[Quantity::Logprobs]).unwrap();
        cache.usage().computed > 0
    };
    assert!(computes(&base, None) && !computes(&base, None));
    let (one, two) = (fingerprint("one"), fingerprint("two"));
    assert!(computes(&base.with_adapter(&one), Some(&adapted)));
    assert!(computes(&base.with_adapter(&two), Some(&adapted)));
    assert!(!computes(&base.with_adapter(&one), Some(&adapted)));
    assert!(computes(&source("other weights", &model), None));
    let with = |change: fn(&mut Experiment)| {
        let mut experiment = Experiment::default();
        change(&mut experiment);
        Source::of_base(&experiment, &model, &fingerprint("another"))
    };
    assert!(computes(&with(|e| e.tf32 = true), None));
    assert!(computes(&with(|e| e.attention = crate::model::attention::Kernel::Eager), None));
    // These settings do not change the reference.
    for change in [
        (|e| e.train.seed = 9) as fn(&mut Experiment),
        |e| e.train.batch = crate::config::Batch::Pairs(7),
        |e| e.eval.tokens = 7,
        |e| e.cache.max_gb = 7.0,
        |e| e.out = Some("x".into()),
        |e| e.model = "a copy".into(),
    ] {
        assert!(!computes(&with(change), None));
    }
    // The cache of one reference cannot be used for another one.
    let mut cache = in_memory(base);
    assert!(cache.values(&model, Some(&adapted), &pairs, &[Quantity::Logprobs]).is_err());
}

#[test]
fn a_damaged_file_is_computed_again() {
    let (Bench { model, .. }, pairs) = (bench(), pairs());
    let folder = tempfile::tempdir().unwrap();
    let values = || {
        let mut cache = on_disk("damaged", folder.path(), 1 << 30, &model);
        let values = cache.values(&model, None, &pairs, &[Quantity::Logprobs]).unwrap();
        (values[0].clone(), cache.usage().computed)
    };
    let (expected, _) = values();
    let path = files(folder.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    let mut changes: Vec<Vec<u8>> =
        [0, 7, 60, whole.len() / 2, whole.len() - 1].map(|n| whole[..n].to_vec()).into();
    for at in [0, 20, whole.len() / 2, whole.len() - 100, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 4;
        changes.push(changed);
    }
    for changed in changes {
        fs::write(&path, &changed).unwrap();
        let (found, computed) = values();
        assert_eq!((&found, computed), (&expected, 6));
        assert_eq!(fs::read(&path).unwrap(), whole, "the file is written again");
        assert_eq!(values(), (expected.clone(), 0));
    }
    // A file with the values of another block.
    let mut other = pairs.clone();
    other[0].chosen[0] ^= 1;
    let mut cache = on_disk("damaged", folder.path(), 1 << 30, &model);
    cache.values(&model, None, &other, &[Quantity::Logprobs]).unwrap();
    let another = files(folder.path()).into_iter().find(|file| *file != path).unwrap();
    fs::copy(another, &path).unwrap();
    assert_eq!(values(), (expected.clone(), 6));
}

#[test]
fn the_folder_keeps_the_blocks_that_were_used_last() {
    let (Bench { model, .. }, pairs) = (bench(), pairs());
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let compute = |most: u64, pair: &TokenPair| {
        let mut cache = on_disk("bounded", root, most, &model);
        let pair = std::slice::from_ref(pair);
        cache.values(&model, None, pair, &[Quantity::Logprobs]).unwrap();
        cache.usage().computed
    };
    for (i, pair) in pairs[..4].iter().enumerate() {
        compute(1 << 30, pair);
        // The times of files may have a low resolution.
        for file in files(root) {
            let file = fs::File::open(file).unwrap();
            let used = file.metadata().unwrap().modified().unwrap();
            file.set_modified(used - std::time::Duration::from_secs(10 - i as u64)).unwrap();
        }
    }
    let size: u64 = files(root).iter().map(|file| file.metadata().unwrap().len()).sum();
    assert_eq!(compute(1 << 30, &pairs[0]), 0, "the first pair is now the one used last");
    let abandoned = collection_folders(root)[0].join(".tmpAbc");
    let recent = collection_folders(root)[0].join(".tmpDef");
    fs::write(&recent, "").unwrap();
    fs::write(&abandoned, "").unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(100_000);
    fs::File::open(&abandoned).unwrap().set_modified(long_ago).unwrap();
    // The new pair needs the room of at least one other pair.
    assert_eq!(compute(size, &pairs[4]), 1);
    assert!(files(root).iter().map(|file| file.metadata().unwrap().len()).sum::<u64>() <= size);
    assert!(!abandoned.exists() && recent.exists());
    assert_eq!(compute(1 << 30, &pairs[0]), 0);
    assert_eq!(compute(1 << 30, &pairs[4]), 0);
    assert_eq!(compute(1 << 30, &pairs[1]), 1, "the pair that was not used was removed");
    // A limit that is smaller than a file keeps nothing, and is not an error.
    assert_eq!(compute(1, &pairs[5]), 1);
    assert_eq!(files(root).len(), 0);
    assert_eq!(collection_folders(root).len(), 1, "a file of another process is still there");
}

#[test]
fn several_writers_with_a_small_limit_never_read_wrong_values() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let (Bench { model, .. }, pairs) = (bench(), pairs());
                for round in 0..12 {
                    let pair = &pairs[(thread + round) % pairs.len()];
                    let pair = std::slice::from_ref(pair);
                    let mut cache = on_disk("writers", root, 2500, &model);
                    let found = cache.values(&model, None, pair, &quantities()).unwrap();
                    let expected = compute(&model, None, pair, &quantities()).unwrap();
                    assert!(found.iter().map(|values| &**values).eq(&expected));
                    if round % 4 == 3 {
                        // Another process clears the cache.
                        for folder in collection_folders(root) {
                            let _ = fs::remove_dir_all(folder);
                        }
                    }
                }
            });
        }
    });
}

#[test]
fn a_folder_that_cannot_be_written_is_not_an_error() {
    let (Bench { model, .. }, pairs) = (bench(), pairs());
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("file");
    fs::write(&root, "not a folder").unwrap();
    let mut cache = on_disk("unwritable", &root, 1 << 30, &model);
    for _ in 0..2 {
        cache.values(&model, None, &pairs, &quantities()).unwrap();
    }
    assert_eq!(cache.usage().computed, 12);
}
