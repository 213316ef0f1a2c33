//! A GGUF file's tokenizer as `tokenizer.json` and `tokenizer_config.json`: byte-level BPE (`gpt2`), SentencePiece
//! (`llama`), and BPE over SentencePiece's spelling (`gemma4`).

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::architecture::to_bytes;
use super::reader::GgufFile;
use super::splits::{Splitting, splitting};
use super::value::{Array, Value};
use crate::checkpoint::CheckpointError;
use crate::tokenizer::ByteLetters;

const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// How SentencePiece spells a space.
const SPACE: char = '\u{2581}';

/// Marks that end an answer, where a file has them and does not say so itself: converters write one end of text, and
/// families have a second for the end of a turn.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",
    "</s>",
];

/// What was found.
pub(super) struct Found {
    pub(super) json: Vec<u8>,
    pub(super) settings: Vec<u8>,
    pub(super) stop_tokens: Vec<u32>,
}

/// The `tokenizer.json` of `file`; nothing where it has no tokenizer.
///
/// # Errors
/// A tokenizer of an unknown kind, or one that contradicts itself.
pub fn json(file: &GgufFile<'_>) -> Result<Option<Vec<u8>>, CheckpointError> {
    Ok(read(file)?.map(|found| found.json))
}

/// The tokenizer of `file`; nothing where it has none.
pub(super) fn read(file: &GgufFile<'_>) -> Result<Option<Found>, CheckpointError> {
    let Some(vocabulary) = Vocabulary::read(file)? else { return Ok(None) };
    let json = match vocabulary.kind {
        "gpt2" => vocabulary.byte_level()?,
        "llama" => vocabulary.sentencepiece(None)?,
        "gemma4" => vocabulary.sentencepiece(Some(vocabulary.merges()?))?,
        other => {
            let shown: String = other.chars().take(32).collect();
            return Err(
                vocabulary.wrong("model", &format!("is {shown:?}; this build knows gpt2, llama and gemma4"))
            );
        }
    };
    Ok(Some(Found {
        json,
        settings: to_bytes(&vocabulary.settings()?),
        stop_tokens: vocabulary.stop_tokens()?,
    }))
}

struct Vocabulary<'f, 'a> {
    file: &'f GgufFile<'a>,
    kind: &'a str,
    tokens: Vec<&'a str>,
    /// One for each token.
    kinds: Vec<u64>,
    scores: Vec<f32>,
}

