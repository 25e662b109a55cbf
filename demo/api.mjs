// Calls the JSON API and prints the answer, or what an expression picks from it.
//
//   node api.mjs GET /api/v1/models 'it.items.length'
//   node api.mjs POST /api/v1/models '' '{"name":"acme/silero-vad"}'
//
// HERDBOOK_URL names the server, HERDBOOK_TOKEN the caller. Exits 1 when the answer is not a success.

const [method, path, pick, body] = process.argv.slice(2);
const { HERDBOOK_URL: base, HERDBOOK_TOKEN: token } = process.env;

try {
  const response = await fetch(base + path, {
    method, body, headers: { ...(token && { authorization: `Bearer ${token}` }), ...(body && { 'content-type': 'application/json' }) },
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`${response.status} ${text.trim()}`);
  const picked = pick ? new Function('it', `return (${pick})`)(JSON.parse(text)) : text.trim();
  console.log(typeof picked === 'string' ? picked : JSON.stringify(picked));
} catch (err) {
  console.error(`${method} ${path}: ${err.cause?.message ?? err.message}`);
  process.exitCode = 1;
}
