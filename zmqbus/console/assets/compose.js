// The dialog for a message to one session, a project, a topic or everyone; and the dialog that asks for confirmation.

import { $, h, setText, show, toast } from "./dom.js";
import { post } from "./net.js";
import { known, on, sessionOf } from "./store.js";
import { age, bytes, line, plural, projectName } from "./text.js";

/** Size limits of the bus. The console enforces them; the dialog warns in time. */
const MAX_ONE_BYTES = 10 * 1024 * 1024;
const MAX_MANY_BYTES = 256 * 1024;
const LABELS = { session: "Session", project: "Project", topic: "Topic" };

/** Unsent drafts kept. */
const MAX_DRAFTS = 50;

/** The message being written. Each opened dialog has its own, so that neither its text nor the outcome of sending it
 *  gets into another dialog. */
let draft = null; // {key, reply, to: {name, id}, sending}
/** key → {scope, to, text}: unsent drafts. A draft comes back only in a dialog for the same receiver or answer. */
const drafts = new Map();
const encoder = new TextEncoder();

const scope = () => $("compose-form").elements.scope.value;
const keyOf = (to, reply) => (reply ? `reply ${reply.id}` : to ? `to ${to.id}` : "new");

const idOf = (name) => known.sessions.find((session) => session.name === name)?.id;

/** Returns the receiver: the id of the session that the dialog was opened for, or of the session with the typed name;
 *  otherwise the typed text. */
