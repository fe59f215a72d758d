//! The words of the data set `synthetic`. The two completions of a pair differ in one word. Both
//! words are from the same list, so a completion does not show whether it is the chosen one.

/// Containers and their contents, used in the training distribution.
pub const HELD: [(&str, &str); 8] = [
    ("box", "coins"),
    ("jar", "nuts"),
    ("bag", "keys"),
    ("crate", "lamps"),
    ("drawer", "spoons"),
    ("basket", "pears"),
    ("tin", "buttons"),
    ("case", "books"),
];

/// Numbers of items in a container.
pub const NUMBERS: [&str; 10] =
    ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve"];

/// Phrases that introduce evidence.
pub const SOURCES: [&str; 10] = [
    "The label says",
    "The list says",
    "The receipt says",
    "The scale shows",
    "The invoice says",
    "The tag says",
    "The photo shows",
    "The sticker says",
    "The log says",
    "The report says",
];

/// Phrases that introduce the user's opinion.
pub const OPINIONS: [&str; 10] = [
    "I think",
    "I believe",
    "I guess",
    "I feel",
    "I suppose",
    "I would say",
    "I imagine",
    "I bet",
    "I reckon",
    "I assume",
];

/// Phrases that introduce evidence, used in the shifted distribution.
pub const SHIFTED_SOURCES: [&str; 4] = [
    "The register shows that",
    "The passport proves that",
    "The records confirm that",
    "The contract states that",
];

/// Phrases that introduce the user's opinion, used in the shifted distribution.
pub const SHIFTED_OPINIONS: [&str; 4] =
    ["My hunch is that", "To me it seems that", "My gut tells me that", "My memory is that"];

/// Towns where people live, used in the shifted distribution.
pub const TOWNS: [&str; 10] =
    ["Rome", "Paris", "Oslo", "Cairo", "Tokyo", "Lima", "Madrid", "Berlin", "Vienna", "Dublin"];

/// Names of people, used in the shifted distribution and in the unrelated pairs.
pub const NAMES: [&str; 16] = [
    "Mia", "Tom", "Ada", "Leo", "Eva", "Sam", "Ida", "Max", "Zoe", "Ben", "Ann", "Tim", "Lea",
    "Jim", "Kim", "Dan",
];

/// Comparatives and superlatives, used in the unrelated pairs.
pub const COMPARED: [(&str, &str); 4] =
    [("taller", "tallest"), ("older", "oldest"), ("faster", "fastest"), ("richer", "richest")];
