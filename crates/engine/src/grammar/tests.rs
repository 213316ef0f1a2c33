//! Walks through masks, at random, must give texts of the form; sources that are none must be refused in words.

use std::path::Path;
use std::time::{Duration, Instant};

use base::Rng;
use serde_json::{Value, json};

use super::*;

/// A token for each byte, then special ones.
const VOCABULARY: usize = 264;
const STOP: u32 = 256;

/// The fixture's tokenizer file.
pub(super) fn tokenizer_json() -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny/llama-f32");
    serde_json::from_slice(&std::fs::read(folder.join("tokenizer.json")).unwrap()).unwrap()
}

fn grammars() -> Grammars {
    let tokenizer = Tokenizer::from_json(tokenizer_json().to_string().as_bytes()).unwrap();
    Grammars::new(tokenizer, VOCABULARY, vec![STOP, 258])
}

fn allowed(mask: &Mask) -> Vec<u32> {
    allowed_of(mask, VOCABULARY)
}

fn allowed_of(mask: &Mask, vocabulary: usize) -> Vec<u32> {
    let mut row = vec![0.0; vocabulary];
    mask.apply(&mut row);
    (0..vocabulary as u32).filter(|&token| row[token as usize] == 0.0).collect()
}

/// A text that the masks allow; closing what is open where that may be.
fn walk(grammars: &Grammars, constraint: &Constraint, seed: u64) -> (String, Vec<u32>) {
    let mut guide = grammars.guide(constraint, &[]).unwrap();
    let mut rng = Rng::new(seed);
    let mut tokens = Vec::new();
    for _ in 0..600 {
        let mask = guide.mask(false).unwrap().expect("it binds from the begin");
        let choices = allowed(&mask);
        assert!(!choices.is_empty(), "nothing may come next");
        if choices.contains(&STOP) {
            break;
        }
        let closers: Vec<u32> = choices
            .iter()
            .copied()
            .filter(|token| b"}]\"0".contains(&(*token as u8)) && *token < 256)
            .collect();
        let pool = if closers.is_empty() || rng.below(3) == 0 { &choices } else { &closers };
        let token = pool[rng.below(pool.len() as u64) as usize];
        guide.advance(token).unwrap();
        tokens.push(token);
    }
    (grammars.tokenizer.decode(&tokens, false), tokens)
}

/// A walk's text, marks included; closes texts and marks where it may.
pub(super) fn walk_with(grammars: &Grammars, constraint: &Constraint, seed: u64) -> String {
    let mut guide = grammars.guide(constraint, &[]).unwrap_or_else(|error| panic!("{error}"));
    let mut rng = Rng::new(seed);
    let mut tokens = Vec::new();
    for _ in 0..2000 {
        let mask = guide.mask(false).unwrap().expect("it binds from the begin");
        let choices = allowed_of(&mask, grammars.vocabulary);
        if mask.over || choices.contains(&STOP) {
            break;
        }
        let closes = |token: &u32| *token >= 259 || b"}]\"0<".contains(&(*token as u8)) && *token < 256;
        let closers: Vec<u32> = choices.iter().copied().filter(closes).collect();
        let pool = if closers.is_empty() || rng.below(4) == 0 { &choices } else { &closers };
        let token = pool[rng.below(pool.len() as u64) as usize];
        guide.advance(token).unwrap();
        tokens.push(token);
    }
    grammars.tokenizer.decode(&tokens, false)
}

#[test]
fn every_walk_gives_a_text_of_the_form() {
    let grammars = grammars();
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}, "kind": {"enum": ["a", "bc"]},
        "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}}, "required": ["n", "kind"],
        "additionalProperties": false});
    for seed in 0..30 {
        let (text, _) =
            walk(&grammars, &Grammar::JsonSchema { schema: schema.to_string() }.constraint(), seed);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert!(value["n"].is_i64() || value["n"].is_u64() || value["n"].is_f64(), "{text}");
        assert!(value["kind"] == "a" || value["kind"] == "bc", "{text}");
        let choices = vec!["yes".to_owned(), "no \"x\"\n".to_owned()];
        let (text, _) = walk(&grammars, &Grammar::Choice { choices: choices.clone() }.constraint(), seed);
        assert!(choices.contains(&text), "{text:?}");
        let (text, _) =
            walk(&grammars, &Grammar::Regex { pattern: "[a-c]{2}/(x|y)".into() }.constraint(), seed);
        assert!(text.len() == 4 && &text[2..3] == "/", "{text:?}");
        let (text, _) = walk(&grammars, &Grammar::JsonObject.constraint(), seed);
        assert!(text.starts_with('{'), "{text:?}");
    }
}

