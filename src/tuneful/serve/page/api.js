// What the page asks the server for. Where the server wants a token, the cookie that its address has set brings it.

async function ask(path, options = {}) {
  const headers = options.body ? { "Content-Type": "application/json" } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. What was acknowledged is kept; try again once it is back.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const hint = response.status === 401 ? " Open the address that `tuneful serve` printed." : "";
  const message = (told.error?.message ?? `The server said ${response.status}.`) + hint;
  throw Object.assign(new Error(message), { status: response.status });
}

export async function getJson(path, query = {}) {
  const parameters = new URLSearchParams(query).toString();
  return (await ask(parameters ? `${path}?${parameters}` : path)).json();
}

export async function postJson(path, body) {
  return (await ask(path, { method: "POST", body: JSON.stringify(body) })).json();
}

export async function modelNames() {
  return (await getJson("/v1/models")).data.map(model => model.id);
}

/**
 * One streamed answer. `onText` is given each piece as it comes; the result tells why it ended and how many tokens it has.
 * Raises what the server says went wrong, before or in the stream.
 */
export async function streamAnswer(model, messages, settings, onText, signal) {
  const body = { model, messages, ...settings, stream: true, stream_options: { include_usage: true } };
  const response = await ask("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  const result = { finishReason: null, numTokens: null };
  for await (const data of events(response.body)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message ?? String(chunk.error));
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) onText(choice.delta.content);
    result.finishReason = choice?.finish_reason ?? result.finishReason;
    result.numTokens = chunk.usage?.completion_tokens ?? result.numTokens;
  }
  if (result.finishReason === null) throw new Error("The answer broke off: the server closed the stream.");
  return result;
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    buffer += value ?? "";
    const lines = buffer.split("\n");
    buffer = done ? "" : lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
    if (done) return;
  }
}
