#!/usr/bin/env python3
"""Checks a running server with clients that were written for others: Anthropic's own, LiteLLM and
LangChain (pip install anthropic litellm langchain-openai), and OpenAI's for tools and forms, which
check_openai_client.py leaves out.

    python scripts/check_more_clients.py --client anthropic --url http://127.0.0.1:8080 --model nano

With --tools, a model that answers texts beginning with 1 by a call of the function `look`, and such as
begin with 2 by the object {"at": 1} (the tests of crates/serve have one). Prints one PASS or FAIL line for each check; exit code 1 when one fails.
"""

import argparse
import json
import os
import sys
from typing import Literal

from pydantic import BaseModel, ConfigDict

from client_checks import FAILED, check, expect

TEXT = "0 My washing machine leaks"


class Report(BaseModel):
    """A form that no model gives by chance."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["leak", "noise"]
    urgent: bool


SCHEMA = Report.model_json_schema()
FUNCTION = {"name": "Report", "description": "Reports.", "parameters": SCHEMA}
NAMED = {"type": "function", "function": {"name": "Report"}}


def openai_client(arguments):
    import openai

    client = openai.OpenAI(base_url=f"{arguments.url}/v1", api_key="unused", max_retries=0)
    message = {"role": "user", "content": TEXT}
    request = dict(model=arguments.model, messages=[message], max_tokens=300, temperature=0)
    asked = dict(model=arguments.model, input=TEXT, max_output_tokens=300, temperature=0)

    @check("openai: JSON by a schema")
    def _():
        answer = client.chat.completions.parse(response_format=Report, **request)
        expect(isinstance(answer.choices[0].message.parsed, Report), answer)
        with client.chat.completions.stream(response_format=Report, **request) as stream:
            streamed = stream.get_final_completion()
        expect(streamed.choices[0].message.parsed == answer.choices[0].message.parsed, streamed)
        any_object = client.chat.completions.create(response_format={"type": "json_object"}, **request)
        expect(any_object.choices[0].message.content.startswith("{"), any_object)
        response = client.responses.parse(text_format=Report, **asked)
        expect(isinstance(response.output_parsed, Report), response)
        with client.responses.stream(text_format=Report, **asked) as stream:
            expect(stream.get_final_response().output_parsed == response.output_parsed, "the stream")

    if not arguments.tools:
        return

    @check("openai: tools, streamed or not")
    def _():
        tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
        calling = {**request, "messages": [{"role": "user", "content": "1"}], "tools": [tool]}
        call = client.chat.completions.create(**calling).choices[0].message.tool_calls[0].function
        expect((call.name, json.loads(call.arguments)) == ("look", {"at": 1}), call)
        with client.chat.completions.stream(**calling) as stream:
            events = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
            again = stream.get_final_completion().choices[0].message.tool_calls[0].function
        expect(again.arguments == call.arguments, again)
        expect(len(events) > 2, f"arguments came in {len(events)} pieces")

    @check("openai: calls that are forced, streamed or not")
    def _():
        tool = openai.pydantic_function_tool(Report)
        calling = dict(tools=[tool], parallel_tool_calls=False, **request)
        for choice in ("required", NAMED):
            answer = client.chat.completions.parse(tool_choice=choice, **calling).choices[0]
            call = answer.message.tool_calls[0].function
            expect(isinstance(call.parsed_arguments, Report), answer)
            with client.chat.completions.stream(tool_choice=choice, **calling) as stream:
                again = stream.get_final_completion().choices[0].message.tool_calls[0].function
            expect(again.arguments == call.arguments, again)
        flat = {"type": "function", "strict": True, **FUNCTION}
        calling = dict(tools=[flat], parallel_tool_calls=False, **asked)
        for choice in ("required", {"type": "function", "name": "Report"}):
            response = client.responses.create(tool_choice=choice, **calling)
            Report.model_validate_json(response.output[0].arguments)
            with client.responses.stream(tool_choice=choice, **calling) as stream:
                again = stream.get_final_response().output[0]
            expect(again.arguments == response.output[0].arguments, again)


def expect_raises(kind, part, function):
    """`function` must raise this class, with `part` in its message."""
    try:
        function()
    except kind as error:
        expect(part in str(error), f"expected {part!r} in: {error}")
        return
    raise AssertionError(f"nothing raised, expected {kind.__name__}")


def anthropic_client(arguments):
    import anthropic

    client = anthropic.Anthropic(base_url=arguments.url, api_key="unused", max_retries=0)
    request = dict(
        model=arguments.model,
        max_tokens=40,
        messages=[{"role": "user", "content": TEXT}],
        # This version of the client has no argument for it; the server takes it as before.
        extra_body={"temperature": 0},
    )

    @check("anthropic: a message")
    def _():
        message = client.messages.create(**request, system="Be brief.")
        expect(message.type == "message" and message.role == "assistant", message)
        expect(message.stop_reason in ("end_turn", "max_tokens"), message)
        expect(message.usage.output_tokens >= 1, message)
        count = client.messages.count_tokens(
            model=arguments.model, messages=request["messages"], system="Be brief."
        )
        expect(count.input_tokens == message.usage.input_tokens, f"{count}, {message.usage}")
        return repr(message.content[0].text[:40])

    @check("anthropic: a stream gives the same message")
    def _():
        whole = client.messages.create(**request)
        with client.messages.stream(**request) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        expect(text == whole.content[0].text == final.content[0].text, f"{text!r}, {whole}, {final}")
        expect(final.stop_reason == whole.stop_reason, f"{final.stop_reason}, {whole.stop_reason}")
        expect(final.usage.output_tokens == whole.usage.output_tokens, f"{final.usage}, {whole.usage}")

    @check("anthropic: a stop sequence")
    def _():
        whole = client.messages.create(**request).content[0].text
        stop = next(c for c in whole if not c.isspace())
        message = client.messages.create(**request, stop_sequences=[stop])
        expect((message.stop_reason, message.stop_sequence) == ("stop_sequence", stop), message)

    @check("anthropic: errors are its own classes")
    def _():
        unknown = {**request, "model": "no-such-model"}
        expect_raises(anthropic.NotFoundError, "no-such-model", lambda: client.messages.create(**unknown))
        hot = {**request, "extra_body": {"temperature": 7}}
        expect_raises(anthropic.BadRequestError, "temperature", lambda: client.messages.create(**hot))

    @check("anthropic: JSON by a schema")
    def _():
        asked = {**request, "max_tokens": 300}
        message = client.messages.parse(output_format=Report, **asked)
        expect(isinstance(message.parsed_output, Report), message)
        with client.messages.stream(output_format=Report, **asked) as stream:
            final = stream.get_final_message()
        expect(final.parsed_output == message.parsed_output, final)

    if not arguments.tools:
        return

    @check("anthropic: tools, streamed or not, and what follows")
    def _():
        tool = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
        messages = [{"role": "user", "content": "1"}]
        request = dict(model=arguments.model, max_tokens=300, tools=[tool])
        message = client.messages.create(messages=messages, **request)
        with client.messages.stream(messages=messages, **request) as stream:
            streamed = stream.get_final_message()
        for answer in (message, streamed):
            expect(answer.stop_reason == "tool_use", answer)
            expect((answer.content[-1].name, answer.content[-1].input) == ("look", {"at": 1}), answer)
        result = {"type": "tool_result", "tool_use_id": message.content[-1].id, "content": "0"}
        messages += [
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [result]},
        ]
        expect(client.messages.create(messages=messages, **request).stop_reason == "end_turn", "the end")

    @check("anthropic: calls that are forced, streamed or not")
    def _():
        tool = {"name": "Report", "description": "Reports.", "input_schema": SCHEMA, "strict": True}
        calling = {**request, "max_tokens": 300, "tools": [tool]}
        for choice in ({"type": "any"}, {"type": "tool", "name": "Report"}):
            choice["disable_parallel_tool_use"] = True
            message = client.messages.create(tool_choice=choice, **calling)
            expect(message.stop_reason == "tool_use" and message.content[0].name == "Report", message)
            Report.model_validate(message.content[0].input)
            with client.messages.stream(tool_choice=choice, **calling) as stream:
                pieces = sum(event.type == "input_json" for event in stream)
                final = stream.get_final_message()
            expect(final.content[0].input == message.content[0].input, final)
            expect(pieces > 2, f"input came in {pieces} pieces")


def litellm_client(arguments):
    # Otherwise it asks the network for prices first.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    common = dict(base_url=f"{arguments.url}/v1", api_key="unused", max_retries=0, num_retries=0)
    request = dict(
        model=f"openai/{arguments.model}",
        messages=[{"role": "user", "content": TEXT}],
        temperature=0,
        max_tokens=40,
        **common,
    )

    @check("litellm: chat, streamed or not")
    def _():
        whole = litellm.completion(**request)
        chunks = list(litellm.completion(stream=True, **request))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        expect(text == whole.choices[0].message.content, f"{text!r}, {whole}")
        expect(whole.usage.total_tokens > whole.usage.prompt_tokens, whole.usage)

    @check("litellm: JSON by a schema")
    def _():
        answer = litellm.completion(response_format=Report, **{**request, "max_tokens": 300})
        Report.model_validate_json(answer.choices[0].message.content)

    @check("litellm: errors are its own classes")
    def _():
        unknown = {**request, "model": "openai/no-such-model"}
        expect_raises(litellm.NotFoundError, "no-such-model", lambda: litellm.completion(**unknown))
        hot = {**request, "temperature": 7}
        expect_raises(litellm.BadRequestError, "temperature", lambda: litellm.completion(**hot))

    if not arguments.tools:
        return

    @check("litellm: tools")
    def _():
        tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
        calling = {**request, "messages": [{"role": "user", "content": "1"}], "tools": [tool], "max_tokens": 300}
        choice = litellm.completion(**calling).choices[0]
        expect(choice.finish_reason == "tool_calls", choice)
        expect(choice.message.tool_calls[0].function.name == "look", choice)

    @check("litellm: calls that are forced, streamed or not")
    def _():
        calling = {**request, "max_tokens": 300, "parallel_tool_calls": False}
        calling["tools"] = [{"type": "function", "function": FUNCTION}]
        for choice in ("required", NAMED):
            answer = litellm.completion(tool_choice=choice, **calling).choices[0].message
            Report.model_validate_json(answer.tool_calls[0].function.arguments)
            chunks = list(litellm.completion(tool_choice=choice, stream=True, **calling))
            streamed = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls[0].function
            expect(streamed.arguments == answer.tool_calls[0].function.arguments, streamed)


def langchain_client(arguments):
    import openai
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    def chat(model, **more):
        return ChatOpenAI(
            model=model, base_url=f"{arguments.url}/v1", api_key="unused", max_retries=0, temperature=0, **more
        )

    @check("langchain: chat, streamed or not")
    def _():
        whole = chat(arguments.model, max_tokens=40).invoke(TEXT)
        text = "".join(chunk.content for chunk in chat(arguments.model, max_tokens=40).stream(TEXT))
        expect(text == whole.content, f"{text!r}, {whole}")
        expect(whole.usage_metadata["output_tokens"] >= 1, whole)

    @check("langchain: the responses API")
    def _():
        answer = chat(arguments.model, max_tokens=40, use_responses_api=True, store=False).invoke(TEXT)
        whole = chat(arguments.model, max_tokens=40).invoke(TEXT)
        expect(answer.text == whole.content, f"{answer}, {whole}")

    @check("langchain: an unknown model")
    def _():
        invoke = lambda: chat("no-such-model").invoke(TEXT)
        expect_raises(openai.NotFoundError, "no-such-model", invoke)

    if not arguments.tools:
        return

    @check("langchain: tools and what follows")
    def _():
        tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
        model = chat(arguments.model, max_tokens=300).bind_tools([tool])
        question = HumanMessage("1")
        answer = model.invoke([question])
        call = answer.tool_calls[0]
        expect((call["name"], call["args"]) == ("look", {"at": 1}), answer)
        streamed = None
        for chunk in model.stream([question]):
            streamed = chunk if streamed is None else streamed + chunk
        expect(streamed.tool_calls[0]["args"] == {"at": 1}, streamed)
        result = ToolMessage("0", tool_call_id=call["id"])
        expect(model.invoke([question, answer, result]).tool_calls == [], "the end")

    @check("langchain: structured output, by schema, by tool and as JSON")
    def _():
        model = chat(arguments.model, max_tokens=300)
        for method in ("json_schema", "function_calling"):
            report = model.with_structured_output(Report, method=method).invoke(TEXT)
            expect(isinstance(report, Report), f"{method}: {report}")
        found = model.with_structured_output(None, method="json_mode").invoke("2")
        expect(found == {"at": 1}, f"json_mode: {found}")


def langchain_embeddings(arguments):
    from langchain_openai import OpenAIEmbeddings

    # Without this setting the client cuts texts with OpenAI's own tokenizer and sends its ids, which mean
    # nothing to another model (and loads that tokenizer from the network).
    embeddings = OpenAIEmbeddings(
        model=arguments.model,
        base_url=f"{arguments.url}/v1",
        api_key="unused",
        max_retries=0,
        check_embedding_ctx_length=False,
    )

    @check("langchain: texts to search in, and a question")
    def _():
        texts = ["My boiler leaks", "Send the invoice again", "The van does not start"]
        vectors = embeddings.embed_documents(texts)
        for text, vector in zip(texts, vectors):
            question = embeddings.embed_query(text)
            expect(max(abs(a - b) for a, b in zip(question, vector)) < 1e-6, "a question is another vector")
            near = [sum(a * b for a, b in zip(question, other)) for other in vectors]
            expect(texts[near.index(max(near))] == text, near)


CLIENTS = {
    "openai": openai_client,
    "anthropic": anthropic_client,
    "litellm": litellm_client,
    "langchain_openai": langchain_client,
    "langchain_embeddings": langchain_embeddings,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--client", choices=CLIENTS, action="append", required=True, help="repeat it")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the server's address, without /v1")
    parser.add_argument("--model", required=True, help="name of a model")
    parser.add_argument("--tools", action="store_true", help="the model calls `look` when told 1, says JSON when told 2")
    arguments = parser.parse_args()
    for name in arguments.client:
        CLIENTS[name](arguments)
    print(f"{len(FAILED)} failed" if FAILED else "all passed")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