function receiver() {
  const typed = $("compose-to").value.trim();
  if (scope() === "session") {
    // By id: another session may have taken the name since, or have a name with this prefix.
    if (draft.to && typed === draft.to.name) return draft.to.id;
    return idOf(typed) ?? typed;
  }
  if (scope() === "project") return known.sessions.find((session) => projectName(session.project) === typed)?.project ?? typed;
  return typed.replace(/^#/, "");
}

function options() {
  const others = known.sessions.filter((session) => session.id !== known.self);
  if (scope() === "session") return others.map((session) => [session.name, session.label]);
  if (scope() === "project") return [...new Set(others.map((session) => session.project))].map((path) => [projectName(path), path]);
  return [];
}

function refresh() {
  if (!draft) return;
  const kind = scope();
  show($("compose-to-field"), kind !== "all");
  setText($("compose-to-label"), LABELS[kind] ?? "");
  $("compose-names").replaceChildren(...options().map(([value, label]) => h("option", { value, label: label ? line(label) : null })));
  const many = known.sessions.filter((session) => session.id !== known.self).length;
  setText($("compose-send"), draft.sending ? "Sending …" : kind === "all" ? `Send to ${plural(many, "session")}` : "Send");
  $("compose-send").disabled = draft.sending;
  $("compose-text").readOnly = draft.sending;
  const size = encoder.encode($("compose-text").value).length;
  const most = kind === "session" ? MAX_ONE_BYTES : MAX_MANY_BYTES;
  setText($("compose-size"), size > most ? `${bytes(size)}: over the limit of ${bytes(most)}` : size > 1000 ? bytes(size) : "Ctrl + Enter sends");
  $("compose-size").classList.toggle("wrong", size > most);
  show($("compose-answers"), draft.reply !== null);
  show($("compose-scope"), draft.reply === null);
  setText($("compose-title"), draft.reply ? "Answer" : "New message");
}

function wrong(text) {
  show($("compose-wrong"), Boolean(text));
  setText($("compose-wrong"), text ?? "");
}

export function open({ to = null, reply = null } = {}) {
  closed(); // browsers send the close event of the dialog before some time after it was closed
  const session = reply ? sessionOf(reply.from) : to;
  const name = session ? session.name : reply ? line(reply.name) : "";
  // An unlisted sender may have come back under its name with another id.
  const id = session?.id ?? (reply ? (idOf(reply.name) ?? reply.from) : null);
  draft = { key: keyOf(to, reply), reply, to: id ? { name, id } : null, sending: false };
  const before = drafts.get(draft.key);
  $("compose-form").elements.scope.value = before?.scope ?? "session";
  $("compose-to").value = (draft.key === "new" && before?.to) || name;
  $("compose-text").value = before?.text ?? "";
  if (reply) {
    $("compose-answers").replaceChildren(
      h("span", { class: "re" }, "↳ "),
      h("span", { class: "name" }, line(reply.name)),
      h("span", { class: "text", dir: "auto" }, line(reply.text)),
    );
  }
  wrong(null);
  refresh();
  $("compose").showModal();
  (session || reply ? $("compose-text") : $("compose-to")).focus();
}

function remember(key, what) {
  drafts.delete(key);
  if (what.text) drafts.set(key, what);
  if (drafts.size > MAX_DRAFTS) drafts.delete(drafts.keys().next().value);
}

/** Keeps the draft of a closed dialog, however it was closed. Does nothing while another dialog is open. */
function closed() {
  if (!draft || $("compose").open) return;
  if (!draft.sending) remember(draft.key, { scope: scope(), to: $("compose-to").value, text: $("compose-text").value });
  draft = null;
  $("compose-form").reset();
}

function outcome(receipt) {
  if (receipt.state === "broadcast") {
    const parts = [`${receipt.delivered} delivered`, `${receipt.queued} queued`];
    if (receipt.full.length) parts.push(`mailbox full at ${receipt.full.slice(0, 5).join(", ")}`);
    if (receipt.unsaved.length) parts.push(`not kept for ${receipt.unsaved.slice(0, 5).join(", ")}: the disk is full`);
    return [`Broadcast: ${parts.join(", ")}`, receipt.full.length + receipt.unsaved.length ? "wrong" : "done"];
  }
  if (receipt.state === "delivered") return [`Delivered to ${receipt.to}`, "done"];
  return [`Queued for ${receipt.to}: ${receipt.busy ? "it is busy" : `away ${age(receipt.away_s)}`}. It will be shown then.`, "done"];
}

async function send(event) {
  event?.preventDefault();
  const mine = draft;
  if (!mine || mine.sending) return;
  const written = { scope: scope(), to: $("compose-to").value, text: $("compose-text").value };
  if (written.scope !== "all" && !written.to.trim()) {
    wrong("Choose a receiver first.");
    $("compose-to").focus();
    return;
  }
  if (!written.text) {
    wrong("Write something first.");
    $("compose-text").focus();
    return;
  }
  wrong(null);
  mine.sending = true;
  refresh();
  let receipt;
  try {
    const to = written.scope === "all" ? "" : receiver();
    receipt = await post("/api/send", { scope: written.scope, to, text: written.text, replyTo: mine.reply?.id ?? null });
  } catch (error) {
    if (draft === mine) {
      mine.sending = false;
      refresh();
      wrong(line(error.message));
    } else {
      // The dialog has been closed, and another may be open: report the error beside it.
      if (draft?.key !== mine.key) remember(mine.key, written);
      toast(`Not sent to ${written.scope === "all" ? "everyone" : line(written.to)}: ${line(error.message)}`, "wrong");
    }
    return;
  }
  if (receipt.self) known.self = receipt.self;
  drafts.delete(mine.key);
  if (draft === mine) $("compose").close();
  toast(...outcome(receipt));
}

export function setUp() {
  $("compose-open").addEventListener("click", () => open());
  $("compose-form").addEventListener("submit", send);
  $("compose-form").addEventListener("input", refresh);
  $("compose-scope").addEventListener("change", () => {
    $("compose-to").value = "";
    refresh();
  });
  $("compose").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send(event);
  });
  $("compose").addEventListener("close", closed);
  on("sessions", () => $("compose").open && refresh());
}

let asked = null; // the open confirmation

/** Asks for confirmation of an action that cannot be undone. */
export function confirm({ title, text, yes, act }) {
  const dialog = $("confirm");
  const button = $("confirm-yes");
  const mine = (asked = {});
  setText($("confirm-title"), title);
  setText($("confirm-text"), text);
  setText(button, yes);
  button.disabled = false;
  button.onclick = async () => {
    button.disabled = true;
    try {
      await act();
      if (asked === mine) dialog.close();
    } catch (error) {
      if (asked === mine) {
        setText($("confirm-text"), line(error.message));
        button.disabled = false;
      } else {
        toast(line(error.message), "wrong"); // the dialog was closed, and may ask about something else now
      }
    }
  };
  dialog.onclose = () => {
    if (dialog.open) return; // the event of an earlier confirmation
    asked = null;
    button.onclick = null;
  };
  dialog.showModal();
  $("confirm-no").focus();
}
