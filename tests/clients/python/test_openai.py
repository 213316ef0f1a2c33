"""The official `openai` client against a running fleet: what an application developer sees."""

import asyncio
import concurrent.futures
import json
import math

import openai
import pydantic
import pytest
from conftest import FIXTURE, fleet

HELLO = [{"role": "user", "content": "Hello! Who are you?"}]


def test_models_are_listed_and_read(client, model):
    listed = client.models.list().data
    assert [m.id for m in listed].count(model) == 1
    assert client.models.retrieve(model).object == "model"


def test_a_chat_answers_and_counts_its_tokens(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=64, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert "Phalanx" in choice.message.content
    usage = answer.usage
    assert usage.prompt_tokens > 0
    assert 0 < usage.completion_tokens <= 64
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_gives_the_same_text_and_ends_properly(client, model):
    whole = client.chat.completions.create(model=model, messages=HELLO, max_tokens=64, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=HELLO,
            max_tokens=64,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    # How much of the prompt was found in cache depends on what ran before.
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({c.id for c in chunks}) == 1
    assert sum(1 for c in chunks if c.choices) > 2, "a stream comes in pieces"


def test_log_probabilities_are_those_of_the_tokens_drawn(client, model):
    answer = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens or answer.choices[0].finish_reason == "stop"
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        # Greedy: what was drawn is the most probable.
        assert token.top_logprobs[0].token == token.token
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1.001
    assert "".join(t.token for t in tokens).startswith(answer.choices[0].message.content[:4])


def test_a_seed_repeats_an_answer(client, model):
    def ask(seed):
        return client.chat.completions.create(
            model=model, messages=HELLO, max_tokens=24, temperature=1.5, seed=seed
        ).choices[0].message.content

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(6)}) > 1


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "description": "Looks a word up", "parameters": SCHEMA, "strict": True},
}
NAMED = {"type": "function", "function": {"name": "look_up"}}


def test_several_answers_are_those_of_seeds_that_follow_each_other(client, model):
    def ask(**more):
        return client.chat.completions.create(
            model=model, messages=HELLO, max_tokens=16, temperature=1.5, **more
        )

    three = ask(n=3, seed=11)
    alone = [ask(seed=seed) for seed in (11, 12, 13)]
    assert [c.index for c in three.choices] == [0, 1, 2]
    assert [c.message.content for c in three.choices] == [a.choices[0].message.content for a in alone]
    assert three.usage.completion_tokens == sum(a.usage.completion_tokens for a in alone)
    texts = ["", "", ""]
    for chunk in ask(n=3, seed=11, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [c.message.content for c in three.choices]


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_tool_is_called_as_asked_and_its_result_taken(client, model, choice):
    asked = {"model": model, "tools": [TOOL], "tool_choice": choice, "max_tokens": 200, "seed": 1}
    asked["messages"] = [{"role": "user", "content": "Look up a name."}]
    answer = client.chat.completions.create(**asked, parallel_tool_calls=False)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "look_up" and set(json.loads(call.function.arguments)) == {"name", "age"}
    pieces = [
        piece
        for chunk in client.chat.completions.create(**asked, parallel_tool_calls=False, stream=True)
        for piece in (chunk.choices[0].delta.tool_calls or [])
    ]
    assert pieces[0].id and pieces[0].function.name == "look_up"
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": "found"}
    turns = [*asked["messages"], answer.choices[0].message, result]
    again = client.chat.completions.create(
        model=model, messages=turns, tools=[TOOL], tool_choice="none", max_tokens=8
    )
    assert again.usage.completion_tokens > 0


def test_an_answer_fits_its_schema_whole_and_streamed(client, model):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    asked = {"model": model, "messages": HELLO, "response_format": form, "max_tokens": 200, "seed": 5}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    assert set(json.loads(whole)) == {"name", "age"}
    parts = client.chat.completions.create(**asked, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole
    some = client.chat.completions.create(
        model=model, messages=HELLO, response_format={"type": "json_object"}, max_tokens=400, temperature=0
    )
    if some.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(some.choices[0].message.content), dict)


def test_the_clients_own_parsing_gets_a_value(client, model):
    class Person(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=12)
        age: int = pydantic.Field(le=99)

    parsed = client.chat.completions.parse(model=model, messages=HELLO, response_format=Person, max_tokens=200)
    assert isinstance(parsed.choices[0].message.parsed, Person)


def test_several_prompts_are_streamed_each_in_its_place(client, model):
    asked = {"model": model, "prompt": ["Once upon", "Hello"], "max_tokens": 8, "temperature": 0, "echo": True}
    whole = client.completions.create(**asked)
    assert [c.index for c in whole.choices] == [0, 1]
    assert whole.choices[0].text.startswith("Once upon") and whole.choices[1].text.startswith("Hello")
    texts = ["", ""]
    for part in client.completions.create(**asked, stream=True):
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == [c.text for c in whole.choices]


def test_a_stream_that_is_closed_ends_its_work(client, model):
    stream = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=7000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    # The place is free again: a whole answer comes long before the other would have ended.
    assert client.chat.completions.create(model=model, messages=HELLO, max_tokens=8).choices


def test_embeddings_are_refused_with_a_reason(client, model):
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model=model, input="a")
    assert error.value.code == "embeddings_not_supported"


