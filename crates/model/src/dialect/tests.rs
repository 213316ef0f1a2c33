//! What each dialect's answers turn out to be, whatever they are cut into.

use super::*;
use proptest::prelude::*;
use serde_json::json;

const LETTERS: &str = r#"{"added_tokens": [], "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}"#;

/// Words of a template that give each dialect away.
const HERMES: &str = "tools <tool_call> <think></think>";
const XML: &str = "tools <tool_call><function=x><parameter=y> <think></think>";
const LLAMA: &str = "tools <|start_header_id|> <|python_tag|>";
const MISTRAL: &str = "tools [TOOL_CALLS] [THINK][/THINK]";
const MISTRAL_NAMED: &str = "tools [TOOL_CALLS]name[ARGS]";
const GEMMA: &str = "tools <|tool_call>call: <|channel>thought";
const HARMONY: &str = "tools <|channel|><|message|>";
const ALL: [&str; 8] = [HERMES, XML, LLAMA, MISTRAL, MISTRAL_NAMED, GEMMA, HARMONY, "none"];

fn dialect(template: &str) -> Dialect {
    Dialect::new(template, &Tokenizer::from_json(LETTERS.as_bytes()).unwrap())
}

fn tools() -> Tools {
    Tools::from_openai(&json!([
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "raw": {"type": ["object", "null"]}},
            "required": ["city"]}}},
        {"type": "function", "function": {"name": "now"}},
    ]))
}

fn parser(template: &str, tail: &str) -> Parser {
    dialect(template).parser(ParserOptions { tools: tools(), reasoning: true, prompt_tail: tail.to_owned() })
}

/// Pieces as one text: `c:` content, `r:` reasoning, `name(arguments)` calls, `;` their ends.
fn shown(pieces: Vec<Piece>) -> String {
    let mut merged = Vec::new();
    let mut into = Pieces::new(&mut merged);
    pieces.into_iter().for_each(|piece| into.push(piece));
    let show = |piece: Piece| match piece {
        Piece::Content(text) => format!("c:{text}"),
        Piece::Reasoning(text) => format!("r:{text}"),
        Piece::ToolCall { index, name } => format!("{index}:{name}"),
        Piece::ToolArguments { text, .. } => format!("({text})"),
        Piece::ToolEnd { .. } => ";".to_owned(),
    };
    merged.into_iter().map(show).collect::<Vec<_>>().join("|")
}

fn read_cut(template: &str, tail: &str, pieces: &[&str]) -> String {
    let mut parser = parser(template, tail);
    let mut out = Vec::new();
    for piece in pieces {
        parser.push(piece, &mut out);
    }
    parser.finish(&mut out);
    shown(out)
}

fn read(template: &str, text: &str) -> String {
    read_cut(template, "", &[text])
}

#[test]
fn hermes_calls_come_out_with_their_arguments_as_written() {
    let text = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln }\\\"\"}}\n</tool_call>\n\
                <tool_call>\n{\"arguments\": {\"a\": [1, {}]}, \"name\": \"now\"}\n</tool_call>";
    assert_eq!(
        read(HERMES, text),
        "c:Let me see.|0:weather|({\"city\": \"Köln }\\\"\"})|;|1:now|({\"a\": [1, {}]})|;"
    );
    assert_eq!(read(HERMES, "<tool_call>{\"name\":\"now\"}</tool_call>"), "0:now|({})|;");
    let spelled = r#"<tool_call>{"name":"now","arguments":"{\"a\":1}"}</tool_call>"#;
    assert_eq!(read(HERMES, spelled), "0:now|({\"a\":1})|;");
}

#[test]
fn what_is_no_call_is_content_and_nothing_of_it_is_lost() {
    for text in [
        "a <tool_call> b",
        "<tool_call>{\"nome\": 1}</tool_call>",
        "<tool_call>[1]</tool_call>",
        "<tool_call>{\"name\": 7}",
        "<tool_call",
        "<tool_call>{\"name\": \"no",
        "x < y && y <tool",
        "ends with white space \n\n",
    ] {
        assert_eq!(read(HERMES, text), format!("c:{text}"));
    }
    let cut = "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": \"b";
    assert_eq!(read(HERMES, cut), "0:now|({\"a\": \"b)|;");
    assert_eq!(
        read(HERMES, "<tool_call><tool_call>{\"name\": \"now\"}</tool_call>"),
        "c:<tool_call>|0:now|({})|;"
    );
}

#[test]
fn arguments_come_out_while_they_are_generated() {
    let mut parser = parser(HERMES, "");
    let mut out = Vec::new();
    parser.push("<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Ber", &mut out);
    assert_eq!(shown(out), "0:weather|({\"city\": \"Ber)");
    let mut parser = super::tests::parser(HERMES, "");
    let mut out = Vec::new();
    parser.push("Is 3 <", &mut out);
    assert_eq!(shown(out.clone()), "c:Is 3");
    parser.push(" 4?", &mut out);
    assert_eq!(shown(out), "c:Is 3 < 4?");
}

