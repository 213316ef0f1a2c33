"""What transformers renders from chat templates in the style of those in use, for conversations of every kind.

    python tools/reference/templates.py FOLDER      the same of all *.jinja in FOLDER, for PHALANX_TEMPLATES=FOLDER
"""

import copy
import datetime
import sys
from pathlib import Path

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

from files import made_with, write_json

NOW = datetime.datetime(2025, 3, 7, 16, 5, 9, tzinfo=datetime.timezone.utc)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "The weather <now> & \"soon\" in a city's centre, in °C.",
        "parameters": {
            "type": "object",
            "properties": {
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "city": {"type": "string", "description": "Such as \"Zürich\""},
                "days": {"type": "integer", "minimum": 1, "maximum": 7.5},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}}}

USER = {"role": "user", "content": "What's the weather like?"}
CALL = {
    "role": "assistant", "content": None,
    "tool_calls": [{"id": "c1", "type": "function",
                    "function": {"name": "get_weather", "arguments": {"city": "Zürich <3", "days": 2, "exact": 0.5}}}],
}
CALLS = copy.deepcopy(CALL)
CALLS["content"] = "I look."
CALLS["tool_calls"].append({"id": "c2", "type": "function", "function": {"name": "clock", "arguments": {}}})

CONVERSATIONS = {
    "one question": {"messages": [USER]},
    "no generation prompt": {"messages": [USER, {"role": "assistant", "content": "Fine."}], "add_generation_prompt": False},
    "system message": {"messages": [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "Hello there", "name": "Ada"}]},
    "many turns": {"messages": [
        {"role": "system", "content": "You are kind."}, {"role": "user", "content": " Hi <b>&amp; 'you' \"there\"\n\n"},
        {"role": "assistant", "content": "Grüße, 世界 🙂"}, {"role": "user", "content": "1\r\n2\ttab"},
        {"role": "assistant", "content": "…"}, {"role": "user", "content": "Bye {{ not }} {% a %} template"}]},
    "tools": {"messages": [USER], "tools": [WEATHER, CLOCK]},
    "tools and system": {"messages": [{"role": "system", "content": "Use them."}, USER], "tools": [WEATHER]},
    "tool call": {"messages": [USER, CALL, {"role": "tool", "tool_call_id": "c1", "content": "{\"t\": 21.5}"}], "tools": [WEATHER]},
    "two tool calls": {"messages": [USER, CALLS, {"role": "tool", "content": "sunny"}, {"role": "tool", "content": "noon"},
                                    {"role": "assistant", "content": "Sunny, at noon."}, {"role": "user", "content": "Thanks"}],
                       "tools": [WEATHER, CLOCK]},
    "reasoning in the text": {"messages": [USER, {"role": "assistant", "content": "<think>\nHmm.\n</think>\n\nRain."},
                                           {"role": "user", "content": "Sure?"},
                                           {"role": "assistant", "content": "<think>\nWell.\n</think>\n\nYes."}],
                              "add_generation_prompt": False},
    "reasoning beside the text": {"messages": [USER, {"role": "assistant", "content": "Rain.", "reasoning_content": "\nHmm.\n"}],
                                  "add_generation_prompt": False},
    "thinking switched off": {"messages": [USER], "variables": {"enable_thinking": False}},
    "tools not in the user's message": {"messages": [USER], "tools": [WEATHER],
                                        "variables": {"tools_in_user_message": False, "date_string": "1 Jan 2000"}},
    "roles do not alternate": {"messages": [USER, USER]},
    "assistant first": {"messages": [{"role": "assistant", "content": "Hello!"}]},
    "a call thought about": {"messages": [
        {"role": "system", "content": "Think."}, USER, {**CALL, "reasoning_content": "I need the weather.", "content": ""},
        {"role": "tool", "tool_call_id": "c1", "name": "get_weather", "content": "rain"}], "tools": [WEATHER, CLOCK]},
    "a call thought about in harmony": {"messages": [
        {"role": "developer", "content": "Think."}, USER, {**CALL, "thinking": "I need the weather.", "content": None},
        {"role": "tool", "tool_call_id": "c1", "name": "get_weather", "content": "rain"},
        {"role": "assistant", "thinking": "It rains.", "content": "Rain."}, {"role": "user", "content": "And there?"}],
        "tools": [WEATHER], "variables": {"reasoning_effort": "high"}},
    "texts in parts": {"messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}]}]},
    "arguments as a text": {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "clock", "arguments": "{\"zone\": \"UTC\"}"}}]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "noon"}], "tools": [CLOCK]},
    "numbers of every kind": {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "123456789", "type": "function", "function": {"name": "f", "arguments": {
            "large": 12345678901234567, "small": 1e-7, "whole": 3.0, "huge": 1e22, "minus": -0.0, "yes": True, "none": None,
            "deep": {"list": [1, [2.5, {"x": "é\u2028 \\ / \u0007"}]], "empty": {}, "nothing": []}}}}]},
        {"role": "tool", "tool_call_id": "123456789", "content": [{"type": "text", "text": "done"}]}]},
    "thinking switched on": {"messages": [USER, {"role": "assistant", "content": "Rain.", "reasoning_content": "Clouds."},
                                          {"role": "user", "content": "Sure?"}],
                             "variables": {"enable_thinking": True, "thinking": True}},
    "empty texts": {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": ""}]},
    "no messages": {"messages": []},
}


def render(source: str, conversation: dict) -> dict:
    compiled = _compile_jinja_template(source)
    compiled.environment.globals["strftime_now"] = lambda form: NOW.strftime(form)
    try:
        text = compiled.render(
            messages=copy.deepcopy(conversation["messages"]), tools=copy.deepcopy(conversation.get("tools")), documents=None,
            add_generation_prompt=conversation.get("add_generation_prompt", True), bos_token="<s>", eos_token="</s>",
            **conversation.get("variables", {}))
        return {"text": text}
    except jinja2.UndefinedError:
        return {"fails": True}
    except jinja2.TemplateError as error:
        return {"refused": str(error)}
    except TypeError:
        return {"fails": True}


def make(folder: Path) -> None:
    cases = []
    for path in sorted(folder.glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        for name, conversation in CONVERSATIONS.items():
            cases.append({"template": path.name, "conversation": name, **render(source, conversation)})
    write_json(folder / "golden.json", {
        "made_with": made_with() | {"jinja2": jinja2.__version__}, "now_unix_s": int(NOW.timestamp()), "bos": "<s>", "eos": "</s>",
        "conversations": CONVERSATIONS, "cases": cases,
    })
    ends = {key: sum(key in case for case in cases) for key in ["text", "refused", "fails"]}
    print(f"{len(cases)} renderings: {ends}")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
