//! What an answer must be so that it calls tools, or is of a form after its reasoning: grammars in llguidance's Lark.

use std::fmt::Write;

use base::{Constraint, Grammar};
use serde_json::{Value, json};

use super::json_text::Types;
use super::{Calls, Dialect, ToolChoice, Tools, gemma, harmony, hermes, llama, mistral};

/// A terminal for any text, and what Lark calls white space between parts.
const COMMON: &str = "TEXT: /(.|\\n)*/\nWS: /[ \\t\\r\\n]{0,8}/\n";
/// Schemas within schemas that are followed in a dialect's own notation; below, any value is taken.
const DEPTH_MAX: usize = 6;

/// Rules in the making.
#[derive(Default)]
struct Rules {
    text: String,
    count: usize,
}

impl Rules {
    /// Adds a rule and gives its name.
    fn add(&mut self, body: &str) -> String {
        self.with(body, "")
    }

    fn with(&mut self, body: &str, options: &str) -> String {
        let name = format!("r{}", self.count);
        self.count += 1;
        writeln!(self.text, "{name}{options}: {body}").expect("a string takes what is written");
        name
    }
}

/// A text as a Lark literal.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A text within a Lark regular expression.
fn in_regex(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter {
            '\n' => out.push_str("\\n"),
            // Not all punctuation: an escaped angle bracket is a word's border.
            _ if "\\.+*?()|[]{}^$#&-~/".contains(letter) => out.extend(['\\', letter]),
            _ => out.push(letter),
        }
    }
    out
}

impl Dialect {
    /// What the answer must be so that tools are called as `choice` asks, and as strict tools' schemas say; nothing
    /// where anything goes. `parallel`: more than one call may come.
    pub fn tool_constraint(
        &self,
        tools: &Tools,
        choice: &ToolChoice,
        parallel: bool,
        prompt_tail: &str,
    ) -> Option<Constraint> {
        let strict = tools.iter().any(|tool| tool.strict);
        let must = match choice {
            ToolChoice::Auto if !strict => return None,
            ToolChoice::Auto => false,
            ToolChoice::Required | ToolChoice::Named(_) => true,
        };
        let mut rules = Rules::default();
        let mut calls = Vec::new();
        for tool in tools.iter() {
            let wanted = match choice {
                ToolChoice::Named(name) => tool.name == *name,
                _ => true,
            };
            if wanted {
                calls.push(self.call(&tool.name, &tool.schema(), &mut rules));
            }
        }
        if calls.is_empty() {
            return None;
        }
        let call = rules.add(&calls.join(" | "));
        let several = parallel && !matches!(choice, ToolChoice::Named(_));
        let body = self.calls(&call, must, several, &mut rules);
        Some(self.after_reasoning(&body, rules, prompt_tail))
    }

    /// What the answer must be so that it is of `grammar`'s form once its reasoning is over.
    pub fn answer_constraint(&self, grammar: Grammar, prompt_tail: &str) -> Constraint {
        let reasons = match &self.thinking {
            Some(thinking) => !thinking.closed_in(prompt_tail),
            None => self.calls == Calls::Harmony,
        };
        if !reasons {
            return grammar.constraint();
        }
        let mut rules = Rules::default();
        let body = match &grammar {
            Grammar::JsonObject => "%json {\"type\": \"object\"}".to_owned(),
            Grammar::JsonSchema { schema } => format!("%json {schema}"),
            Grammar::Regex { pattern } => format!("/{}/", slashes(pattern)),
            Grammar::Choice { choices } => {
                choices.iter().map(|text| literal(text)).collect::<Vec<_>>().join(" | ")
            }
            // A grammar of the caller's own says all of the answer.
            Grammar::Lark { .. } => return self.only_after(grammar, prompt_tail),
        };
        let body = rules.add(&body);
        let body = match self.calls {
            Calls::Harmony => {
                let head =
                    [harmony::CHANNEL, "final", harmony::MESSAGE].map(|part| self.mark(part)).join(" ");
                format!("{head} {body}")
            }
            _ => body,
        };
        self.after_reasoning(&body, rules, prompt_tail)
    }