#[test]
fn reasoning_is_told_apart_also_where_the_prompt_opened_it() {
    assert_eq!(read(HERMES, "<think>\nHm.\n</think>\n\nYes."), "r:Hm.|c:Yes.");
    assert_eq!(
        read_cut(HERMES, "assistant\n<think>\n", &["Hm.\n", "\n</thi", "nk>\n\nYes."]),
        "r:Hm.|c:Yes."
    );
    assert_eq!(read_cut(HERMES, "<think>\n\n</think>\n\n", &["Yes <think>"]), "c:Yes <think>");
    assert_eq!(read_cut(HERMES, "<think>\n", &["cut off"]), "r:cut off");
    assert_eq!(read(MISTRAL, "[THINK]a[/THINK]b"), "r:a|c:b");
    let plain = dialect(HERMES).parser(ParserOptions::default());
    let mut out = Vec::new();
    let mut parser = plain;
    parser.push("<think>a</think> <tool_call>", &mut out);
    parser.finish(&mut out);
    assert_eq!(shown(out), "c:<think>a</think> <tool_call>");
}

#[test]
fn xml_values_become_the_json_that_the_schema_wants() {
    let text = "<think>t</think>\n<tool_call>\n<function=weather>\n<parameter=city>\nBad \"Ems\"\n</parameter>\n\
                <parameter=days>\n3\n</parameter>\n<parameter=raw>\nNone\n</parameter>\n<parameter=odd>\n5\n</parameter>\n\
                </function>\n</tool_call>";
    let told = r#"r:t|0:weather|({"city": "Bad \"Ems\"", "days": 3, "raw": null, "odd": "5"})|;"#;
    assert_eq!(read(XML, text), told);
    assert_eq!(read(XML, "<tool_call>\n<function=now>\n</function>\n</tool_call>\n"), "0:now|({})|;");
    assert_eq!(read(XML, "see <tool_call> tags"), "c:see <tool_call> tags");
    assert_eq!(read(XML, "a <function= b\nc>"), "c:a <function= b\nc>");
    let lines = "<function=weather><parameter=city>\na\n\nb\n\n</parameter></function>";
    assert_eq!(read(XML, lines), "0:weather|({\"city\": \"a\\n\\nb\\n\"})|;");
}

#[test]
fn llamas_calls_are_whole_answers_and_other_json_is_content() {
    let call = r#"{"name": "weather", "parameters": {"city": "Bonn"}}"#;
    assert_eq!(read(LLAMA, call), "0:weather|({\"city\": \"Bonn\"})|;");
    assert_eq!(
        read(LLAMA, &format!("<|python_tag|>{call}; {call}")),
        "0:weather|({\"city\": \"Bonn\"})|;|1:weather|({\"city\": \"Bonn\"})|;"
    );
    for text in [
        r#"{"name": "Bob", "age": 3}"#,
        r#"{"name": "Bob", "parameters": {}}"#,
        r#"{"name": "weather"}"#,
        "  {\"city\": 1}",
        "Sure: {\"name\": \"now\", \"parameters\": {}}",
        "<|python_tag|>print(1)",
    ] {
        assert_eq!(read(LLAMA, text), format!("c:{text}"));
    }
}

#[test]
fn mistral_writes_lists_or_names() {
    let list = r#"[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "a"}, "id": "abcdefghi"}, {"name": "now", "arguments": {}}]"#;
    assert_eq!(read(MISTRAL, list), "0:weather|({\"city\": \"a\"})|;|1:now|({})|;");
    let named = r#"Ok.[TOOL_CALLS]weather[ARGS]{"city": "a"}[TOOL_CALLS]now[CALL_ID]x1[ARGS]{}"#;
    assert_eq!(read(MISTRAL_NAMED, named), "c:Ok.|0:weather|({\"city\": \"a\"})|;|1:now|({})|;");
    assert_eq!(read(MISTRAL, "[TOOL_CALLS] [nothing]"), "c:[TOOL_CALLS] [nothing]");
    assert_eq!(read(MISTRAL, "[TOOL_CALLS]a\nb"), "c:[TOOL_CALLS]a\nb");
}

#[test]
fn gemmas_notation_becomes_json() {
    let text = "<|channel>thought\nHm.<channel|>Now:<|tool_call>call:weather{city:<|\"|>A \"b\"\n{c}<|\"|>,days:3,raw:{a:true,l:[1,<|\"|>x<|\"|>]},w:word}<tool_call|>";
    let told = r#"r:Hm.|c:Now:|0:weather|({"city": "A \"b\"\n{c}", "days": 3, "raw": {"a": true, "l": [1, "x"]}, "w": "word"})|;"#;
    assert_eq!(read(GEMMA, text), told);
    assert_eq!(read(GEMMA, "<|tool_call>call:now{}<tool_call|>"), "0:now|({})|;");
    assert_eq!(read(GEMMA, "a <|tool_call> b"), "c:a <|tool_call> b");
}

