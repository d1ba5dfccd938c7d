// What this page proves to the console, and the console to it, so that neither tells a secret to whoever else may
// answer on the port. zmqbus/console/tickets.py has the theory; both sides derive the same from a link.

const utf8 = new TextEncoder();

const encode = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
const decode = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (character) => character.charCodeAt(0));
const random = () => encode(crypto.getRandomValues(new Uint8Array(16)));

const importKey = (bytes) => crypto.subtle.importKey("raw", bytes, { name: "HMAC", hash: "SHA-256" }, false, ["sign", "verify"]);
const sign = (key, ...parts) => crypto.subtle.sign("HMAC", key, utf8.encode(parts.join("\n")));

async function proves(key, text, ...parts) {
  try {
    return await crypto.subtle.verify("HMAC", key, decode(text), utf8.encode(parts.join("\n")));
  } catch {
    return false; // no base64
  }
}

/** Uses up the link with this token. `post(body)` sends what the console is asked for with it, and gives its answer.
 *  The result is what makes a `Visitor`; null: whoever has answered does not know the link. */
export async function enter(token, post) {
  const [head, secretText] = token.split(".");
  let key;
  try {
    key = await importKey(decode(secretText));
  } catch {
    key = await importKey(new Uint8Array(32)); // it was cut: let the console say what is wrong with it
  }
  const nonce = random();
  const answer = await post({ link: head, nonce, proof: encode(await sign(key, "enter", nonce)) });
  if (!(await proves(key, String(answer.proof), "welcome", nonce, answer.visitor))) return null;
  return { id: answer.visitor, key: encode(await sign(key, "key", nonce, answer.visitor)) };
}

export class Visitor {
  static async of({ id, key }) {
    return new Visitor(id, await importKey(decode(key)));
  }

  constructor(id, key) {
    this.id = id;
    this.key = key;
  }

  /** What a request carries, and a function that says whether its answer comes from the console. */
  async request(method, target) {
    const nonce = random();
    const proof = `${this.id}.${nonce}.${encode(await sign(this.key, "request", nonce, method, target))}`;
    return [proof, (text) => proves(this.key, text ?? "", "answer", nonce, method, target)];
  }
}
