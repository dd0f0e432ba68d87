/** The page: ask, watch the reply grow, stop it, ask again, come back to it later. */
import { useEffect, useRef, useState, useSyncExternalStore } from "react";
import type { FormEvent, KeyboardEvent } from "react";
import { askReady, ChatError, streamReply, type Question } from "./api";
import { deleteTurns, listChats, newId, readTurns, saveTurn, type Turn } from "./history";

const MAX_QUESTION_CHARS = 10_000;
const MAX_TURNS = 1000; // that the backend accepts in one request
const LOOK_AGAIN_MS = 2000; // for a model that is loading or away
const UNSAVED = "The browser's storage is full: a reload loses what is new. Delete a chat.";
const INVALID = "The backend sent an invalid reply. Check its log, then ask again.";
const EMPTY = "The model ended this reply before its first word. Ask again, or ask something else.";
const ENDS: Record<string, string> = {
  length: "Cut at the length limit.",
  timeout: "Cut at the time limit.",
  stopped: "Stopped here.",
  failed: "Broken off here.",
  unfinished: "Not finished.",
};

const explain = (error: unknown) => (error instanceof ChatError ? error.message : INVALID);

function explainEnd({ end, reply, failure }: Turn): string | undefined {
  if (!reply && failure) return ""; // which says it all
  return ENDS[end] ?? (reply.trim() ? "" : EMPTY);
}

/** Return a request: the model gets the replies that are done or were stopped. */
function toRequest(turns: Turn[], question: string): Question {
  const kept = turns.filter(({ end }) => end !== "failed" && end !== "unfinished");
  const past = kept.slice(-MAX_TURNS);
  return {
    past_user_inputs: past.map((turn) => turn.question),
    generated_responses: past.map((turn) => turn.reply),
    user_input: question,
  };
}

/** Return the model's name, or why none answers; look again when a reply fails. */
function useModel(failure?: string): string {
  const [model, setModel] = useState("");
  useEffect(() => {
    const leaving = new AbortController();
    async function look() {
      try {
        const { model, engine, dtype } = await askReady(leaving.signal);
        setModel(`${model} on ${engine}${dtype && `, ${dtype}`}`);
      } catch (error) {
        if (leaving.signal.aborted) return;
        setModel(explain(error));
        setTimeout(look, LOOK_AGAIN_MS);
      }
    }
    look();
    return () => leaving.abort();
  }, [failure]);
  return model;
}

function openNewChat() {
  location.hash = newId();
}

/** Return the chat that the address names; a bare address gets a new one. */
function chatInAddress(): string {
  if (!/^#[\w-]+$/.test(location.hash)) history.replaceState(null, "", `#${newId()}`);
  return location.hash.slice(1);
}

function followAddress(changed: () => void) {
  addEventListener("hashchange", changed);
  return () => removeEventListener("hashchange", changed);
}

export function App() {
  const chat = useSyncExternalStore(followAddress, chatInAddress);
  return <Chat key={chat} chat={chat} />;
}

function Chat({ chat }: { chat: string }) {
  const [turns, setTurns] = useState(() => readTurns(chat));
  const [others] = useState(() => listChats().filter(([id]) => id !== chat));
  const [text, setText] = useState("");
  const [status, setStatus] = useState(""); // of the reply under way; empty if there is none
  const [isFull, setFull] = useState(false);
  const underWay = useRef<AbortController>(null);
  const box = useRef<HTMLTextAreaElement>(null);
  const newest = turns.at(-1);
  const model = useModel(newest?.failure);

  useEffect(() => () => underWay.current?.abort(), []);

  function show(turn: Turn) {
    setTurns((all) => [...all.filter(({ id }) => id !== turn.id), turn]);
    try {
      saveTurn(chat, turn);
    } catch {
      setFull(true);
    }
  }

  async function ask(question: string, id = newId()) {
    const { signal } = (underWay.current = new AbortController());
    const request = toRequest(
      turns.filter((turn) => turn.id !== id),
      question,
    );
    let turn: Turn = { id, question, reply: "", end: "unfinished" };
    const update = (change: Partial<Turn>) => show((turn = { ...turn, ...change }));
    update({});
    setStatus("Waiting for the first word ...");
    box.current?.focus(); // the button that was pressed disappears
    try {
      for await (const { event, data } of streamReply(request, signal)) {
        if (event === "waiting") {
          setStatus(`The backend is busy. Requests ahead of yours: ${data.ahead} ...`);
        } else if (event === "token") {
          setStatus("Writing ...");
          update({ reply: turn.reply + data.text });
        } else if (event === "done") {
          update({ end: data.reason, turnsLeftOut: data.turns_left_out });
        }
      }
    } catch (error) {
      if (signal.aborted) update({ end: "stopped" });
      else update({ end: "failed", failure: explain(error) });
      box.current?.focus(); // Stop, too
    }
    setStatus("");
  }

  function submit(event: FormEvent) {
    event.preventDefault();
    if (status || !text.trim()) return;
    setText("");
    ask(text);
  }

  function submitOnEnter(event: KeyboardEvent) {
    if (event.key === "Enter" && !event.shiftKey && !event.nativeEvent.isComposing) submit(event);
  }

  function edit(turn: Turn) {
    deleteTurns(chat, turn.id);
    setTurns(turns.filter((each) => each !== turn));
    setText(turn.question);
    box.current?.focus();
  }

  function forget() {
    deleteTurns(chat);
    openNewChat();
  }

  return (
    <main>
      <h1>React chatbot</h1>
      <div className="buttons">
        <button onClick={openNewChat}>New chat</button>
        <button onClick={forget} disabled={!newest || !!status}>
          Delete this chat
        </button>
      </div>
      {isFull && <p role="alert">{UNSAVED}</p>}
      <form onSubmit={submit}>
        <textarea
          ref={box}
          value={text}
          onChange={(event) => setText(event.target.value)}
          onKeyDown={submitOnEnter}
          aria-label="Your question"
          placeholder="Ask your question"
          maxLength={MAX_QUESTION_CHARS}
          autoFocus
        />
        <button className="primary" disabled={!!status || !text.trim()}>
          Ask
        </button>
      </form>
      <p className="note" role="status">
        {status}
      </p>
      {!!newest?.turnsLeftOut && (
        <p className="note">Oldest turns that no longer fit the model: {newest.turnsLeftOut}</p>
      )}
      <ol aria-label="Conversation, newest turn first">
        {turns.toReversed().map((turn) => (
          <li key={turn.id}>
            <p className="question">{turn.question}</p>
            <div aria-live="polite" aria-busy={turn === newest && !!status}>
              {turn.reply && <p className="reply">{turn.reply}</p>}
            </div>
            {(turn !== newest || !status) && <p className="note">{explainEnd(turn)}</p>}
            {turn.failure && <p role="alert">{turn.failure}</p>}
            {turn === newest && (
              <div className="buttons">
                {status ? (
                  <button onClick={() => underWay.current?.abort()}>Stop</button>
                ) : (
                  <>
                    <button onClick={() => ask(turn.question, turn.id)}>Ask again</button>
                    <button onClick={() => edit(turn)}>Edit</button>
                  </>
                )}
              </div>
            )}
          </li>
        ))}
      </ol>
      <nav aria-label="Other chats in this browser">
        {others.map(([id, title]) => (
          <a key={id} href={`#${id}`}>
            {title}
          </a>
        ))}
      </nav>
      <footer>{model}</footer>
    </main>
  );
}
