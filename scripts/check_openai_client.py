#!/usr/bin/env python3
"""Checks a running server with OpenAI's own Python client (pip install openai).

    python scripts/check_openai_client.py --url http://127.0.0.1:8080 --base nano \
        --adapter dispatch --adapter banking --adapter intake

Prints one PASS or FAIL line for each check; exit code 1 when one fails.
"""

import argparse
import concurrent.futures
import json
import sys
import time
import urllib.request

import openai
from client_checks import FAILED, check, expect


def expect_raises(kind, part, function):
    """`function` must raise exactly this class, with `part` in its message."""
    try:
        function()
    except openai.OpenAIError as error:
        expect(type(error) is kind, f"raised {type(error).__name__}, expected {kind.__name__}: {error}")
        found = f"{error} (code {error.code})"
        expect(part in found, f"expected {part!r} in: {found}")
        return found
    raise AssertionError(f"nothing raised, expected {kind.__name__}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the server's address, without /v1")
    parser.add_argument("--base", required=True, help="name of the base model")
    parser.add_argument("--adapter", action="append", default=[], help="name of an adapter; repeat it")
    parser.add_argument("--prompt", default="My washing machine leaks since", help="how prompts begin")
    parser.add_argument("--max-tokens", type=int, default=48)
    arguments = parser.parse_args()
    client = openai.OpenAI(base_url=f"{arguments.url}/v1", api_key="unused", max_retries=0)
    models = [arguments.base, *arguments.adapter]

    def request(model, extra=""):
        return dict(
            model=model,
            messages=[{"role": "user", "content": f"{arguments.prompt} {extra}".strip()}],
            temperature=0,
            max_tokens=arguments.max_tokens,
        )

    def streamed(model, extra=""):
        """The text of a stream, put together, and how it finished."""
        text, reasons = "", []
        for chunk in client.chat.completions.create(stream=True, **request(model, extra)):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reasons.append(choice.finish_reason)
        expect(reasons and reasons[-1] in ("stop", "length"), f"finish reasons {reasons[-3:]}")
        expect(not any(reasons[:-1]), "only the last chunk has a finish reason")
        return text

    def health():
        with urllib.request.urlopen(f"{arguments.url}/health") as answer:
            return json.load(answer)

    @check("models are listed")
    def _():
        names = [model.id for model in client.models.list()]
        expect(set(models) <= set(names), f"found {names}, expected {models}")
        expect(client.models.retrieve(models[-1]).id == models[-1], "retrieve")
        return ", ".join(names)

    for model in models:

        @check(f"chat with {model}")
        def _():
            answer = client.chat.completions.create(**request(model))
            expect(answer.object == "chat.completion" and answer.model == model, answer)
            expect(answer.choices[0].message.role == "assistant", answer)
            usage = answer.usage
            expect(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage)
            expect(answer.choices[0].finish_reason in ("stop", "length"), answer)
            return repr(answer.choices[0].message.content[:60])

        @check(f"streaming chat with {model} gives the same text")
        def _():
            whole = client.chat.completions.create(**request(model)).choices[0].message.content
            expect(streamed(model) == whole, f"the stream differs from {whole!r}")

        @check(f"text completion with {model}")
        def _():
            answer = client.completions.create(model=model, prompt=[arguments.prompt] * 2, temperature=0)
            expect(len(answer.choices) == 2 and answer.choices[0].text == answer.choices[1].text, answer)

    @check("usage at the end of a stream")
    def _():
        stream = client.chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **request(arguments.base)
        )
        chunks = list(stream)
        whole = client.chat.completions.create(**request(arguments.base)).usage
        expect(chunks[-1].usage == whole and chunks[-1].choices == [], chunks[-1])
        expect(all(chunk.usage is None for chunk in chunks[:-1]), "usage before the end")

    @check("the same seed gives the same choices")
    def _():
        arguments_ = {**request(arguments.base), "temperature": 1.0, "seed": 7, "n": 3}
        answers = [client.chat.completions.create(**arguments_) for _ in range(2)]
        texts = [[choice.message.content for choice in answer.choices] for answer in answers]
        expect(texts[0] == texts[1] and len(texts[0]) == 3, texts)

    @check("a stop string ends the text before it")
    def _():
        whole = client.chat.completions.create(**request(arguments.base)).choices[0].message.content
        stop = whole[len(whole) // 2 :][:2]
        expect(stop, "the model said nothing, so there is nothing to stop at")
        answer = client.chat.completions.create(stop=[stop], **request(arguments.base)).choices[0]
        expect(answer.message.content == whole.split(stop)[0], f"{answer} of {whole!r}")
        expect(answer.finish_reason == "stop", answer)

    @check(f"eight concurrent streams over {len(models)} models equal one at a time")
    def _():
        chosen = arguments.adapter if len(arguments.adapter) >= 3 else models
        jobs = [(chosen[i % len(chosen)], f"day {i} " * (i + 1)) for i in range(8)]
        alone = [streamed(*job) for job in jobs]
        with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
            together = list(pool.map(lambda job: streamed(*job), jobs))
        for job, one, other in zip(jobs, alone, together):
            expect(one == other, f"{job[0]}: alone {one!r}, together {other!r}")
        return ", ".join(chosen)

    @check("a dropped stream frees its pages")
    def _():
        arguments_ = {**request(arguments.base), "max_tokens": 100_000, "extra_body": {"ignore_eos": True}}
        stream = client.chat.completions.create(stream=True, **arguments_)
        next(iter(stream))
        stream.close()
        for _ in range(200):
            found = health()
            if found["running"] == 0 and found["free_blocks"] == found["total_blocks"]:
                return
            time.sleep(0.05)
        raise AssertionError(f"after ten seconds: {found}")

    @check("an unknown model raises NotFoundError with the known ones")
    def _():
        create = lambda: client.chat.completions.create(**request("no-such-model"))
        return expect_raises(openai.NotFoundError, arguments.base, create)

    bad_fields = {
        "temperature": {"temperature": 9},
        "tools": {"tools": [{"type": "function", "function": {"name": "f"}}]},
        "response_format": {"response_format": {"type": "yaml"}},
        "top_logprobs": {"logprobs": True, "top_logprobs": 99},
        "presence_penalty": {"presence_penalty": 3},
        "tempreature": {"extra_body": {"tempreature": 0.5}},
        "messages[0].content[0].type": {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}
            ]
        },
    }
    for field, change in bad_fields.items():

        @check(f"a bad {field} raises BadRequestError that names it")
        def _():
            create = lambda: client.chat.completions.create(**{**request(arguments.base), **change})
            expect_raises(openai.BadRequestError, field, create)

    for model in models:

        @check(f"embeddings of {model}")
        def _():
            texts = [arguments.prompt, "something else"]
            # The client asks for base64 unless told otherwise, and takes it apart.
            answer = client.embeddings.create(model=model, input=texts)
            plain = client.embeddings.create(model=model, input=texts[1], encoding_format="float")
            one, two = (item.embedding for item in answer.data)
            expect([item.index for item in answer.data] == [0, 1], answer.data)
            difference = max(abs(a - b) for a, b in zip(two, plain.data[0].embedding))
            expect(difference < 1e-6, f"base64 and float differ by {difference}")
            expect(abs(sum(x * x for x in one) - 1) < 1e-4, "its length is not one")
            expect(one != two, "two texts have one embedding")
            expect(answer.usage.prompt_tokens > plain.usage.prompt_tokens > 0, answer.usage)
            return f"{len(one)} numbers"

    @check("an empty text to embed raises BadRequestError")
    def _():
        create = lambda: client.embeddings.create(model=arguments.base, input=["a", ""])
        return expect_raises(openai.BadRequestError, "input[1]", create)

    @check("a prompt beyond the context raises BadRequestError")
    def _():
        create = lambda: client.completions.create(model=arguments.base, prompt="word " * 100_000)
        return expect_raises(openai.BadRequestError, "context_length_exceeded", create)

    @check("the server is as it was")
    def _():
        found = health()
        expect(found["status"] == "ok" and found["free_blocks"] == found["total_blocks"], found)

    print(f"{len(FAILED)} failed" if FAILED else "all passed")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