#[test]
fn a_form_is_gone_on_with_from_the_tokens_that_are_there() {
    let grammars = grammars();
    let schema =
        r#"{"type":"object","properties":{"name":{"type":"string","maxLength":5}},"required":["name"]}"#;
    let constraint = Grammar::JsonSchema { schema: schema.into() }.constraint();
    let (_, tokens) = walk(&grammars, &constraint, 5);
    let mut whole = grammars.guide(&constraint, &[]).unwrap();
    for (at, token) in tokens.iter().enumerate() {
        let mut resumed = grammars.guide(&constraint, &tokens[..at]).unwrap();
        let [one, two] = [&mut whole, &mut resumed].map(|guide| guide.mask(false).unwrap().unwrap());
        assert_eq!(allowed(&one), allowed(&two), "after {at} tokens");
        whole.advance(*token).unwrap();
    }
}

#[test]
fn it_binds_only_after_the_text_it_waits_for() {
    let grammars = grammars();
    let mut constraint = Grammar::Choice { choices: vec!["ok".into()] }.constraint();
    constraint.after = Some("</think>".into());
    let mut guide = grammars.guide(&constraint, &[]).unwrap();
    for token in b"hm </thi</think>" {
        assert!(guide.mask(false).unwrap().is_none());
        guide.advance(u32::from(*token)).unwrap();
    }
    assert_eq!(allowed(&guide.mask(false).unwrap().unwrap()), [u32::from(b'o')]);
}

#[test]
fn stop_tokens_may_come_once_the_form_is_complete_and_not_before() {
    let grammars = grammars();
    let constraint = Grammar::Regex { pattern: "ab?".into() }.constraint();
    let mut guide = grammars.guide(&constraint, &[]).unwrap();
    assert_eq!(allowed(&guide.mask(false).unwrap().unwrap()), [97]);
    guide.advance(97).unwrap();
    assert_eq!(allowed(&guide.mask(false).unwrap().unwrap()), [98, STOP, 258]);
    assert_eq!(allowed(&guide.mask(true).unwrap().unwrap()), [98]);
    guide.advance(98).unwrap();
    assert!(guide.mask(true).unwrap().unwrap().over);
}

