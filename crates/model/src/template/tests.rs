//! What templates may do and what ends them. The golden set is in `tests/template_golden.rs`.

use serde_json::{Value, json};

use super::*;

fn render(source: &str, messages: &[Value]) -> Result<String, TemplateError> {
    ChatTemplate::new(source, Some("<s>"), Some("</s>"))?.render(messages, None, true, &ChatExtra::default())
}

#[test]
fn a_template_that_never_ends_is_ended() {
    let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% set x = a %}{% endfor %}{% endfor %}{% endfor %}";
    assert!(matches!(render(source, &[]), Err(TemplateError::OutOfFuel)));
    let source = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
    assert!(matches!(render(source, &[]), Err(TemplateError::Failed { .. } | TemplateError::OutOfFuel)));
}

#[test]
fn a_template_that_writes_too_much_is_ended() {
    let source = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
    let long = "x".repeat(10_000);
    assert!(matches!(render(source, &[json!({"content": long})]), Err(TemplateError::TooLong)));
}

#[test]
fn what_the_template_raises_is_told_in_its_words() {
    let source =
        "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}";
    let error = render(source, &[json!({"role": "system"})]).unwrap_err();
    assert!(
        matches!(&error, TemplateError::Refused { message } if message == "roles must alternate"),
        "{error}"
    );
    assert_eq!(render(source, &[json!({"role": "user"})]).unwrap(), "");
}

#[test]
fn a_syntax_error_names_the_line() {
    let error = ChatTemplate::new("a\n{% if %}\n", None, None).unwrap_err();
    assert!(matches!(error, TemplateError::Syntax { line: 2, .. }), "{error}");
    assert!(ChatTemplate::new(&"x".repeat(SOURCE_BYTES_MAX + 1), None, None).is_err());
}

#[test]
fn a_failure_names_the_line_and_shows_none_of_the_conversation() {
    let error = render("\n{{ messages[0].content.nothing() }}", &[json!({"content": "secret"})]).unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains("line 2") && !text.contains("secret"), "{text}");
}

#[test]
fn the_callers_variables_are_seen_but_never_replace_the_conversation() {
    let template =
        ChatTemplate::new("{{ mode }} {{ messages | length }} {{ bos_token }}", Some("<s>"), None).unwrap();
    let variables = json!({"mode": "short", "messages": [1, 2, 3]}).as_object().unwrap().clone();
    let extra = ChatExtra { now_unix_s: 0, variables };
    assert_eq!(template.render(&[], None, false, &extra).unwrap(), "short 0 <s>");
}

#[test]
fn marks_for_training_are_transparent() {
    let source = "a\n{%- generation %}\nb{% endgeneration -%}\nc {% raw %}{% x %}{% endraw %}";
    assert_eq!(render(source, &[]).unwrap(), "abc {% x %}");
}

#[test]
fn the_time_is_the_callers() {
    let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }}", None, None).unwrap();
    let extra = ChatExtra { now_unix_s: 1_709_212_029, ..ChatExtra::default() };
    assert_eq!(template.render(&[], None, false, &extra).unwrap(), "29 Feb 2024");
}

#[test]
fn a_template_sees_neither_files_nor_the_whole_state() {
    assert!(render("{% include 'other' %}", &[]).is_err());
    assert!(render("{{ debug() }}", &[]).is_err());
}

#[test]
fn a_tag_that_ends_in_its_own_beginning_is_no_panic() {
    for source in
        ["{%}", "a{%}b", "{%}{%}", "{%-%}", "{%", "{%}%}", "{% generation %}x{% endgeneration %}{%}"]
    {
        let _ = render(source, &[]);
    }
    assert_eq!(render("{% generation %}x{% endgeneration %}", &[]).unwrap(), "x");
}

#[test]
fn a_filter_that_is_asked_for_absurdly_much_is_refused_before_memory_is() {
    for source in [
        "{{ 'a\nb'|indent(99999999999) }}",
        "{{ 'a'|indent(width=99999999999, first=true) }}",
        "{{ [1]|batch(99999999999, 'x')|list }}",
        "{{ [1]|slice(99999999999)|list }}",
        "{{ 'ab' * 99999999999 }}",
        "{{ ['ab'] * 99999999999 }}",
        "{{ '%099999999999d'|format(1) }}",
        "{{ '%*d'|format(99999999999, 1) }}",
        "{{ '%.99999999999f'|format(1.5) }}",
        "{{ range(99999999999)|list }}",
        "{{ [1]|tojson(indent=99999999999) }}",
    ] {
        let outcome = render(source, &[]);
        assert!(outcome.as_ref().map_or(true, |text| text.len() < 100), "{source}: {outcome:?}");
    }
    assert_eq!(render("{{ '%03d %s'|format(7, 'x') }}", &[]).unwrap(), "007 x");
    assert_eq!(render("{{ 'a\n\nb\n'|indent(2) }}", &[]).unwrap(), "a\n\n  b\n");
    assert_eq!(render("{{ 'a\nb'|indent('> ', true) }}", &[]).unwrap(), "> a\n> b");
    assert_eq!(render("{{ 'a\n\nb'|indent(width=1, first=true, blank=true) }}", &[]).unwrap(), " a\n \n b");
}

/// Every template of the golden set, cut short or with some of its bytes changed: refused or rendered, and soon.
#[test]
fn a_damaged_template_is_refused_or_rendered_and_never_a_panic() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates");
    let messages = [
        json!({"role": "user", "content": "Hello"}),
        json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "123456789", "type": "function", "function": {"name": "f", "arguments": {"x": [1, {"y": null}]}}}]}),
        json!({"role": "tool", "tool_call_id": "123456789", "content": "done"}),
    ];
    const MARKS: &[u8] = b"{}%|()[]\"' .0-+*/~x\n";
    let mut rng = base::Rng::new(5);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // As the folder lists them, a failure would come on some machines only.
    paths.sort();
    for path in paths {
        if path.extension().is_none_or(|extension| extension != "jinja") {
            continue;
        }
        let whole = std::fs::read(path).unwrap();
        for _ in 0..150 {
            let mut bytes = whole.clone();
            if rng.below(3) == 0 {
                bytes.truncate(rng.below(bytes.len() as u64) as usize);
            }
            for _ in 0..rng.below(4) {
                let at = rng.below(bytes.len().max(1) as u64) as usize;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = MARKS[rng.below(MARKS.len() as u64) as usize];
                }
            }
            let _ = render(&String::from_utf8_lossy(&bytes), &messages);
        }
    }
}
