// Calls of the service, with its key and its problems.

const ENDED = new Set(["succeeded", "failed", "cancelled", "superseded"]);
const POLL_MS = 300;
const KEY = "exemplar-api-key";

export const useKey = (value) => sessionStorage.setItem(KEY, value);

// The answer. What is thrown has a sentence for a person as its message.
export async function call(path, { headers = {}, ...options } = {}) {
  const key = sessionStorage.getItem(KEY);
  const sent = { ...options, headers: key ? { ...headers, "X-API-Key": key } : headers };
  const answer = await fetch(path, sent).catch((error) => {
    if (options.signal?.aborted) throw error;
    throw new Error("The service does not answer: is it running, and can this machine reach it?");
  });
  if (answer.ok) return answer;
  // Unknown, or known and not allowed to do this: another one may be.
  if (answer.status === 401 || (answer.status === 403 && key)) document.dispatchEvent(new Event("key-needed"));
  const problem = await answer.json().catch(() => ({}));
  throw new Error(problem.detail ?? `The service answered with status ${answer.status}.`);
}

// All items of a list, page by page.
export async function allOf(path) {
  const items = [];
  while (path) {
    const answer = await call(path);
    items.push(...(await answer.json()));
    path = answer.headers.get("Link")?.match(/<([^>]*)>; rel="next"/)?.[1];
  }
  return items;
}

export const json = async (path, options) => (await call(path, options)).json();

// The job when it has ended; `tell` gets it at every change.
export async function follow(id, tell) {
  // An EventSource sends no headers, so no key either.
  const last = sessionStorage.getItem(KEY) ? undefined : await events(id, tell);
  if (last) return last;
  for (;;) {
    const job = await json(`/jobs/${id}`);
    tell(job);
    if (ENDED.has(job.status)) return job;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

// The job when it has ended, or nothing when the stream broke: asking for the job then tells why.
function events(id, tell) {
  const source = new EventSource(`/jobs/${id}/events`);
  return new Promise((resolve) => {
    source.onerror = () => resolve();
    source.onmessage = ({ data }) => {
      const job = JSON.parse(data);
      tell(job);
      if (ENDED.has(job.status)) resolve(job);
    };
  }).finally(() => source.close());
}