impl<'f, 'a> Vocabulary<'f, 'a> {
    fn read(file: &'f GgufFile<'a>) -> Result<Option<Self>, CheckpointError> {
        let Some(kind) = file.get("tokenizer.ggml.model").and_then(Value::text) else { return Ok(None) };
        if matches!(kind, "none" | "no_vocab") {
            return Ok(None);
        }
        let mut vocabulary = Self { file, kind, tokens: Vec::new(), kinds: Vec::new(), scores: Vec::new() };
        let Some(tokens) = vocabulary.array("tokens")? else {
            return Err(vocabulary.wrong("tokens", "is missing"));
        };
        vocabulary.tokens = tokens.values().map_while(Value::text).collect();
        let count = vocabulary.tokens.len();
        if count != tokens.len() || count == 0 {
            return Err(vocabulary.wrong("tokens", "is no list of texts"));
        }
        let of_each = |key: &str, array: Option<Array<'a>>, found: usize| match array {
            Some(_) if found != count => {
                Err(vocabulary.wrong(key, &format!("has {found} numbers for {count} tokens")))
            }
            _ => Ok(()),
        };
        let (kinds, scores) = (vocabulary.array("token_type")?, vocabulary.array("scores")?);
        let read_kinds: Vec<u64> =
            kinds.iter().flat_map(|array| array.values()).map_while(Value::unsigned).collect();
        let read_scores: Vec<f32> = scores
            .iter()
            .flat_map(|array| array.values())
            .map_while(|value| value.number().map(|number| number as f32))
            .collect();
        of_each("token_type", kinds, read_kinds.len())?;
        of_each("scores", scores, read_scores.len())?;
        vocabulary.kinds = if kinds.is_some() { read_kinds } else { vec![1; count] };
        vocabulary.scores = read_scores;
        Ok(Some(vocabulary))
    }

    fn get(&self, key: &str) -> Option<Value<'a>> {
        self.file.get(&format!("tokenizer.ggml.{key}"))
    }

    fn wrong(&self, key: &str, what: &str) -> CheckpointError {
        CheckpointError::BadHeader {
            file: self.file.file_name().to_owned(),
            detail: format!("metadata \"tokenizer.ggml.{key}\" {what}"),
        }
    }

    fn array(&self, key: &str) -> Result<Option<Array<'a>>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.array().map(Some).ok_or_else(|| self.wrong(key, "is no list"))
    }

    /// The token that `{name}_token_id` says.
    fn special(&self, name: &str) -> Result<Option<u32>, CheckpointError> {
        let key = format!("{name}_token_id");
        let Some(value) = self.get(&key) else { return Ok(None) };
        // Written as the largest number where there is none.
        match value.unsigned() {
            Some(number) if number == u64::from(u32::MAX) => Ok(None),
            Some(number) if number < self.tokens.len() as u64 => Ok(Some(number as u32)),
            _ => Err(self.wrong(&key, &format!("is none of {} tokens", self.tokens.len()))),
        }
    }

    fn splitting(&self) -> Result<Splitting, CheckpointError> {
        let pre = self.get("pre").and_then(Value::text).unwrap_or("default");
        splitting(pre).ok_or_else(|| {
            let shown: String = pre.chars().take(32).collect();
            self.wrong(
                "pre",
                &format!("is {shown:?}, a way of splitting texts that this build does not know"),
            )
        })
    }

    /// Whether texts begin with the begin mark.
    fn begins(&self) -> bool {
        let default = match self.kind {
            "llama" => true,
            "gpt2" => self.splitting().is_ok_and(|splitting| splitting.begins),
            // The template writes it.
            _ => return false,
        };
        self.get("add_bos_token").and_then(Value::flag).unwrap_or(default)
    }

    /// Pairs in their order.
    fn merges(&self) -> Result<Vec<(&'a str, &'a str)>, CheckpointError> {
        let Some(array) = self.array("merges")? else { return Err(self.wrong("merges", "is missing")) };
        let pairs: Vec<_> = array
            .values()
            .map_while(|value| {
                let text = value.text()?;
                // A part may begin with a space itself.
                let first = text.chars().next()?.len_utf8();
                let at = first + text[first..].find(' ')?;
                Some((&text[..at], &text[at + 1..]))
            })
            .collect();
        match pairs.len() == array.len() {
            true => Ok(pairs),
            false => Err(self.wrong("merges", &format!("has no pair of tokens at {}", pairs.len()))),
        }
    }

    /// `file`, a whole `tokenizer.json` but for the model's vocabulary and merges, with these. Written as text, since trees
    /// of some hundred thousand values take seconds. Of tokens that are spelled alike the first counts.
    fn with_model(&self, file: &Json, model: &Json, merges: &[(&str, &str)]) -> Vec<u8> {
        let spelled = |text: &str| serde_json::to_string(text).expect("a text is JSON");
        let open = |value: &Json| {
            let mut text = value.to_string();
            // The object stays open.
            text.pop();
            text
        };
        let mut out = open(file);
        out.push_str(",\"model\":");
        out.push_str(&open(model));
        out.push_str(",\"vocab\":{");
        let mut seen = HashSet::with_capacity(self.tokens.len());
        for (number, token) in self.tokens.iter().enumerate().filter(|(_, token)| seen.insert(**token)) {
            let comma = if number == 0 { "" } else { "," };
            let _ = write!(out, "{comma}{}:{number}", spelled(token));
        }
        out.push_str("},\"merges\":[");
        for (place, (left, right)) in merges.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            let _ = write!(out, "{comma}[{},{}]", spelled(left), spelled(right));
        }
        out.push_str("]}}");
        out.into_bytes()
    }

    /// Marks: control tokens, and tokens that texts are cut at before anything else.
    fn added(&self) -> Vec<Json> {
        let mut seen = HashSet::new();
        let marks = self.tokens.iter().zip(&self.kinds).enumerate().filter(|(_, (token, kind))| {
            matches!(**kind, CONTROL | USER_DEFINED | UNKNOWN) && !token.is_empty() && seen.insert(**token)
        });
        let mark = |(number, (token, kind)): (usize, (&&str, &u64))| {
            json!({
                "id": number, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                // Tokens with SentencePiece's space are found in texts that are spelled so already.
                "normalized": *kind == USER_DEFINED && token.contains(SPACE) && self.kind != "gpt2",
                "special": *kind != USER_DEFINED,
            })
        };
        marks.map(mark).collect()
    }

    fn byte_level(&self) -> Result<Vec<u8>, CheckpointError> {
        let splitting = self.splitting()?;
        let merges = self.merges()?;
        let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let mut steps: Vec<Json> = splitting.patterns.iter().map(split).collect();
        steps.push(
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}),
        );
        let letters = ByteLetters::new();
        let tokens: HashSet<&str> = self.tokens.iter().copied().collect();
        // The others occur in no UTF-8, or in that of characters that nothing is trained on.
        let complete = (0..=0xbf).chain(0xc2..=0xf0).all(|byte| {
            let mut spelled = [0; 4];
            let letter: &str = letters.letter(byte).encode_utf8(&mut spelled);
            tokens.contains(letter)
        });
        if !complete {
            return Err(self.wrong("tokens", "lacks a token for some byte: texts could not be encoded"));
        }
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": self.added(),
            "normalizer": if splitting.composed { json!({"type": "NFC"}) } else { Json::Null },
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "post_processor": self.post_processor()?,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        });
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": splitting.ignore_merges,
        });
        Ok(self.with_model(&file, &model, &self.usable(merges)))
    }

    /// What is put around a text.
    fn post_processor(&self) -> Result<Json, CheckpointError> {
        let mark = |number: Option<u32>| number.map(|number| (number, self.tokens[number as usize]));
        let begin = mark(self.special("bos")?.filter(|_| self.begins()));
        let end = mark(self.special("eos")?.filter(|_| self.ends()));
        Ok(if begin.is_some() || end.is_some() { surrounded(begin, end) } else { Json::Null })
    }

    /// Whether texts end with the end mark: of models that give embeddings only, since a text that has ended cannot be gone
    /// on with.
    fn ends(&self) -> bool {
        let architecture = self.file.get("general.architecture").and_then(Value::text).unwrap_or_default();
        let pools = self.file.get(&format!("{architecture}.pooling_type")).and_then(Value::unsigned);
        pools.is_some_and(|kind| kind > 0) && self.get("add_eos_token").and_then(Value::flag).unwrap_or(false)
    }

    /// Merges of tokens there are: `tokenizers` takes no others.
    fn usable<'m>(&self, merges: Vec<(&'m str, &'m str)>) -> Vec<(&'m str, &'m str)> {
        let tokens: HashSet<&str> = self.tokens.iter().copied().collect();
        let mut joined = String::new();
        let mut usable = |(left, right): &(&str, &str)| {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            tokens.contains(left) && tokens.contains(right) && tokens.contains(joined.as_str())
        };
        merges.into_iter().filter(|pair| usable(pair)).collect()
    }

    /// SentencePiece's BPE: with the merges of the file, or with those that the tokens' scores imply.
    fn sentencepiece(&self, merges: Option<Vec<(&str, &str)>>) -> Result<Vec<u8>, CheckpointError> {
        let architecture = self.file.get("general.architecture").and_then(Value::text);
        let gemma = self.kind == "gemma4" || architecture.is_some_and(|name| name.starts_with("gemma"));
        // Gemma's runs of spaces are stored as spaces, while texts are spelled with SentencePiece's.
        let only_spaces = |token: &str| gemma && token.len() > 1 && token.bytes().all(|byte| byte == b' ');
        let respell = |token: &&'a str| match only_spaces(token) {
            true => Cow::Owned(token.replace(' ', "\u{2581}")),
            false => Cow::Borrowed(*token),
        };
        let respelled: Vec<Cow<'_, str>> = self.tokens.iter().map(respell).collect();
        let spelled = Vocabulary {
            tokens: respelled.iter().map(|token| &**token).collect(),
            kinds: self.kinds.clone(),
            scores: Vec::new(),
            ..*self
        };
        let merges = match merges {
            Some(merges) => spelled.usable(merges),
            // Gemma's scores do not follow the order of its merges; the tokens' order does.
            None if gemma || self.scores.is_empty() => implied(&spelled.tokens, |number| -(number as f32)),
            None => implied(&spelled.tokens, |number| self.scores[number]),
        };
        let (file, model) = spelled.sentencepiece_parts()?;
        Ok(spelled.with_model(&file, &model, &merges))
    }

    fn sentencepiece_parts(&self) -> Result<(Json, Json), CheckpointError> {
        let spaced = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE.to_string()});
        let prefixed =
            self.kind == "llama" && self.get("add_space_prefix").and_then(Value::flag).unwrap_or(true);
        let normalizer = match prefixed {
            true => {
                json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE.to_string()}, spaced]})
            }
            false => spaced,
        };
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE.to_string()}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefixed {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = match self.special("unknown") {
            Ok(Some(number)) => Some(self.tokens[number as usize]),
            _ => self.kinds.iter().position(|&kind| kind == UNKNOWN).map(|number| self.tokens[number]),
        };
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": self.added(),
            "normalizer": normalizer, "pre_tokenizer": null, "post_processor": self.post_processor()?,
            "decoder": {"type": "Sequence", "decoders": decoders},
        });
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        });
        Ok((file, model))
    }

    /// `tokenizer_config.json`.
    fn settings(&self) -> Result<Json, CheckpointError> {
        let mut settings = Map::new();
        for (name, key) in [("bos", "bos_token"), ("eos", "eos_token")] {
            if let Some(number) = self.special(name)? {
                settings.insert(key.to_owned(), json!(self.tokens[number as usize]));
            }
        }
        let template = |key: &str| self.file.get(key).and_then(Value::text);
        if let Some(default) = template("tokenizer.chat_template") {
            let value = match template("tokenizer.chat_template.tool_use") {
                Some(tools) => json!([
                    {"name": "default", "template": default},
                    {"name": "tool_use", "template": tools},
                ]),
                None => json!(default),
            };
            settings.insert("chat_template".to_owned(), value);
        }
        Ok(Json::Object(settings))
    }

    fn stop_tokens(&self) -> Result<Vec<u32>, CheckpointError> {
        let mut stops = BTreeSet::new();
        for name in ["eos", "eot", "eom"] {
            stops.extend(self.special(name)?);
        }
        // In harmony a message that ends is not the answer's end.
        let harmony = self.tokens.contains(&"<|return|>") && self.tokens.contains(&"<|channel|>");
        for (number, token) in self.tokens.iter().enumerate() {
            let mark = matches!(self.kinds[number], CONTROL | USER_DEFINED);
            if mark && ENDS.contains(token) && !(harmony && *token == "<|end|>") {
                stops.insert(number as u32);
            }
        }
        Ok(stops.into_iter().collect())
    }
}