    fn only_after(&self, grammar: Grammar, prompt_tail: &str) -> Constraint {
        let opened = self.thinking.as_ref().filter(|thinking| thinking.opened_in(prompt_tail));
        Constraint { grammar, after: opened.map(|thinking| thinking.close.clone()) }
    }

    /// `body` once the reasoning is over, if there is any.
    fn after_reasoning(&self, body: &str, mut rules: Rules, prompt_tail: &str) -> Constraint {
        let mut after = None;
        let start = match &self.thinking {
            Some(thinking) if thinking.opened_in(prompt_tail) => {
                after = Some(thinking.close.clone());
                format!("WS {body}")
            }
            Some(thinking) if !thinking.closed_in(prompt_tail) => {
                let (open, close) = (thinking.open.trim_end(), &thinking.close);
                let reasoning = if self.special.contains_key(close) {
                    let rest = &thinking.open[open.len()..];
                    let open = self.opening(open);
                    let rest = if rest.is_empty() { String::new() } else { literal(rest) };
                    format!("{open} {rest} TEXT {} WS", self.mark(close))
                } else {
                    let text = format!("/{}(.|\\n)*{}/", in_regex(open), in_regex(close));
                    format!("{} WS", rules.with(&text, "[lazy]"))
                };
                let reasoning = rules.add(&reasoning);
                format!("{reasoning}? {body}")
            }
            _ if self.calls == Calls::Harmony => {
                let [channel, message, end, start] =
                    [harmony::CHANNEL, harmony::MESSAGE, "<|end|>", harmony::START]
                        .map(|part| self.mark(part));
                let reasoning =
                    rules.add(&format!("{channel} \"analysis\" {message} TEXT {end} {start} \"assistant\""));
                format!("{reasoning}* {body}")
            }
            _ => body.to_owned(),
        };
        let grammar = format!("%llguidance {{}}\nstart: {start}\n{COMMON}{}", rules.text);
        Constraint { grammar: Grammar::Lark { grammar }, after }
    }

    /// A mark as the grammar spells it: as its token, where it is one of the model's own.
    fn mark(&self, mark: &str) -> String {
        self.special.get(mark).map_or_else(|| literal(mark), |id| format!("<[{id}]>"))
    }

    /// A text that begins with a mark.
    fn opening(&self, text: &str) -> String {
        let mark = self.special.keys().filter(|mark| text.starts_with(mark.as_str())).max_by_key(|m| m.len());
        match mark {
            Some(mark) if mark.len() < text.len() => {
                format!("{} {}", self.mark(mark), literal(&text[mark.len()..]))
            }
            _ => self.mark(text),
        }
    }

    /// The calls of an answer: `must`, at least one and nothing else; otherwise text around them is free.
    fn calls(&self, call: &str, must: bool, several: bool, rules: &mut Rules) -> String {
        let (open, close) = self.around();
        if must {
            let one = format!("{open} {call} {close}");
            return match (self.calls, several) {
                (Calls::Mistral { named: false }, true) => {
                    format!("{open} \"[\" {call} (\", \" {call})* \"]\"")
                }
                (Calls::Mistral { named: false }, false) => format!("{open} \"[\" {call} \"]\""),
                (Calls::Llama, true) => format!("{call} (\"; \" {call})*"),
                (Calls::Harmony, _) | (_, false) => one,
                (_, true) => {
                    let one = rules.add(&one);
                    format!("{one} (WS {one})*")
                }
            };
        }
        let body = match self.calls {
            Calls::Mistral { named: false } => format!("\"[\" {call} (\", \" {call})* \"]\""),
            Calls::Llama => {
                let text = rules.add("/[^{](.|\\n)*/");
                return rules.add(&format!("{call} | {text}"));
            }
            _ => format!("{call} {close}"),
        };
        let trigger = self.trigger();
        if self.special.contains_key(trigger) {
            let one = rules.add(&format!("TEXT {open} {body}"));
            return format!("{one}* TEXT");
        }
        let head = rules.with(&format!("/(.|\\n)*{}/", in_regex(trigger)), "[lazy]");
        let rest = self.around_after_trigger();
        let one = rules.add(&format!("{head} {rest} {body}"));
        let end = rules.add("TEXT");
        format!("{one}* {end}")
    }

