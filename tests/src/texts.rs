//! Texts to work on.

const PEOPLE: [&str; 8] = [
    "Amara Okafor",
    "Lucía Fernández",
    "Henrik Lindqvist",
    "Mei Tanaka",
    "Giovanni Russo",
    "Priya Raman",
    "Tomasz Nowak",
    "Leila Haddad",
];
const PLACES: [&str; 7] = [
    "Lisbon",
    "Nairobi",
    "Lake Baikal",
    "Buenos Aires",
    "Rotterdam",
    "Mount Etna",
    "Hokkaido",
];
const THINGS: [&str; 5] = [
    "the Triceratops skull",
    "a Stradivarius violin",
    "the Boeing 747",
    "the Voyager probe",
    "a bottle of Barolo",
];

/// `count` sentences about named people, places and things, about 25 tokens each. Sentences with
/// different numbers differ.
pub fn sentences(first: usize, count: usize) -> String {
    let sentence = |n: usize| {
        format!(
            "On day {n} {} left {} for {} to look after {}. ",
            PEOPLE[n % PEOPLE.len()],
            PLACES[n % PLACES.len()],
            PLACES[(n + 3) % PLACES.len()],
            THINGS[n % THINGS.len()],
        )
    };
    (first..first + count).map(sentence).collect()
}

/// `count` texts of `sentences_each` sentences.
pub fn documents(count: usize, sentences_each: usize) -> Vec<String> {
    (0..count)
        .map(|document| sentences(document * sentences_each, sentences_each))
        .collect()
}

/// What the functions of many texts take.
pub fn as_array(texts: &[String]) -> Vec<Option<&str>> {
    texts.iter().map(|text| Some(text.as_str())).collect()
}
