"use strict";
// The data of the page. Columns are unpacked when they are first read, and stay. The page is drawn while those that it
// does not show yet are still being read from the file.

const KIND = { u4: Uint32Array, i1: Int8Array, f4: Float32Array, f8: Float64Array };
const CARRIES = -1, NO_PART = -2, PUT_IN = -3;
const columns = {}, asked = {};
let head;

async function inflate(text) {
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The bytes of each value stand in planes: all first bytes, then all second ones.
function gathered(planes, kind) {
  const size = KIND[kind].BYTES_PER_ELEMENT, n = planes.length / size;
  if (size === 1) return new KIND[kind](planes.buffer);
  const words = new Uint32Array(planes.length / 4), each = size / 4;
  for (let word = 0; word < each; word++)
    for (let i = 0, a = 4 * word * n, b = a + n, c = b + n, d = c + n; i < n; i++)
      words[i * each + word] = planes[a + i] | (planes[b + i] << 8) | (planes[c + i] << 16) | (planes[d + i] << 24);
  return new KIND[kind](words.buffer);
}

async function need(names) {
  await Promise.all(names.filter((name) => head.columns.includes(name)).map((name) => (asked[name] ??= unpack(name))));
}

async function unpack(name) {
  const element = await whole(`script[data-column="${CSS.escape(name)}"]`);
  columns[name] = gathered(await inflate(element.textContent), element.dataset.kind);
  element.remove();
}

// An element once all of it is there: what stands behind it is.
async function whole(selector) {
  const found = () => document.querySelector(selector);
  if (document.readyState === "loading" && !found()?.nextSibling)
    await new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve, { once: true }));
  return found();
}

async function open() {
  head = JSON.parse(new TextDecoder().decode(await inflate(document.getElementById("head").textContent)));
  await need(["start", "text"]);
  let row = 0;
  for (const batch of head.batches) {
    batch.first = row;
    batch.groups = new Map();
    for (const end = row + batch.rows; row < end; row++) {
      const name = head.rows[row].group;
      if (!batch.groups.has(name)) batch.groups.set(name, []);
      batch.groups.get(name).push(row);
    }
    batch.tokens = [columns.start[batch.first], columns.start[row]];
  }
  for (const objective of head.objectives) objective.number = head.objectives.indexOf(objective);
}

// {name: [columns that it reads, values from them]} of what can be shown of an objective's tokens.
function streams(objective) {
  const of = (column) => `${column} ${objective.number}`;
  const minus = (a, b) => [[`stream ${a}`, `stream ${b}`], (x, y) => x.map((value, i) => value - y[i])];
  const known = (a, b) => head.streams.includes(a) && head.streams.includes(b);
  const found = {
    credit: [[of("credit")], (x) => x],
    "credit × weight": [[of("credit"), of("weight"), of("taken")], pushed],
    weight: [[of("weight")], (x) => x],
  };
  for (const place of objective.after.slice(0, -1))
    found[`after ${objective.pieces[place].name}`] = [[`${of("after")} ${place}`], (x) => x];
  for (const name of head.streams) found[name] = [[`stream ${name}`], (x) => x];
  if (known("logprob", "old_logprob")) found["logprob − old_logprob"] = minus("logprob", "old_logprob");
  if (known("logprob", "ref_logprob")) found["logprob − ref_logprob"] = minus("logprob", "ref_logprob");
  if (known("guide_logprob", "ref_logprob")) found["guide − ref_logprob"] = minus("guide_logprob", "ref_logprob");
  return found;
}

function pushed(credit, weight, taken) {
  return Float64Array.from(credit, (value, i) => (taken[i] === CARRIES ? value * weight[i] : taken[i] < CARRIES ? NaN : 0));
}

// Values without those of tokens that the policy did not choose, which are in no count and on no scale.
async function chosenOnly(objective, found) {
  const name = `taken ${objective.number}`;
  await need([name]);
  const taken = columns[name];
  return taken.includes(PUT_IN) ? found.map((value, i) => (taken[i] === PUT_IN ? NaN : value)) : found;
}

const valuesOf = new Map();

async function values(objective, name) {
  const key = `${objective.number} ${name}`;
  if (!valuesOf.has(key)) {
    const [names, compute] = streams(objective)[name];
    await need(names);
    valuesOf.set(key, compute(...names.map((column) => columns[column])));
  }
  return valuesOf.get(key);
}

// [what, tokens, place of the piece] of a batch, as Credits.waterfall has it.
async function waterfall(objective, [from, to]) {
  await need([`taken ${objective.number}`]);
  const taken = columns[`taken ${objective.number}`];
  const counts = new Array(objective.pieces.length).fill(0);
  let carrying = 0, generated = 0;
  for (let i = from; i < to; i++) {
    if (taken[i] >= CARRIES) generated++;
    if (taken[i] === CARRIES) carrying++;
    else if (taken[i] >= 0) counts[taken[i]]++;
  }
  const pieces = objective.pieces.map((piece, place) => [piece.name, counts[place], place]);
  return [["generated", generated, null], ...pieces, ["carrying gradient", carrying, CARRIES]];
}

// A scale that one wild value does not flatten: the 98th percentile of the sizes that are not 0.
function robust(found, [from, to]) {
  const sizes = found.subarray(from, to).map(Math.abs).filter((size) => size > 0 && isFinite(size)).sort();
  return sizes.length ? sizes[Math.floor(0.98 * (sizes.length - 1))] : 1;
}
