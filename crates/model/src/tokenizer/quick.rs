//! The way that most tokenizers take, without what a prompt does not need: `tokenizers` keeps where each letter came
//! from, and matches most families' pattern by backtracking, for it looks ahead. Here texts are cut by an automaton and
//! the pieces given to the same merges. Files that ask for anything else take the library's own way.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{Model as _, Tokenizer};

use super::automaton::{Automaton, Searching};
use super::bytes::ByteLetters;

/// How the patterns in use end: all whitespace but the last before a word, which belongs to the word. Nothing else in them
/// looks ahead.
const WHITESPACE: &str = r"\s+(?!\S)|\s+";
/// What `ByteLevel` cuts by where it is asked to.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The parts of a `tokenizer.json` that say whether there is a quick way.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    model: Kind,
}

#[derive(Deserialize)]
struct Added {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: bool,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f64>,
}

/// Added tokens, found before anything else.
struct Marks {
    find: Automaton,
    ids: HashMap<String, u32>,
}

/// How a text is cut.
struct Cutter {
    all: Automaton,
    /// What is tried before whitespace.
    words: Automaton,
}

/// The quick way of one tokenizer.
pub(super) struct Quick {
    marks: Vec<Marks>,
    cutter: Cutter,
    letters: [char; 256],
    /// A normalizer leaves such texts alone, and only such.
    ascii_only: bool,
}

impl Quick {
    /// That of a file, where there is one.
    pub(super) fn of(json: &[u8], inner: &Tokenizer) -> Option<Self> {
        let file: File = serde_json::from_slice(json).ok()?;
        if file.model.kind.as_deref() != Some("BPE") || file.model.dropout.is_some() {
            return None;
        }
        let normalizer = file.normalizer.as_ref().map(|normalizer| normalizer["type"].as_str());
        let ascii_only = match normalizer {
            None => false,
            Some(Some("NFC")) => true,
            Some(_) => return None,
        };
        let odd = |added: &Added| {
            let stripped = added.single_word || added.lstrip || added.rstrip || added.content.is_empty();
            stripped || (ascii_only && !added.content.is_ascii())
        };
        if file.added_tokens.iter().any(odd) {
            return None;
        }
        // Those that stand in the text as it came are found first.
        let mut marks = Vec::new();
        for normalized in [false, true] {
            let of_kind = file.added_tokens.iter().filter(|added| added.normalized == normalized);
            marks.extend(Marks::of(of_kind.map(|added| added.content.as_str()).collect(), inner)?);
        }
        let cutter = Cutter::new(&pattern(file.pre_tokenizer.as_ref()?)?)?;
        let letters = ByteLetters::new();
        let letters = std::array::from_fn(|byte| letters.letter(byte as u8));
        Some(Self { marks, cutter, letters, ascii_only })
    }

    /// The tokens of `text`; nothing where it has to take the library's way.
    pub(super) fn encode(&self, inner: &Tokenizer, text: &str) -> tokenizers::Result<Option<Vec<u32>>> {
        if self.ascii_only && !text.is_ascii() {
            return Ok(None);
        }
        let mut out = Vec::with_capacity(text.len() / 3 + 8);
        let mut spelled = String::new();
        let mut search = self.cutter.all.begin();
        self.unmarked(0, text, &mut out, &mut |text, out| {
            let mut at = 0;
            while at < text.len() {
                let end = self.cutter.end(&mut search, text, at);
                spelled.clear();
                spelled.extend(text.as_bytes()[at..end].iter().map(|byte| self.letters[usize::from(*byte)]));
                out.extend(inner.get_model().tokenize(&spelled)?.iter().map(|token| token.id));
                at = end;
            }
            Ok(())
        })?;
        Ok(Some(out))
    }

    /// Gives the texts between marks to `each`, and puts the marks between them.
    fn unmarked(
        &self,
        depth: usize,
        text: &str,
        out: &mut Vec<u32>,
        each: &mut impl FnMut(&str, &mut Vec<u32>) -> tokenizers::Result<()>,
    ) -> tokenizers::Result<()> {
        let Some(marks) = self.marks.get(depth) else { return each(text, out) };
        let mut from = 0;
        let mut search = marks.find.begin();
        while let Some(found) = search.find_at(text, from) {
            self.unmarked(depth + 1, &text[from..found.start], out, each)?;
            from = found.end;
            out.push(marks.ids[&text[found]]);
        }
        self.unmarked(depth + 1, &text[from..], out, each)
    }
}

impl Marks {
    /// `Some(None)` of none; nothing where they cannot be found so.
    fn of(mut texts: Vec<&str>, inner: &Tokenizer) -> Option<Option<Self>> {
        if texts.is_empty() {
            return Some(None);
        }
        // The longest of those that begin at a place.
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let find = texts.iter().map(|text| regex::escape(text)).collect::<Vec<_>>().join("|");
        let ids = texts.iter().map(|text| Some(((*text).to_owned(), inner.token_to_id(text)?)));
        Some(Some(Self { find: Automaton::new(&find)?, ids: ids.collect::<Option<_>>()? }))
    }
}

/// The one pattern that a file cuts texts by, into bytes' letters.
fn pattern(pre_tokenizer: &Value) -> Option<String> {
    let bytes = |value: &Value, by_pattern: bool| {
        value["type"] == "ByteLevel"
            && value["add_prefix_space"] == false
            && value["use_regex"].as_bool().unwrap_or(true) == by_pattern
    };
    if bytes(pre_tokenizer, true) {
        return Some(GPT2.to_owned());
    }
    let [split, last] = pre_tokenizer["pretokenizers"].as_array()?.as_slice() else { return None };
    let cuts = split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] == false;
    let pattern = split["pattern"]["Regex"].as_str()?;
    (pre_tokenizer["type"] == "Sequence" && cuts && bytes(last, false)).then(|| pattern.to_owned())
}

impl Cutter {
    fn new(pattern: &str) -> Option<Self> {
        let words = pattern.strip_suffix(WHITESPACE)?.strip_suffix('|')?;
        // A group around it all would make the end another's.
        let all = Automaton::new(&format!(r"{words}|\s+"))?;
        let words = Automaton::new(words)?;
        // What may take nothing is cut in the library's own way.
        let takes_nothing = all.begin().find_at("", 0).is_some();
        (!takes_nothing).then_some(Self { all, words })
    }

    /// Where the piece ends that begins at `at`; `all` is a search of [`Cutter::all`].
    fn end(&self, all: &mut Searching<'_>, text: &str, at: usize) -> usize {
        let Some(found) = all.find_at(text, at) else { return text.len() };
        if found.start > at {
            // What no alternative takes is a piece too.
            return found.start;
        }
        let (end, piece) = (found.end, &text[found]);
        let mut backwards = piece.char_indices().rev();
        let Some((last, _)) = backwards.next().filter(|(last, _)| *last > 0) else { return end };
        let before_word = text[end..].chars().next().is_some_and(|next| !next.is_whitespace());
        if !before_word || !piece.chars().all(char::is_whitespace) {
            return end;
        }
        // Patterns may take line ends for themselves, and those whole.
        let taken = self.words.begin().find_at(text, at).is_some_and(|word| word == (at..end));
        if taken { end } else { at + last }
    }
}