/// SentencePiece merges the two neighbours whose joint token scores highest: every way to make a token of two others, the
/// best token first.
fn implied<'t>(tokens: &[&'t str], score: impl Fn(usize) -> f32) -> Vec<(&'t str, &'t str)> {
    let numbers: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(number, token)| (*token, number)).collect();
    let mut merges: Vec<(f32, usize, usize, &'t str, &'t str)> = Vec::new();
    for (number, token) in tokens.iter().enumerate() {
        // Bytes' spellings are no texts, and longer ones than any word would take a square of their length.
        if token.len() > 512 || numbers.get(token) != Some(&number) {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&left_number), Some(&right_number)) = (numbers.get(left), numbers.get(right)) {
                merges.push((score(number), left_number, right_number, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
    merges.into_iter().map(|(.., left, right)| (left, right)).collect()
}

fn surrounded(begin: Option<(u32, &str)>, end: Option<(u32, &str)>) -> Json {
    let mark = |mark: Option<(u32, &str)>| {
        mark.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": 0}}))
    };
    let around = |sequence: &str| {
        let text = json!({"Sequence": {"id": sequence, "type_id": 0}});
        mark(begin).into_iter().chain([text]).chain(mark(end)).collect::<Vec<Json>>()
    };
    let special = |(number, token): (u32, &str)| {
        (token.to_owned(), json!({"id": token, "ids": [number], "tokens": [token]}))
    };
    let specials: Map<String, Json> = begin.into_iter().chain(end).map(special).collect();
    let pair = [around("A"), around("B")].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": pair,
        "special_tokens": specials,
    })
}
