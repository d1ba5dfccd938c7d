// Writing: to one session, to a project, to a topic, to everyone.

import { $, h, say, show, toast } from "./dom.js";
import { post } from "./net.js";
import { known, on, sessionOf } from "./store.js";
import { age, bytes, line, plural, projectName } from "./text.js";

/** The limits of the bus. The console holds them; here they are said in time. */
const MAX_ONE_BYTES = 10 * 1024 * 1024;
const MAX_MANY_BYTES = 256 * 1024;
const LABELS = { session: "Session", project: "Project", topic: "Topic" };

let answers = null; // the message that is answered
let sending = false;
const encoder = new TextEncoder();

const scope = () => $("compose-form").elements.scope.value;

/** Whom the field means: the id of a session where its name is known, else what was typed. */
function receiver() {
  const typed = $("compose-to").value.trim();
  if (scope() === "session") return known.sessions.find((session) => session.name === typed)?.id ?? typed;
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
  const kind = scope();
  show($("compose-to-field"), kind !== "all");
  say($("compose-to-label"), LABELS[kind] ?? "");
  $("compose-names").replaceChildren(...options().map(([value, label]) => h("option", { value, label: label ? line(label) : null })));
  const many = known.sessions.filter((session) => session.id !== known.self).length;
  say($("compose-send"), sending ? "Sending …" : kind === "all" ? `Send to ${plural(many, "session")}` : "Send");
  $("compose-send").disabled = sending;
  const size = encoder.encode($("compose-text").value).length;
  const most = kind === "session" ? MAX_ONE_BYTES : MAX_MANY_BYTES;
  say($("compose-size"), size > most ? `${bytes(size)}: over the limit of ${bytes(most)}` : size > 1000 ? bytes(size) : "Ctrl + Enter sends");
  $("compose-size").classList.toggle("wrong", size > most);
  show($("compose-answers"), answers !== null);
  show($("compose-scope"), answers === null);
  say($("compose-title"), answers ? "Answer" : "New message");
}

function wrong(text) {
  show($("compose-wrong"), Boolean(text));
  say($("compose-wrong"), text ?? "");
}

export function open({ to = null, reply = null } = {}) {
  answers = reply;
  const form = $("compose-form");
  if (to || reply) form.elements.scope.value = "session";
  const session = reply ? sessionOf(reply.from) : to;
  if (session || reply) $("compose-to").value = session ? session.name : line(reply.name);
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

function outcome(receipt) {
  if (receipt.state === "broadcast") {
    const parts = [`${receipt.delivered} delivered`, `${receipt.queued} queued`];
    if (receipt.full.length) parts.push(`no room at ${receipt.full.slice(0, 5).join(", ")}`);
    return [`Sent to many: ${parts.join(", ")}`, receipt.full.length ? "wrong" : "done"];
  }
  if (receipt.state === "delivered") return [`Delivered to ${receipt.to}`, "done"];
  return [`Queued for ${receipt.to}: ${receipt.busy ? "it is busy" : `away ${age(receipt.away_s)}`}. It is safe, and will be shown then.`, "done"];
}

async function send(event) {
  event?.preventDefault();
  if (sending) return;
  const text = $("compose-text").value;
  if (scope() !== "all" && !$("compose-to").value.trim()) {
    wrong("Say whom it is for.");
    $("compose-to").focus();
    return;
  }
  if (!text) {
    wrong("Write something first.");
    $("compose-text").focus();
    return;
  }
  wrong(null);
  sending = true;
  refresh();
  try {
    const receipt = await post("/api/send", { scope: scope(), to: scope() === "all" ? "" : receiver(), text, replyTo: answers?.id ?? null });
    if (receipt.self) known.self = receipt.self;
    $("compose-text").value = "";
    $("compose").close();
    toast(...outcome(receipt));
  } catch (error) {
    wrong(line(error.message));
  }
  sending = false;
  refresh();
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
  on("roster", () => $("compose").open && refresh());
}

/** Asks before something is done that cannot be taken back. */
export function confirm({ title, text, yes, act }) {
  const dialog = $("confirm");
  const button = $("confirm-yes");
  say($("confirm-title"), title);
  say($("confirm-text"), text);
  say(button, yes);
  button.disabled = false;
  button.onclick = async () => {
    button.disabled = true;
    try {
      await act();
      dialog.close();
    } catch (error) {
      say($("confirm-text"), line(error.message));
      button.disabled = false;
    }
  };
  dialog.showModal();
  $("confirm-no").focus();
}
