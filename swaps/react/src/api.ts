/** The backend's contract: which model answers, and a reply as a stream of events. */
import { EventSourceParserStream } from "eventsource-parser/stream";
import type { components, operations } from "./contract";

type StreamReply = operations["stream_llm_response_chat_stream_post"];
type Problem = StreamReply["responses"][503]["content"]["application/problem+json"];
export type Ready = components["schemas"]["Ready"];
export type Question = components["schemas"]["ConversationHistory"];
export type ReplyEvent = StreamReply["responses"][200]["content"]["text/event-stream"];

const BACKEND: string = import.meta.env.VITE_BACKEND_URL ?? "http://127.0.0.1:8000";
const START = `Start it with CHATBOT_ALLOWED_ORIGINS=${location.origin}, then ask again.`;
const BROKE_OFF = "broke off. Restart it if it is down, then ask again.";
const CHECK_LOG = "Check its log, then ask again.";

/** A failure to show: the message says what failed and what to do next. */
export class ChatError extends Error {}

/** Return the answer of a route; throw a `ChatError` if there is none or it reports a failure. */
async function request(path: string, init: RequestInit, advice = ""): Promise<Response> {
  const answer = await fetch(BACKEND + path, init).catch(() => {
    throw new ChatError(`No backend answers this page at ${BACKEND}. ${advice}`.trim());
  });
  if (answer.ok) return answer;
  const problem: Partial<Problem> = await answer.json().catch(() => ({}));
  const failed = `The backend at ${BACKEND} answered ${answer.status} without a reply. ${CHECK_LOG}`;
  throw new ChatError(problem.detail ?? failed);
}

/** Return which model answers; throw a `ChatError` while none does. */
export async function askReady(signal: AbortSignal): Promise<Ready> {
  return (await request("/ready", { signal })).json();
}

/**
 * Yield the events of a reply, the last one `done`; throw a `ChatError` if it ends otherwise, and
 * any other error if the backend sends what the contract does not have.
 */
export async function* streamReply(question: Question, signal: AbortSignal) {
  const headers = { "Content-Type": "application/json" };
  const init = { method: "POST", headers, body: JSON.stringify(question), signal };
  const answer = await request("/chat/stream", init, START);
  const text = answer.body!.pipeThrough(new TextDecoderStream());
  const reader = text.pipeThrough(new EventSourceParserStream()).getReader();
  for (;;) {
    const { value } = await reader.read().catch(() => ({ value: undefined }));
    if (!value) throw new ChatError(`The reply from the backend at ${BACKEND} ${BROKE_OFF}`);
    const told = { event: value.event, data: JSON.parse(value.data) } as ReplyEvent;
    if (told.event === "error") throw new ChatError(told.data.detail);
    yield told;
    if (told.event === "done") return;
  }
}
