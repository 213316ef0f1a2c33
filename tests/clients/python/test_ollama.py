"""The `ollama` client against a running fleet."""

import json

import ollama
import pytest
from conftest import FIXTURE, fleet

HELLO = [{"role": "user", "content": "Hello! Who are you?"}]
CALM = {"temperature": 0, "num_predict": 64}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def llama(served):
    """The client, with the key in its header."""
    return ollama.Client(host=served["url"], headers={"Authorization": f"Bearer {served['key']}"})


def test_models_are_listed_and_shown(llama, model):
    assert model in [one.model for one in llama.list().models]
    assert model in [one.model for one in llama.ps().models]
    shown = llama.show(model)
    assert shown.details.family and "completion" in shown.capabilities
    assert llama.show(f"{model}:latest").modelinfo["general.architecture"] == shown.details.family


def test_a_chat_answers_and_a_stream_gives_the_same(llama, model):
    whole = llama.chat(model=model, messages=HELLO, options=CALM)
    assert "Phalanx" in whole.message.content
    assert whole.done and whole.done_reason in ("stop", "length")
    assert 0 < whole.eval_count <= 64 and whole.prompt_eval_count > 0 and whole.total_duration > 0
    parts = list(llama.chat(model=f"{model}:latest", messages=HELLO, options=CALM, stream=True, keep_alive="5m"))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert len(parts) > 2 and [part.done for part in parts].count(True) == 1 and parts[-1].done
    assert parts[-1].eval_count == whole.eval_count


def test_texts_are_embedded(embedder):
    llama = ollama.Client(host=embedder["url"], headers={"Authorization": f"Bearer {embedder['key']}"})
    cases = json.loads((FIXTURE / "expected.json").read_text())["cases"]
    got = llama.embed(model="embed", input=[case["text"] for case in cases], keep_alive="5m")
    for found, case in zip(got.embeddings, cases, strict=True):
        assert list(found) == pytest.approx(case["vector"], abs=2e-4)
    one = llama.embeddings(model="embed", prompt=cases[0]["text"])
    assert list(one.embedding) == pytest.approx(cases[0]["vector"], abs=2e-4)
    assert llama.show("embed").capabilities == ["embedding"]


def test_a_text_goes_on_raw_and_through_the_template(llama, model):
    raw = llama.generate(model=model, prompt="Once upon a time", raw=True, options=CALM)
    assert raw.response
    parts = llama.generate(model=model, prompt="Hello!", system="Be brief.", options=CALM, stream=True)
    assert "".join(part.response for part in parts)
    assert llama.generate(model=model).done_reason == "load"


def test_an_answer_fits_its_form(llama, model):
    options = {"num_predict": 200, "seed": 3}
    fits = llama.chat(model=model, messages=HELLO, format=SCHEMA, options=options)
    assert set(json.loads(fits.message.content)) == {"name", "age"}


def test_tools_and_their_results_are_taken(llama, model):
    def look_up(name: str, age: int) -> str:
        """Looks someone up.

        Args:
          name: Who
          age: How old
        """
        return f"{name} {age}"

    llama.chat(model=model, messages=HELLO, tools=[look_up], options={"num_predict": 16})
    call = {"function": {"name": "look_up", "arguments": {"name": "a", "age": 1}}}
    turns = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "look_up", "content": "found"},
    ]
    assert llama.chat(model=model, messages=turns, tools=[look_up], options={"num_predict": 8}).done


def test_errors_say_what_is_wrong(served, llama, model):
    for change, status, word in [
        ({"model": "no-such-model"}, 404, "no-such-model"),
        ({"options": {"temperature": 9}}, 400, "options.temperature"),
        ({"options": {"mirostat": 2}}, 400, "options.mirostat"),
    ]:
        with pytest.raises(ollama.ResponseError) as error:
            llama.chat(**{"model": model, "messages": HELLO, **change})
        assert error.value.status_code == status and word in error.value.error
    with pytest.raises(ollama.ResponseError) as error:
        llama.generate(model=model, prompt="a", suffix="b")
    assert "suffix" in error.value.error
    with pytest.raises(ollama.ResponseError) as error:
        ollama.Client(host=served["url"]).list()
    assert error.value.status_code == 401
    with pytest.raises(ollama.ResponseError):
        llama.pull("anything")


def test_a_client_without_a_key_is_served_where_the_operator_says_so(tmp_path):
    with fleet(tmp_path, "--providers", "1", "--set", "api.ollama_without_key=true") as ready:
        bare = ollama.Client(host=ready["url"])
        model = bare.list().models[0].model
        assert bare.chat(model=model, messages=HELLO, options={"num_predict": 4}).eval_count > 0
        with pytest.raises(ollama.ResponseError):
            ollama.Client(host=ready["url"], headers={"Origin": "https://example.com"}).list()


def test_a_stream_that_is_closed_ends_its_work(llama, model):
    stream = llama.generate(model=model, prompt="Tell me a story.", stream=True, options={"num_predict": 7000})
    next(stream)
    stream.close()
    # The place is free again: a whole answer comes long before the other would have ended.
    assert llama.generate(model=model, prompt="Hello!", options={"num_predict": 8}).done
