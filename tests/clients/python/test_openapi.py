"""What the served OpenAPI document says is so: schemathesis tries to find where it is not."""

import json
import os
import pathlib
import subprocess
import sys
import urllib.request

PATIENCE_S = 600
# Examples for each call; `cargo xtask test` has time for few, a person for many.
EXAMPLES = os.environ.get("PHALANX_EXAMPLES", "8")

# Another seed tries other calls.
SEED = os.environ.get("PHALANX_SEED", "1")


def shorten(schema):
    """Texts and lists stay short: how many tokens a model's context has is not for a schema to say."""
    if isinstance(schema, list):
        for one in schema:
            shorten(one)
    elif isinstance(schema, dict):
        if schema.get("type") == "string" and not {"pattern", "enum", "format", "maxLength"} & schema.keys():
            schema["maxLength"] = 48
        if schema.get("type") == "array":
            schema.setdefault("maxItems", 4)
        for one in schema.values():
            shorten(one)


def small(document, model):
    """The document for one model and short answers: the calls stay the same, and a run ends in minutes."""
    for name, schema in document["components"]["schemas"].items():
        # Of any model, served or not.
        if name in ("SetPrice", "KeyUsage", "CreateGroup"):
            continue
        fields = schema.get("properties", {})
        if "model" in fields and "additionalProperties" in schema and not schema["additionalProperties"]:
            fields["model"] = {"enum": [model, "no-such-model"]}
            for field in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
                if field in fields:
                    fields[field]["maximum"] = 4
                    schema["required"] = sorted({*schema.get("required", []), field})
            for field in ("n", "num_predict"):
                if field in fields:
                    fields[field]["maximum"] = 2
            options = fields.get("options", {}).get("properties", {})
            if "num_predict" in options:
                options["num_predict"].update(minimum=1, maximum=4)
                fields["options"]["required"] = ["num_predict"]
                schema["required"] = sorted({*schema["required"], "options"})
    asked = ("TextPart", "ChatMessage", "Tool", "InputItem", "AnthropicMessage")
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request") or name in asked:
            shorten(schema)
    # Whoever resets or revokes takes others' ground away.
    del document["paths"]["/api/keys/{id}"]
    del document["paths"]["/api/keys/{id}/rotate"]
    # Nobody lends this fleet a machine: whoever asks for its own alone is told that nothing serves it (503).
    for calls in document["paths"].values():
        for call in calls.values():
            parameters = call.get("parameters", [])
            call["parameters"] = [one for one in parameters if not one.get("$ref", "").endswith("/owner")]
    return document


EMBEDDING = ("/v1/embeddings", "/api/embed", "/api/embeddings")


def test_schemathesis_finds_nothing(served, model, tmp_path):
    document = small(document_of(served), model)
    # The model of this fleet refuses them.
    for path in EMBEDDING:
        del document["paths"][path]
    find_nothing(served, document, tmp_path, "ignored_auth")


def test_schemathesis_finds_nothing_in_embeddings(embedder, tmp_path):
    document = small(document_of(embedder), "embed")
    document["paths"] = {path: document["paths"][path] for path in EMBEDDING}
    # Headers are every call's, and a header more is no mistake: the other run has them.
    for path in EMBEDDING:
        document["paths"][path]["post"]["parameters"] = []
    for schema in document["components"]["schemas"].values():
        if "dimensions" in schema.get("properties", {}):
            schema["properties"]["dimensions"]["maximum"] = 32
    # How long a text may be is told in tokens: longer than what `shorten` says is no mistake.
    find_nothing(embedder, document, tmp_path, "ignored_auth,negative_data_rejection")


def document_of(served):
    with urllib.request.urlopen(f"{served['url']}/openapi.json") as answer:
        return json.load(answer)


def find_nothing(served, document, tmp_path, unchecked):
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document))
    program = pathlib.Path(sys.executable).with_name("schemathesis")
    command = [
        program,
        "run",
        str(path),
        "--url",
        served["url"],
        "--header",
        f"Authorization: Bearer {served['key']}",
        "--checks",
        "all",
        # Every key is every call's: there is no other user to take for one.
        "--exclude-checks",
        unchecked,
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        EXAMPLES,
        "--seed",
        SEED,
        "--workers",
        "1",
        "--no-color",
        # `phalanx up` serves by a deployment: without it nothing else is served either.
        "--exclude-operation-id",
        "deleteDeployment",
        # What may be a group depends on which machines there are.
        "--exclude-operation-id",
        "createGroup",
        # That a floor is no higher than its ceiling cannot be said in a schema.
        "--exclude-operation-id",
        "createDeployment",
        "--exclude-operation-id",
        "applyDeployment",
        "--exclude-operation-id",
        "scaleDeployment",
        "--exclude-operation-id",
        "preview",
        # A model computes meanwhile, on a machine that also compiles.
        "--max-response-time",
        "120",
        "--request-timeout",
        "120",
    ]
    done = subprocess.run(command, timeout=PATIENCE_S, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
