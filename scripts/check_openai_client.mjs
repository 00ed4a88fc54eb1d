// Checks a running server with OpenAI's own client for JavaScript (npm install openai).
//
//   NODE_PATH is not read by modules, so the folder with node_modules is an argument:
//   node scripts/check_openai_client.mjs FOLDER http://127.0.0.1:8080 MODEL [tools]
//
// With `tools`, a model that answers texts beginning with 1 by a call of the function `look`. Prints
// one PASS or FAIL line for each check; exit code 1 when one fails.

import { createRequire } from "node:module";
import { deepStrictEqual as same, ok } from "node:assert";

const [folder, url, model, tools] = process.argv.slice(2);
const { default: OpenAI } = createRequire(`${folder}/`)("openai");
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0 });
const content = "0 My washing machine leaks";
const request = { model, messages: [{ role: "user", content }], temperature: 0, max_tokens: 40 };
let failed = 0;

async function check(name, run) {
  try {
    await run();
    console.log(`PASS ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name}: ${error}`);
  }
}

async function refused(kind, part, run) {
  try {
    await run();
  } catch (error) {
    ok(error instanceof kind, `${error} is no ${kind.name}`);
    ok(String(error).includes(part), `${error} does not say ${part}`);
    return;
  }
  throw new Error(`nothing thrown, expected ${kind.name}`);
}

await check("models are listed", async () => {
  const names = [];
  for await (const found of client.models.list()) names.push(found.id);
  ok(names.includes(model), `${names}`);
});

await check("chat, streamed or not", async () => {
  const whole = await client.chat.completions.create(request);
  let text = "";
  const options = { stream: true, stream_options: { include_usage: true } };
  let usage;
  for await (const chunk of await client.chat.completions.create({ ...request, ...options })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  same(text, whole.choices[0].message.content);
  same(usage, whole.usage);
});

await check("responses, streamed or not", async () => {
  const whole = await client.chat.completions.create(request);
  const asked = { model, input: content, temperature: 0, max_output_tokens: 40 };
  const response = await client.responses.create(asked);
  same(response.output_text, whole.choices[0].message.content);
  let text = "";
  for await (const event of await client.responses.create({ ...asked, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  same(text, response.output_text);
});

const schema = {
  type: "object",
  properties: { kind: { enum: ["leak", "noise"] }, urgent: { type: "boolean" } },
  required: ["kind", "urgent"],
  additionalProperties: false,
};
const kept = ({ kind, urgent }) => ["leak", "noise"].includes(kind) && typeof urgent === "boolean";

await check("JSON by a schema", async () => {
  const format = { type: "json_schema", json_schema: { name: "report", schema, strict: true } };
  const asked = { ...request, max_tokens: 300, response_format: format };
  const { choices } = await client.chat.completions.parse(asked);
  ok(kept(choices[0].message.parsed), choices[0].message.content);
  const streamed = await client.chat.completions.stream(asked).finalChatCompletion();
  same(streamed.choices[0].message.parsed, choices[0].message.parsed);
  const text = { format: { type: "json_schema", name: "report", schema, strict: true } };
  const response = await client.responses.parse({ model, input: content, temperature: 0, text });
  ok(kept(response.output_parsed), response.output_text);
});

await check("errors are its own classes", async () => {
  const create = (change) => () => client.chat.completions.create({ ...request, ...change });
  await refused(OpenAI.NotFoundError, "no-such-model", create({ model: "no-such-model" }));
  await refused(OpenAI.BadRequestError, "temperature", create({ temperature: 7 }));
});

if (tools) {
  await check("tools, streamed or not, and what follows", async () => {
    const tool = { type: "function", function: { name: "look", parameters: { type: "object" } } };
    const messages = [{ role: "user", content: "1" }];
    const calling = { model, messages, tools: [tool], max_tokens: 300 };
    const [choice] = (await client.chat.completions.create(calling)).choices;
    same(choice.finish_reason, "tool_calls");
    const [call] = choice.message.tool_calls;
    same([call.function.name, JSON.parse(call.function.arguments)], ["look", { at: 1 }]);
    const streamed = await client.chat.completions.stream(calling).finalChatCompletion();
    same(streamed.choices[0].message.tool_calls[0].function.name, "look");
    messages.push(choice.message, { role: "tool", tool_call_id: call.id, content: "0" });
    const end = await client.chat.completions.create(calling);
    same(end.choices[0].finish_reason, "stop");
  });

  await check("calls that are forced, streamed or not", async () => {
    const report = { name: "report", parameters: schema, strict: true };
    const forced = { type: "function", function: { name: "report" } };
    const calling = {
      ...request,
      max_tokens: 300,
      tools: [{ type: "function", function: report }],
      parallel_tool_calls: false,
    };
    for (const tool_choice of ["required", forced]) {
      const { choices } = await client.chat.completions.parse({ ...calling, tool_choice });
      const [call] = choices[0].message.tool_calls;
      ok(call.function.name === "report" && kept(call.function.parsed_arguments), call);
      const stream = client.chat.completions.stream({ ...calling, tool_choice });
      const [again] = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
      same(again.function.arguments, call.function.arguments);
    }
    const tools = [{ type: "function", ...report }];
    const asked = { model, input: content, temperature: 0, tools, parallel_tool_calls: false };
    const tool_choice = { type: "function", name: "report" };
    const response = await client.responses.parse({ ...asked, tool_choice });
    ok(kept(response.output[0].parsed_arguments), JSON.stringify(response.output));
  });
}

console.log(failed ? `${failed} failed` : "all passed");
process.exit(failed ? 1 : 0);
