// Mutual authentication of the page and the console: neither sends a secret that another program answering on the port
// could use. zmqbus/console/auth.py has the theory of operation; both sides derive the same keys from a link.

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
    return false; // not Base64
  }
}

/** Signs in with the token of a link. `post(body)` sends the request and returns the answer. Returns credentials for
 *  `Visitor.of`, or null when the answer does not come from the console of the link. */
export async function enter(token, post) {
  const [head, secretText] = token.split(".");
  let key;
  try {
    key = await importKey(decode(secretText));
  } catch {
    key = await importKey(new Uint8Array(32)); // a truncated token: let the console refuse it
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

  /** Returns the proof for a request, and a function that checks the proof of its response. */
  async request(method, target) {
    const nonce = random();
    const proof = `${this.id}.${nonce}.${encode(await sign(this.key, "request", nonce, method, target))}`;
    return [proof, (text) => proves(this.key, text ?? "", "answer", nonce, method, target)];
  }
}