    /// The text that says that a call comes.
    fn trigger(&self) -> &'static str {
        match self.calls {
            Calls::Hermes | Calls::QwenXml => hermes::OPEN,
            Calls::Llama => llama::TAG,
            Calls::Mistral { .. } => mistral::OPEN,
            Calls::Gemma(marks) => marks.open,
            Calls::Harmony => " to=functions.",
        }
    }

    fn around_after_trigger(&self) -> &'static str {
        match self.calls {
            Calls::Hermes | Calls::QwenXml => "WS",
            _ => "",
        }
    }

    /// What stands before and after a call.
    fn around(&self) -> (String, String) {
        match self.calls {
            Calls::Hermes | Calls::QwenXml => {
                (format!("{} WS", self.mark(hermes::OPEN)), format!("WS {}", self.mark(hermes::CLOSE)))
            }
            Calls::Llama => (String::new(), String::new()),
            Calls::Mistral { .. } => (self.mark(mistral::OPEN), String::new()),
            Calls::Gemma(marks) => (self.mark(marks.open), self.mark(marks.close)),
            Calls::Harmony => {
                (format!("{} \"commentary to=functions.\"", self.mark(harmony::CHANNEL)), String::new())
            }
        }
    }

    /// One call of a tool; gives the rule's name.
    fn call(&self, name: &str, schema: &Value, rules: &mut Rules) -> String {
        let object = |key: &str| {
            let mut schema = schema.clone();
            let guidance = schema.as_object_mut().and_then(|fields| fields.remove("x-guidance"));
            let mut call = json!({
                "type": "object",
                "properties": {"name": {"const": name}, key: schema},
                "required": ["name", key],
                "additionalProperties": false,
            });
            if let Some(guidance) = guidance {
                call["x-guidance"] = guidance;
            }
            format!("%json {call}")
        };
        let body = match self.calls {
            Calls::Hermes | Calls::Mistral { named: false } => object("arguments"),
            Calls::Llama => object("parameters"),
            Calls::Mistral { named: true } => {
                let arguments = rules.add(&format!("%json {schema}"));
                format!("{} {} {arguments}", literal(name), self.mark(mistral::ARGUMENTS))
            }
            Calls::Harmony => {
                let arguments = rules.add(&format!("%json {schema}"));
                let constrain = self.mark("<|constrain|>");
                format!(
                    "{} {constrain} \"json\" {} {arguments}",
                    literal(&format!("{name} ")),
                    self.mark(harmony::MESSAGE)
                )
            }
            Calls::QwenXml => {
                let parameters = parameters(schema, rules);
                format!("{} {parameters} \"</function>\"", literal(&format!("<function={name}>\n")))
            }
            Calls::Gemma(marks) => {
                let arguments = self.gemma_object(schema, schema, marks, 0, rules);
                format!("{} {arguments}", literal(&format!("call:{name}")))
            }
        };
        rules.add(&body)
    }

    /// A value in Gemma's notation.
    fn gemma_value(
        &self,
        schema: &Value,
        root: &Value,
        marks: gemma::Marks,
        depth: usize,
        rules: &mut Rules,
    ) -> String {
        let quote = self.mark(marks.quote);
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            let one = |value: &Value| match value {
                Value::String(text) => format!("{quote} {} {quote}", literal(text)),
                other => literal(&other.to_string()),
            };
            return rules.add(&values.iter().map(one).collect::<Vec<_>>().join(" | "));
        }
        let text = if self.special.contains_key(marks.quote) {
            format!("{quote} TEXT {quote}")
        } else {
            let text = format!("/(.|\\n)*{}/", in_regex(marks.quote));
            format!("{quote} {}", rules.with(&text, "[lazy]"))
        };
        match schema.get("type").and_then(Value::as_str) {
            Some("string") => rules.add(&text),
            // Written as in JSON, so that bounds hold too.
            Some("integer" | "number") => rules.add(&format!("%json {schema}")),
            Some("boolean") => rules.add("\"true\" | \"false\""),
            Some("null") => rules.add("\"null\""),
            Some("array") if depth < DEPTH_MAX => {
                let items = schema.get("items").unwrap_or(&Value::Null);
                let item = self.gemma_value(items, root, marks, depth + 1, rules);
                rules.add(&format!("\"[\" ({item} (\",\" {item})*)? \"]\""))
            }
            Some("object") if depth < DEPTH_MAX && schema.get("properties").is_some() => {
                self.gemma_object(schema, root, marks, depth + 1, rules)
            }
            _ => {
                let any = format!("r{}", rules.count);
                rules.add(&format!(
                    "{text} | /-?[0-9]{{1,18}}(\\.[0-9]{{1,17}})?/ | \"true\" | \"false\" | \"null\" \
                     | \"[\" ({any} (\",\" {any})*)? \"]\" | \"{{\" (/[A-Za-z_][A-Za-z0-9_]{{0,63}}/ \":\" {any} \
                     (\",\" /[A-Za-z_][A-Za-z0-9_]{{0,63}}/ \":\" {any})*)? \"}}\""
                ))
            }
        }
    }

    fn gemma_object(
        &self,
        schema: &Value,
        root: &Value,
        marks: gemma::Marks,
        depth: usize,
        rules: &mut Rules,
    ) -> String {
        let entry = |key: &str, schema: &Value, rules: &mut Rules| {
            let value = self.gemma_value(schema, root, marks, depth, rules);
            rules.add(&format!("{} {value}", literal(&format!("{key}:"))))
        };
        let entries = entries(schema, rules, entry);
        let list = separated(&entries, rules);
        rules.add(&format!("\"{{\" {list} \"}}\""))
    }
}