#[test]
fn what_is_no_form_is_refused_in_words_and_soon() {
    let grammars = grammars();
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let mut nested = json!({"type": "string"});
    for _ in 0..60 {
        nested = json!({"anyOf": [nested, {"type": "array", "items": {"type": "integer"}}]});
    }
    let bad = [
        (Grammar::JsonSchema { schema: "{".into() }, "no JSON"),
        (Grammar::JsonSchema { schema: r#"{"type":"nonsense"}"#.into() }, ""),
        (Grammar::JsonSchema { schema: deep.clone() }, "brackets"),
        (Grammar::JsonSchema { schema: nested.to_string() }, "brackets"),
        (Grammar::JsonSchema { schema: r##"{"$ref":"https://example.com/x"}"##.into() }, ""),
        (Grammar::Regex { pattern: "(".into() }, ""),
        (Grammar::Lark { grammar: "nothing".into() }, ""),
        (Grammar::Lark { grammar: "start: missing".into() }, ""),
        (Grammar::Lark { grammar: "x".repeat(SOURCE_BYTES_MAX + 1) }, "262144"),
        (Grammar::Choice { choices: vec![] }, "1 to 4096"),
    ];
    for (grammar, word) in bad {
        let started = Instant::now();
        let which = serde_json::to_string(&grammar).unwrap();
        let error = grammars.guide(&grammar.constraint(), &[]).and_then(|mut guide| guide.mask(false)).err();
        let error = error.unwrap_or_else(|| panic!("{:.200} is no form", which));
        assert!(error.contains(word) && error.chars().count() <= DETAIL_LETTERS_MAX + 3, "{error}");
        assert!(started.elapsed() < Duration::from_secs(20), "{error}");
    }
}

#[test]
fn what_is_costly_is_refused_or_followed_and_soon_either_way() {
    let grammars = grammars();
    let huge: String = (0..4000).map(|at| format!("\"p{at}\":{{\"type\":\"string\"}},")).collect();
    let costly = [
        Grammar::Regex { pattern: "((((a{1000}){1000}){1000}){1000})".into() },
        Grammar::Regex { pattern: "(a|aa)*(b|bb)*(.*a.{30})*x".into() },
        Grammar::Lark { grammar: "start: start start | start | \"a\"".into() },
        Grammar::Lark { grammar: "start: a a a a a a a a a a\na: b b b b b b\nb: c* c* c*\nc: /.*/".into() },
        Grammar::JsonSchema { schema: format!("{{\"properties\":{{{}\"q\":{{}}}}}}", huge) },
        Grammar::JsonSchema { schema: r##"{"$ref":"#"}"##.into() },
        Grammar::JsonSchema { schema: r#"{"type":"string","pattern":"^(a+)+$","minLength":100000}"#.into() },
        Grammar::JsonSchema {
            schema: r#"{"type":"array","minItems":1000000,"items":{"type":"null"}}"#.into(),
        },
    ];
    for grammar in costly {
        let started = Instant::now();
        let mut guide = grammars.guide(&grammar.clone().constraint(), &[]);
        for _ in 0..40 {
            let Ok(guide) = &mut guide else { break };
            let Ok(Some(mask)) = guide.mask(false) else { break };
            let Some(&token) = allowed(&mask).iter().find(|&&token| token != STOP) else { break };
            if guide.advance(token).is_err() {
                break;
            }
        }
        let which = serde_json::to_string(&grammar).unwrap();
        assert!(started.elapsed() < Duration::from_secs(60), "{:.200}", which);
    }
}

/// Sources cut short, doubled in places, or with characters changed: refused or followed, never a panic, never for long.
#[test]
fn damaged_forms_are_refused_or_followed_and_never_a_panic() {
    let grammars = grammars();
    let schema = r##"{"type":"object","properties":{"a":{"type":"string","pattern":"^[a-z]{1,9}$"},"b":{"type":"array",
        "items":{"$ref":"#/$defs/d"},"minItems":1,"maxItems":3},"c":{"enum":[1,null,"x"]},"d":{"type":"number","minimum":-2.5}},
        "required":["a"],"additionalProperties":false,"$defs":{"d":{"anyOf":[{"type":"integer"},{"const":true}]}}}"##;
    let pattern = r"(?i:ab|[^\d\s]{2,5})+(\d{3}-)?\p{L}*\.?$";
    let grammar =
        "start: word (\",\" word)* end?\nword: /[a-z]+/ | \"(\" start \")\"\nend: \"!\" ~ 1..3\n%ignore / +/";
    let mut rng = Rng::new(17);
    for round in 0..360 {
        let whole = [schema, pattern, grammar][round % 3];
        let mut chars: Vec<char> = whole.chars().collect();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(chars.len().max(1) as u64) as usize;
            match rng.below(4) {
                0 => chars.truncate(at),
                1 => chars.insert(
                    at,
                    *rng_pick(&mut rng, &['{', '}', '[', '(', ')', '"', '\\', '*', '9', '\u{0}', 'é']),
                ),
                2 if at < chars.len() => drop(chars.remove(at)),
                _ => {
                    let copy: Vec<char> = chars[at.min(chars.len())..].iter().take(20).copied().collect();
                    chars.splice(at..at, copy);
                }
            }
        }
        let source: String = chars.into_iter().collect();
        let form = match round % 3 {
            0 => Grammar::JsonSchema { schema: source.clone() },
            1 => Grammar::Regex { pattern: source.clone() },
            _ => Grammar::Lark { grammar: source.clone() },
        };
        let started = Instant::now();
        let mut guide = grammars.guide(&form.constraint(), &[]);
        for _ in 0..6 {
            let Ok(guide) = &mut guide else { break };
            let Ok(Some(mask)) = guide.mask(false) else { break };
            let Some(&token) = allowed(&mask).iter().find(|&&token| token != STOP) else { break };
            if guide.advance(token).is_err() {
                break;
            }
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{source}");
    }
}

fn rng_pick<'v, T>(rng: &mut Rng, values: &'v [T]) -> &'v T {
    &values[rng.below(values.len() as u64) as usize]
}

#[test]
fn a_vocabulary_without_stop_tokens_ends_where_the_form_does() {
    let mut grammars = grammars();
    grammars.stop_tokens = Vec::new();
    let mut guide = grammars.guide(&Grammar::Regex { pattern: "ab?".into() }.constraint(), &[97]).unwrap();
    let mask = guide.mask(false).unwrap().unwrap();
    assert!(!mask.over && allowed(&mask) == [98]);
    guide.advance(98).unwrap();
    assert!(guide.mask(false).unwrap().unwrap().over);
}
