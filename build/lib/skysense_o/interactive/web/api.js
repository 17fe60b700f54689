// Requests to the server. Short requests are answered with JSON, jobs with a stream of JSON lines.

export class Refused extends Error {}
export class Stopped extends Error {}

async function checked(response) {
  if (response.ok) return response;
  let text = response.statusText;
  try {
    const body = await response.text();
    text = response.headers.get("content-type")?.includes("json") ? JSON.parse(body).error ?? text : body || text;
  } catch { /* no JSON: the status is all that is known */ }
  throw Object.assign(new Refused(text), { status: response.status });
}

async function ask(path, options) {
  try {
    return await checked(await fetch(path, options));
  } catch (error) {
    if (error.name === "AbortError") throw new Stopped();
    if (error instanceof TypeError) throw new Refused("The server does not answer. Is it still running?");
    throw error;
  }
}

const asJSON = body => ({ method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body ?? {}) });

export const get = async path => (await ask(path)).json();
export const remove = async path => (await ask(path, { method: "DELETE" })).json();
export const post = async (path, body, signal) => (await ask(path, { ...asJSON(body), signal })).json();
export const postForBlob = async (path, body, signal) => {
  const response = await ask(path, { ...asJSON(body), signal });
  return response.status === 204 ? null : response.blob();
};
export const getBlob = async path => {
  const response = await ask(path);
  return response.status === 204 ? null : response.blob();
};

// Runs a job; `told` gets {place, waiting} while the job waits and {progress} while it runs. Returns the job's result.
export async function job(path, body, told, signal) {
  const options = body instanceof Blob ? { method: "POST", body } : asJSON(body);
  const response = await ask(path, { ...options, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Refused("The server has ended the connection.");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.filter(Boolean).map(JSON.parse)) {
        if (line.error !== undefined) throw new Refused(line.error);
        if (line.stopped) throw new Stopped();
        if (line.result !== undefined) return line.result;
        told(line);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw new Stopped();
    if (error instanceof TypeError) throw new Refused("The connection to the server was lost.");
    throw error;
  }
}
