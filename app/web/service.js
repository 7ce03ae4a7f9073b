// Calls of the service, with its key and its problems.

const ENDED = new Set(["succeeded", "failed", "cancelled", "superseded"]);
const POLL_MS = [300, 3000]; // the first pause and the longest
const ATTEMPTS = 6; // half a minute, or as long as the service asks for
const LONGEST_PAUSE_S = 60;
const KEY = "exemplar-api-key";

export const useKey = (value) => sessionStorage.setItem(KEY, value);

// What went wrong, with a sentence for a person as its message. `later`: seconds after which the same call may succeed.
class Refusal extends Error {
  constructor(message, { status, later } = {}) {
    super(message);
    Object.assign(this, { status, later });
  }
}

// The answer; throws a Refusal. Paths are relative to the page, so that it works under a prefix too.
export async function call(path, { headers = {}, ...options } = {}) {
  const key = sessionStorage.getItem(KEY);
  const sent = { ...options, headers: key ? { ...headers, "X-API-Key": key } : headers };
  const answer = await fetch(path, sent).catch(async (error) => {
    if (options.signal?.aborted) throw error;
    await checkFiles(options.body);
    throw new Refusal("The service does not answer: is it running, and can this machine reach it?", { later: 0 });
  });
  if (answer.ok) return answer;
  // Unknown, or known and not allowed to do this: another one may be.
  if (answer.status === 401 || (answer.status === 403 && key)) document.dispatchEvent(new Event("key-needed"));
  const problem = await answer.json().catch(() => ({}));
  const { status } = answer;
  const later = status === 429 || status === 503 ? Number(answer.headers.get("Retry-After")) || 0 : undefined;
  throw new Refusal(problem.detail ?? `The service answered with status ${status}.`, { status, later });
}

// Throws if a file of a form is gone: the browser tells only that the call failed.
async function checkFiles(body) {
  const parts = body instanceof FormData ? [...body.values()] : [];
  for (const part of parts.filter((part) => part instanceof File)) {
    // The whole of it: Chromium reads a part of a file that is gone as empty.
    await part.arrayBuffer().catch(() => {
      throw new Refusal(`${part.name} can't be read any more: choose it again.`);
    });
  }
}

const pause = (ms, signal) =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
    signal?.addEventListener("abort", resolve);
  });

// Asks again while the service is busy or restarts, after the pause that it asks for; `tell` gets the seconds of each.
export async function patiently(ask, { signal, tell = () => {} } = {}) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await ask();
    } catch (error) {
      if (error.later === undefined || attempt === ATTEMPTS || signal?.aborted) throw error;
      const seconds = Math.min(LONGEST_PAUSE_S, Math.max(error.later, 2 ** (attempt - 1)));
      tell(seconds);
      await pause(1000 * seconds, signal);
      if (signal?.aborted) throw error;
    }
  }
}

// All items of a list, page by page.
export async function allOf(path) {
  const items = [];
  while (path) {
    const answer = await call(path);
    items.push(...(await answer.json()));
    // Of the next page's address the query alone: a proxy may have taken a prefix off the path.
    const query = answer.headers.get("Link")?.match(/<[^>?]*(\?[^>]*)>; rel="next"/)?.[1];
    path = query && path.split("?")[0] + query;
  }
  return items;
}

export const json = async (path, options) => (await call(path, options)).json();

// The job when it has ended; `tell` gets it at every change.
export async function follow(id, tell) {
  // An EventSource sends no headers, so no key either.
  const last = sessionStorage.getItem(KEY) ? undefined : await events(id, tell);
  if (last) return last;
  for (let [ms, longest] = POLL_MS; ; ms = Math.min(longest, 1.3 * ms)) {
    const job = await patiently(() => json(`jobs/${id}`));
    tell(job);
    if (ENDED.has(job.status)) return job;
    await pause(ms);
  }
}

// Waits for a job of the category at `path` whose progress nobody looks at, and for those that take its place; throws
// unless one was learnt.
export async function learnt({ id }, path) {
  const { status, error } = await follow(id, () => {});
  if (status === "failed") throw new Error(`Learning failed: ${error}`);
  if (status === "cancelled") throw new Error("Learning was cancelled. It is made up for with the next example.");
  if (status !== "superseded") return;
  const later = await laterJob(id, path);
  if (!later) throw new Error(`Nothing was learnt: ${error}`);
  await learnt({ id: later }, path);
}

// The id of the job that a category waits for after a superseded one. There is none after a rollback or an import, and
// where no example, or no category, is left.
export async function laterJob(id, path) {
  const { job } = await patiently(() => json(path)).catch((error) => {
    if (error.status === 404) return {};
    throw error;
  });
  return job === id ? undefined : job;
}

// The job when it has ended, or nothing when the stream broke: asking for the job then tells why.
function events(id, tell) {
  const source = new EventSource(`jobs/${id}/events`);
  return new Promise((resolve) => {
    source.onerror = () => resolve();
    source.onmessage = ({ data }) => {
      const job = JSON.parse(data);
      tell(job);
      if (ENDED.has(job.status)) resolve(job);
    };
  }).finally(() => source.close());
}