/// Each property's rule, and whether it is required.
fn entries(
    schema: &Value,
    rules: &mut Rules,
    entry: impl Fn(&str, &Value, &mut Rules) -> String,
) -> Vec<(String, bool)> {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema.get("properties").and_then(Value::as_object);
    properties
        .into_iter()
        .flatten()
        .map(|(key, value)| (entry(key, value, rules), required.contains(&key.as_str())))
        .collect()
}

/// Entries in their order with commas between: those that are not required may lack.
fn separated(entries: &[(String, bool)], rules: &mut Rules) -> String {
    // `rest` are the entries after this one, each with a comma before it; `first` the same where none came yet.
    let (mut rest, mut first) = (String::new(), String::new());
    for (entry, required) in entries.iter().rev() {
        let after = if rest.is_empty() { String::new() } else { rules.add(&rest) };
        let none = if first.is_empty() { "\"\"".to_owned() } else { rules.add(&first) };
        if *required {
            first = format!("{entry} {after}");
            rest = format!("\",\" {entry} {after}");
        } else {
            first = format!("{entry} {after} | {none}");
            rest = format!("(\",\" {entry})? {after}");
        }
    }
    if first.is_empty() { "\"\"".to_owned() } else { rules.add(&first) }
}

/// The arguments of Qwen's tags.
fn parameters(schema: &Value, rules: &mut Rules) -> String {
    let entry = |key: &str, schema: &Value, rules: &mut Rules| {
        let head = literal(&format!("<parameter={key}>\n"));
        let texts =
            schema.get("enum").and_then(Value::as_array).filter(|all| all.iter().all(Value::is_string));
        let value = match texts {
            Some(texts) => {
                let texts: Vec<String> = texts.iter().filter_map(Value::as_str).map(literal).collect();
                format!("({}) \"\\n</parameter>\\n\"", texts.join(" | "))
            }
            None if Types::of(schema).only_text() => rules.with("/(.|\\n)*\\n<\\/parameter>\\n/", "[lazy]"),
            None => format!("{} \"\\n</parameter>\\n\"", rules.add(&format!("%json {schema}"))),
        };
        rules.add(&format!("{head} {value}"))
    };
    let entries = entries(schema, rules, entry);
    let part = |(rule, required): &(String, bool)| if *required { rule.clone() } else { format!("{rule}?") };
    entries.iter().map(part).collect::<Vec<_>>().join(" ")
}

/// A regular expression between slashes: a slash within it is escaped.
fn slashes(pattern: &str) -> String {
    let mut out = String::new();
    let mut escaped = false;
    for letter in pattern.chars() {
        if letter == '/' && !escaped {
            out.push('\\');
        }
        if letter == '\n' {
            out.push_str("\\n");
        } else {
            out.push(letter);
        }
        escaped = letter == '\\' && !escaped;
    }
    out
}
