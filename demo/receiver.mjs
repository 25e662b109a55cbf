// Receives webhooks: checks the Standard Webhooks signature and writes each CloudEvent as one line of a file.
//
//   node receiver.mjs --secret-file FILE --port-file FILE --events FILE
//
// Listens on a free port of 127.0.0.1 and writes its number to the port file once it answers.

import { createHmac, timingSafeEqual } from 'node:crypto';
import { appendFileSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { parseArgs } from 'node:util';

const MAX_BODY = 1 << 20; // bytes
const MAX_AGE = 5 * 60; // seconds between the signature and now

const { values: flags } = parseArgs({ options: {
  'secret-file': { type: 'string' }, 'port-file': { type: 'string' }, events: { type: 'string' },
} });
const secret = readFileSync(flags['secret-file'], 'utf8').trim();
if (!secret.startsWith('whsec_')) throw new Error(`${flags['secret-file']}: not a whsec_ secret`);
const key = Buffer.from(secret.slice('whsec_'.length), 'base64');

// Source: Standard Webhooks 1.0, "Verifying webhook authenticity". The header lists signatures, separated by
// spaces, so that a secret can be replaced without a gap.
function verified(headers, body) {
  const { 'webhook-id': id, 'webhook-timestamp': timestamp, 'webhook-signature': signatures } = headers;
  if (!id || !signatures || !(Math.abs(Date.now() / 1000 - Number(timestamp)) <= MAX_AGE)) return false;
  const want = createHmac('sha256', key).update(`${id}.${timestamp}.`).update(body).digest();
  return signatures.split(' ').some((entry) => {
    const [version, signature] = entry.split(',');
    const got = Buffer.from(signature ?? '', 'base64');
    return version === 'v1' && got.length === want.length && timingSafeEqual(got, want);
  });
}

const server = createServer(async (request, response) => {
  const answer = (status) => response.writeHead(status).end();
  const chunks = [];
  let size = 0;
  try {
    for await (const chunk of request) {
      chunks.push(chunk);
      if ((size += chunk.length) > MAX_BODY) return answer(413);
    }
  } catch {
    return undefined; // the sender went away
  }
  const body = Buffer.concat(chunks);
  if (request.method !== 'POST') return answer(405);
  if (!verified(request.headers, body)) return answer(401);
  let event;
  try {
    event = JSON.parse(body);
  } catch {
    return answer(400);
  }
  appendFileSync(flags.events, `${JSON.stringify(event)}\n`);
  return answer(204);
});

writeFileSync(flags.events, '', { flag: 'a' });
server.listen(0, '127.0.0.1', () => { // renamed, so that a reader never sees half a number
  writeFileSync(`${flags['port-file']}.new`, `${server.address().port}\n`);
  renameSync(`${flags['port-file']}.new`, flags['port-file']);
});