#[test]
fn harmonys_channels_are_reasoning_content_and_calls() {
    let text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather \
                <|constrain|>json<|message|>{\"city\": \"a\"}<|call|>";
    assert_eq!(read(HARMONY, text), "r:Hm.|0:weather|({\"city\": \"a\"})|;");
    let other = "<|channel|>commentary<|message|>First.<|end|><|start|>assistant to=functions.now<|channel|>commentary \
                 json<|message|>{}";
    assert_eq!(read(HARMONY, other), "c:First.|0:now|({})|;");
    assert_eq!(read(HARMONY, "<|channel|>final<|message|>Yes."), "c:Yes.");
    assert_eq!(read(HARMONY, "Plain."), "c:Plain.");
    let tail = "<|start|>assistant<|channel|>final<|message|>";
    assert_eq!(read_cut(HARMONY, tail, &["Yes."]), "c:Yes.");
}

#[test]
fn past_calls_take_the_shape_that_templates_read() {
    let messages = [
        json!({"role": "user", "content": "?"}),
        json!({"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"a\"}"}},
            {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}}]}),
        json!({"role": "tool", "tool_call_id": "call_1", "content": "rain"}),
        json!({"role": "tool", "tool_call_id": "call_2", "content": "noon"}),
    ];
    let hermes = dialect(HERMES).messages(&messages, &tools());
    assert_eq!(hermes[1]["tool_calls"][0]["function"]["arguments"], json!({"city": "a"}));
    assert_eq!((hermes[2]["name"].as_str(), hermes[1]["content"].as_str()), (Some("weather"), Some("")));
    let llama = dialect(LLAMA).messages(&messages, &tools());
    let roles: Vec<&str> = llama.iter().filter_map(|message| message["role"].as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "assistant", "tool"]);
    assert_eq!(dialect(HARMONY).messages(&messages, &tools())[1]["thinking"], "hm");
    let mistral = dialect(MISTRAL).messages(&messages, &tools());
    let id = mistral[1]["tool_calls"][0]["id"].as_str().unwrap();
    assert!(id.len() == 9 && mistral[2]["tool_call_id"] == id);
    let generic = dialect("none").messages(&messages, &tools());
    assert!(generic[0]["content"].as_str().unwrap().contains("\"name\":\"weather\""));
    assert!(generic[2]["content"].as_str().unwrap().contains("<tool_call>"));
    assert_eq!(generic[3], json!({"role": "user", "content": "<tool_response>\nrain\n</tool_response>"}));
}

#[test]
fn a_choice_of_tools_becomes_a_grammar_and_no_choice_none() {
    for template in ALL {
        let dialect = dialect(template);
        assert!(dialect.tool_constraint(&tools(), &ToolChoice::Auto, true, "").is_none());
        let named = dialect.tool_constraint(&tools(), &ToolChoice::Named("now".into()), true, "").unwrap();
        let base::Grammar::Lark { grammar } = named.grammar else { panic!("calls are a grammar") };
        assert!(grammar.contains("now") && !grammar.contains("weather"), "{grammar}");
        assert!(dialect.tool_constraint(&tools(), &ToolChoice::Named("none".into()), true, "").is_none());
    }
    let opened = dialect(HERMES).tool_constraint(&tools(), &ToolChoice::Required, true, "<think>\n").unwrap();
    assert_eq!(opened.after.as_deref(), Some("</think>"));
}

/// Fragments of marks, names and JSON: texts of them are full of near misses.
fn fragments() -> impl Strategy<Value = String> {
    let parts = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "<function=",
        "weather",
        ">",
        "<parameter=",
        "city",
        "</parameter>",
        "</function>",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "[",
        "]",
        "{",
        "}",
        "\"name\"",
        ":",
        ",",
        "\"weather\"",
        "\"now\"",
        "\"arguments\"",
        "\"parameters\"",
        "\"a\"",
        "1",
        "\\",
        "\"",
        " ",
        "\n",
        "<think>",
        "</think>",
        "[THINK]",
        "[/THINK]",
        "<|tool_call>",
        "<tool_call|>",
        "call:",
        "<|\"|>",
        "<|channel>thought\n",
        "<channel|>",
        "<|channel|>",
        "<|message|>",
        "<|start|>",
        "<|end|>",
        "<|call|>",
        "analysis",
        " to=functions.now",
        "final",
        "é",
        "{\"name\": \"weather\", \"arguments\": {",
        "{\"name\": \"now\", \"parameters\": {}}",
        ";",
        "true",
        "days",
    ]);
    prop::collection::vec(parts, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn cuts_make_no_difference(
        text in fragments(),
        which in 0..ALL.len(),
        opened in any::<bool>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let tail = if opened { "<think>\n" } else { "" };
        let whole = read_cut(ALL[which], tail, &[&text]);
        let letters: Vec<String> = text.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        prop_assert_eq!(&whole, &read_cut(ALL[which], tail, &letters));
        let boundaries: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| boundaries[cut.index(boundaries.len())]).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
        prop_assert_eq!(&whole, &read_cut(ALL[which], tail, &pieces));
    }

    #[test]
    fn text_without_marks_comes_out_as_it_is(text in "[a-z é\n.,!?()]{0,60}", which in 0..ALL.len()) {
        let told = read(ALL[which], &text);
        prop_assert_eq!(told.strip_prefix("c:").unwrap_or(&told), text);
    }
}
