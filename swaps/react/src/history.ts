/** Chats in the browser's storage, one item per turn: two tabs do not overwrite each other. */
export type Turn = {
  id: string;
  question: string;
  reply: string;
  end: string; // the backend's reason, or: unfinished, stopped, failed
  failure?: string;
  turnsLeftOut?: number;
};

const PREFIX = "chatbot-react/";

function openStorage(): Record<string, string> {
  try {
    return localStorage;
  } catch {
    return {}; // the browser allows none: what is said lasts as long as the page
  }
}

const storage = openStorage();
const keysOf = (prefix: string) =>
  Object.keys(storage)
    .filter((key) => key.startsWith(PREFIX + prefix))
    .sort();
const readTurn = (key: string): Turn => JSON.parse(storage[key]!);

/** Return an id that sorts by time. */
export const newId = () => `${Date.now()}-${Math.random().toString(36).slice(2, 10)}`;

/** Return the turns of a chat, oldest first. */
export const readTurns = (chat: string) => keysOf(`${chat}/`).map(readTurn);

/** Return each chat's id and first question, newest chat first. */
export function listChats(): [id: string, title: string][] {
  const chats = new Map<string, string>();
  for (const key of keysOf("")) {
    const id = key.split("/")[1]!;
    if (!chats.has(id)) chats.set(id, readTurn(key).question);
  }
  return [...chats].reverse();
}

/** Save a turn; throws if the storage is full. */
export function saveTurn(chat: string, turn: Turn): void {
  storage[`${PREFIX}${chat}/${turn.id}`] = JSON.stringify(turn);
}

/** Delete one turn of a chat, by default all. */
export function deleteTurns(chat: string, id = ""): void {
  for (const key of keysOf(`${chat}/${id}`)) delete storage[key];
}