def test_embeddings_are_the_references_in_both_encodings(embedder):
    client = openai.OpenAI(base_url=f"{embedder['url']}/v1", api_key=embedder["key"], max_retries=0)
    cases = json.loads((FIXTURE / "expected.json").read_text())["cases"]
    texts = [case["text"] for case in cases]
    # The client asks for base64 by itself, and decodes it.
    for more in ({}, {"encoding_format": "float"}):
        got = client.embeddings.create(model="embed", input=texts, **more)
        assert got.usage.prompt_tokens == got.usage.total_tokens == sum(len(case["tokens"]) for case in cases)
        for item, case in zip(got.data, cases, strict=True):
            assert item.embedding == pytest.approx(case["vector"], abs=2e-4)
    tokens = client.embeddings.create(model="embed", input=cases[0]["tokens"])
    assert tokens.data[0].embedding == pytest.approx(cases[0]["vector"], abs=2e-4)
    short = client.embeddings.create(model="embed", input=texts[0], dimensions=4)
    assert math.hypot(*short.data[0].embedding) == pytest.approx(1, abs=1e-5) and len(short.data[0].embedding) == 4
    for wrong, word in (({"input": ""}, "empty"), ({"input": "a" * 999}, "256"), ({"input": "a", "dimensions": 33}, "32")):
        with pytest.raises(openai.BadRequestError) as error:
            client.embeddings.create(model="embed", **wrong)
        assert word in error.value.message
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="embed", messages=HELLO)
    assert error.value.code == "generation_not_supported"


def test_completions_go_on_with_a_text(client, model):
    whole = client.completions.create(model=model, prompt="Once upon a time", max_tokens=16, temperature=0)
    assert whole.choices[0].text
    parts = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=16, temperature=0, stream=True
    )
    assert "".join(p.choices[0].text for p in parts if p.choices) == whole.choices[0].text


def test_a_stop_text_ends_the_answer_before_it(client, model):
    whole = client.chat.completions.create(model=model, messages=HELLO, max_tokens=48, temperature=0)
    text = whole.choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    cut = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=48, temperature=0, stop=[stop]
    )
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_the_streaming_helper_puts_an_answer_together(client, model):
    with client.chat.completions.stream(
        model=model, messages=HELLO, temperature=0, stream_options={"include_usage": True}
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens > 0


def test_every_event_has_the_usage_field_where_it_was_asked_for(client, model):
    chunks = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    *others, last = list(chunks)
    assert last.usage and not last.choices
    assert all("usage" in other.model_fields_set and other.usage is None for other in others)


def test_an_async_client_and_raw_responses_work_too(served, model):
    async def ask():
        url = f"{served['url']}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=served["key"], max_retries=0) as client:
            raw = await client.chat.completions.with_raw_response.create(
                model=model, messages=HELLO, max_tokens=4
            )
            stream = await client.completions.create(model=model, prompt="Once", max_tokens=4, stream=True)
            return raw, "".join([part.choices[0].text async for part in stream])

    raw, text = asyncio.run(ask())
    assert raw.request_id == raw.parse()._request_id
    assert text


def test_an_answer_can_be_sent_back_as_the_client_dumps_it(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=8).choices[0].message
    turns = [*HELLO, answer, *HELLO, answer.model_dump(), *HELLO]
    assert client.chat.completions.create(model=model, messages=turns, max_tokens=4).choices


def test_what_clients_send_by_default_is_taken(client, model):
    answer = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}],
        max_completion_tokens=4,
        n=1,
        logprobs=False,
        tools=[],
        tool_choice="none",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        service_tier="auto",
        store=False,
        metadata={},
        user="someone",
        seed=None,
        stop=None,
        modalities=["text"],
        verbosity="medium",
        reasoning_effort="none",
    )
    ignored = answer.headers["x-phalanx-ignored-parameters"].split(", ")
    assert sorted(ignored) == ["metadata", "service_tier", "store", "user"]


def test_an_unknown_model_is_a_typed_error(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="no-such-model", messages=HELLO)
    assert error.value.code == "model_not_found"
    assert "no-such-model" in error.value.message
    assert error.value.request_id


def test_a_wrong_key_is_a_typed_error(served):
    stranger = openai.OpenAI(base_url=f"{served['url']}/v1", api_key="sk-phx-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as error:
        stranger.models.list()
    assert error.value.code == "invalid_api_key"
    # The words by which LiteLLM and others tell it from a bad request.
    assert "Incorrect API key provided" in error.value.message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"extra_body": {"unheard_of": 1}}, "unheard_of"),
    ],
)
def test_a_bad_parameter_is_named(client, model, change, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**{"model": model, "messages": HELLO, **change})
    assert error.value.param == param


def test_a_prompt_over_the_context_is_refused_with_both_numbers(client, model):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "strawberry " * 20_000}]
        )
    assert error.value.code == "context_length_exceeded"
    assert sum(word.strip(".,").isdigit() for word in error.value.message.split()) >= 2


def test_overload_is_an_honest_429_and_the_clients_own_retries_get_through(tmp_path):
    with fleet(tmp_path, "--providers", "1", "--batch-max", "1", "--set", "pool.queue_max=1") as ready:
        url = f"{ready['url']}/v1"
        impatient = openai.OpenAI(base_url=url, api_key=ready["key"], max_retries=0)
        patient = openai.OpenAI(base_url=url, api_key=ready["key"], max_retries=40)
        model = patient.models.list().data[0].id

        def ask(client):
            return client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "Tell me a story."}],
                max_tokens=100,
                extra_body={"ignore_eos": True},
            )

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            refused = []
            for future in [pool.submit(ask, impatient) for _ in range(12)]:
                try:
                    future.result()
                except openai.RateLimitError as error:
                    refused.append(error)
            assert refused, "twelve at once do not fit into one slot and a queue of one"
            for error in refused:
                assert float(error.response.headers["retry-after"]) > 0
            answers = [f.result() for f in [pool.submit(ask, patient) for _ in range(8)]]
        assert all(a.usage.completion_tokens == 100 for a in answers)
