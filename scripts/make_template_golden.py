#!/usr/bin/env python3
"""Writes testdata/templates/golden.json: what Hugging Face's own Jinja set-up renders.

Usage: python scripts/make_template_golden.py [--templates ../shared/templates]
Needs: transformers (any version with transformers.utils.chat_template_utils) and jinja2.

The templates themselves stay where they are; the golden file names them. A case whose `text` is
null is one that the template refuses or fails on (Hermes' tool_use cannot do without tools).
"""

import argparse
import datetime
import json
from pathlib import Path

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

# The clock of `strftime_now`, in seconds since 1970.
NOW = 1_709_210_096

# bos_token and eos_token as each model's tokenizer_config.json has them; null: not set.
TOKENS = {
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja": ("<|begin_of_text|>", "<|im_end|>"),
    "Qwen-Qwen2.5-7B-Instruct.jinja": (None, "<|im_end|>"),
    "google-gemma-2-2b-it.jinja": ("<bos>", "<eos>"),
    "meta-llama-Llama-3.1-8B-Instruct.jinja": ("<|begin_of_text|>", "<|eot_id|>"),
    "meta-llama-Llama-3.2-3B-Instruct.jinja": ("<|begin_of_text|>", "<|eot_id|>"),
    "microsoft-Phi-3.5-mini-instruct.jinja": ("<s>", "<|endoftext|>"),
    "mistralai-Mistral-Nemo-Instruct-2407.jinja": ("<s>", "</s>"),
    "qwen3.tokenizer_config.json": (None, "<|im_end|>"),
}


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def call(identity, name, **arguments):
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": identity, "function": function}


def calls(*tool_calls, text=""):
    return {"role": "assistant", "content": text, "tool_calls": list(tool_calls)}


def tool(identity, name, text):
    return {"role": "tool", "tool_call_id": identity, "name": name, "content": text}


WEATHER = call("weather01", "get_weather", place="Genève <b>", days=2)

CONVERSATIONS = [
    [user("Hello")],
    [user("Hello"), assistant("Hi there.")],
    [system("Be terse."), user("Hello")],
    [system("Be terse."), user("Hello"), assistant("Hi.")],
    [user("One"), assistant("1"), user("Two"), assistant("2"), user("Three")],
    [user("One"), assistant("1"), user("Two"), assistant("2"), user("Three"), assistant("3")],
    [user("  spaces around \n"), assistant("\n\n and here\t ")],
    [user("é 😀 <b>&amp;</b> \"quoted\" 'it''s' {{ x }} {% y %}"), assistant("{\"a\": [1, null]}\\n")],
    [user("think"), assistant("<think>\nhm\n</think>\n\nyes"), user("again"), assistant("<think>\nah\n</think>\n\nno")],
    [user(""), assistant("")],
    [user("Hello"), user("again")],
    [assistant("I begin."), user("Hello")],
    [system("Only a system prompt.")],
    [user("Weather?"), calls(WEATHER)],
    [
        user("Weather?"),
        calls(WEATHER),
        tool("weather01", "get_weather", '{"t": [21, "é"]}'),
        assistant("Warm."),
    ],
    [
        system("Be terse."),
        user("Weather, then stop."),
        calls(WEATHER, call("stopcall1", "stop"), text="At once."),
        tool("weather01", "get_weather", "21"),
        tool("stopcall1", "stop", "done"),
        assistant("Warm. Bye."),
        user("Thanks"),
        assistant("Welcome."),
    ],
]


# Conversations by number that are rendered with the tools as well.
WITH_TOOLS = [0, 2, 4, 5, 13, 14, 15]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a place, e.g. \"Genève\" <b>today</b>.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "Town and country"},
                    "days": {"type": "integer"},
                    "units": {"type": "string", "enum": ["c", "f"]},
                },
                "required": ["place"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "stop",
            "description": "End the call.",
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    },
]


def source_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text)["chat_template"] if path.suffix == ".json" else text


def strftime_now(pattern):
    return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(pattern)


def render(template, messages, tools, add_generation_prompt, tokens):
    special = {name: token for name, token in zip(("bos_token", "eos_token"), tokens) if token}
    try:
        return template.render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            strftime_now=strftime_now,
            **special,
        )
    except (jinja2.exceptions.TemplateError, TypeError):
        return None


def main():
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--templates", type=Path, default=here.parent / "shared" / "templates")
    parser.add_argument("--out", type=Path, default=here / "testdata/templates/golden.json")
    arguments = parser.parse_args()

    templates = []
    for path in sorted(arguments.templates.iterdir()):
        compiled = _compile_jinja_template(source_of(path))
        cases = [
            {
                "conversation": index,
                "tools": tools is not None,
                "add_generation_prompt": prompt,
                "text": render(compiled, messages, tools, prompt, TOKENS[path.name]),
            }
            for tools in (None, TOOLS)
            for index, messages in enumerate(CONVERSATIONS)
            if tools is None or index in WITH_TOOLS
            for prompt in (False, True)
        ]
        bos, eos = TOKENS[path.name]
        templates.append({"file": path.name, "bos_token": bos, "eos_token": eos, "cases": cases})

    golden = {"now": NOW, "conversations": CONVERSATIONS, "tools": TOOLS, "templates": templates}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    count = sum(len(template["cases"]) for template in templates)
    refused = sum(case["text"] is None for template in templates for case in template["cases"])
    print(f"{arguments.out}: {len(templates)} templates, {count} cases, {refused} refused")


if __name__ == "__main__":
    main()
