"use strict";
// The waterfall and the responses of a group, token by token.

const MOST = 30000;  // tokens that one view lays out

async function tokensView() {
  const o = objective(), batch = head.batches[state.batch];
  const found = await values(o, state.stream);
  const shown = { objective: o, found, scale: robust(await chosenOnly(o, found), batch.tokens), stream: state.stream };
  await need(["id"]);
  const groups = state.hit === null ? [[state.group, batch.groups.get(state.group)]] : hitGroups(o, batch);
  let room = MOST, cut = 0;
  const parts = groups.map(([name, rows]) => {
    const size = rows.reduce((sum, row) => sum + columns.start[row + 1] - columns.start[row], 0);
    if (size > room && room < MOST) return void cut++;
    room -= size;
    return groupPart(name, rows, shown);
  });
  return [
    await waterfallPart(o, batch), hitNote(groups, batch), legend(shown), parts.filter(Boolean),
    cut ? h("p", { class: "note" }, `${cut} more groups are not laid out; take one step, or one group, at a time.`) : null,
  ];
}

const isPairs = (batch) => head.rows[batch.first].chosen !== undefined;

const groupWord = (batch) => (isPairs(batch) ? "pair" : "group");

const hits = (o, i) => state.hit !== null && columns[`taken ${o.number}`][i] === state.hit;

function hitGroups(o, batch) {
  const has = (rows) => rows.some((row) => {
    for (let i = columns.start[row]; i < columns.start[row + 1]; i++) if (hits(o, i)) return true;
    return false;
  });
  return [...batch.groups].filter(([, rows]) => has(rows));
}

async function waterfallPart(o, batch) {
  const steps = await waterfall(o, batch.tokens), whole = steps[0][1] || 1;
  let left = steps[0][1];
  const bars = steps.map(([name, count, place]) => {
    const taken = place !== null && place !== CARRIES;
    const from = taken ? left - count : 0;
    if (taken) left -= count;
    const kind = taken ? "taken" : place === null ? "generated" : "carrying";
    const percent = `${((100 * count) / whole).toFixed(1)} %`;
    return h("button", {
      class: `bar ${kind}`, "data-place": place === null ? "all" : place, "data-count": count, "aria-pressed": place !== null && state.hit === place,
      title: taken ? o.pieces[place].about.split("\n\n")[0] : null,
      onclick: () => set({ hit: place === null || state.hit === place ? null : place }),
    },
      h("span", { class: "name" }, place === null && isPairs(batch) ? "in the pairs" : visible(name, 60)),
      s("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
        s("rect", { x: (100 * from) / whole, width: Math.max((100 * count) / whole, count ? 0.3 : 0), y: 1, height: 8 })),
      h("span", { class: "count" }, `${taken && count ? "−" : ""}${count.toLocaleString("en")}`), h("span", { class: "share" }, percent));
  });
  const [from, to] = batch.tokens, facts = o.facts[state.batch] ?? {};
  await need([`credit ${o.number}`, `weight ${o.number}`]);
  const sum = (column) => { let total = 0; for (let i = from; i < to; i++) total += column[i] || 0; return total; };
  const known = { ...facts, "Σ credit": sum(columns[`credit ${o.number}`]), "Σ weight": sum(columns[`weight ${o.number}`]) };
  const rows = (o.kept[state.batch] ?? []).filter(Boolean).length;
  return h("section", { class: "waterfall", "aria-label": "from generated tokens to those that carry gradient" },
    h("h2", {}, `Where the tokens of ${stepName(batch)} went`), h("div", { class: "bars" }, bars),
    factsPart(known, `${rows} of ${batch.rows} responses take part${batch.whole > batch.rows ? ` (the batch had ${batch.whole}; the others are not on this page)` : ""}; click a bar to see its tokens.`));
}

function factsPart(facts, said) {
  const { unit, ...numbers } = facts;
  return h("p", { class: "facts" }, said ? `${said} ` : "", Object.entries(numbers).map(([name, value], i) =>
    [i ? " · " : "", h("span", { "data-fact": name, "data-value": value }, `${visible(name, 60)} ${number(value)}${name === "count" ? ` (${unit})` : ""}`)]));
}

function hitNote(groups, batch) {
  if (state.hit === null) return null;
  const piece = objective().pieces[state.hit];
  const what = piece ? `Tokens that ${visible(piece.name, 60)} took` : "Tokens that carry gradient";
  return h("div", { class: "note" }, h("b", {}, `${what}, in ${groups.length} of ${batch.groups.size} groups. `),
    piece?.about ? `${piece.about.split("\n\n")[0].replaceAll("\n", " ")} ` : "", "They are framed below; Esc goes back.");
}

function legend({ scale, stream }) {
  const marks = [-1, -0.5, -0.15, 0, 0.15, 0.5, 1].map((part) =>
    h("span", { class: `t ${look(part * scale, scale)}` }, number(part * scale)));
  return h("p", { class: "legend" }, `${visible(stream, 60)}: `, marks, h("span", { class: "t up l8 over" }, "beyond the scale"),
    h("span", { class: "t missing" }, "not known"), h("span", { class: "t taken" }, "taken"), h("span", { class: "t env" }, "not the policy's"));
}

function groupPart(name, rows, shown) {
  const order = byReward(rows);
  const folded = state.hit === null && !state.unfolded ? commonPrefix(order) : 0;
  const rewards = rows.map((row) => head.rows[row].reward).filter((reward) => reward !== undefined);
  const pair = isPairs(head.batches[head.rows[rows[0]].batch]);  // its rewards only say which one was chosen
  const spread = rewards.length && !pair ? `, mean reward ${number(mean(rewards))}, std ${number(deviation(rewards))}` : "";
  return h("section", { class: "group" },
    h("h2", {}, pair ? `Pair ${visible(name, 60)}` : `Group ${visible(name, 60)}: ${rows.length} responses${spread}`),
    promptPart(head.prompts[head.rows[rows[0]].prompt]),
    folded ? h("button", { class: "fold", onclick: () => set({ unfolded: true }) }, `${folded} tokens that all begin with: show them`) : null,
    h("div", { class: "rows" }, order.map((row) => rowPart(row, folded, shown))));
}

const byReward = (rows) => [...rows].sort((a, b) => (head.rows[b].reward ?? -Infinity) - (head.rows[a].reward ?? -Infinity) || a - b);

function commonPrefix(rows) {
  if (rows.length < 2) return 0;
  const [first, ...others] = rows.map((row) => columns.id.subarray(columns.start[row], columns.start[row + 1]));
  let n = 0;
  while (n < first.length && others.every((ids) => n < ids.length && ids[n] === first[n])) n++;
  return n < 3 ? 0 : n;
}

// A prompt by its turns, folded but for the last words of the user; hatched, since the policy did not write it.
const TURN = /<\|im_start\|>(\w+)\n?|<\|start_header_id\|>(\w+)<\|end_header_id\|>\s*|<start_of_turn>(\w+)\n?/g;

function promptPart(text) {
  const marks = [...text.matchAll(TURN)];
  const turns = marks.map((mark, i) => [mark[1] ?? mark[2] ?? mark[3],
    text.slice(mark.index + mark[0].length, marks[i + 1]?.index).replace(/<\|im_end\|>\s*$|<\|eot_id\|>\s*$|<end_of_turn>\s*$/, "")]);
  const spoken = marks.length ? turns.filter(([, said]) => said.trim()) : [["prompt", text]];
  return h("div", { class: "prompt" }, spoken.map(([role, said], i) =>
    fold(`${i} ${text}`, i === spoken.length - 1, "turn env", `${visible(role, 40)} · ${said.length} characters`, h("p", {}, visible(said, 4000)))));
}

// What folds, and stays as a person left it when the view is drawn anew.
const folds = new Map();

function fold(key, open, kind, summary, content) {
  return h("details", { class: kind, open: folds.get(key) ?? open, ontoggle: (event) => folds.set(key, event.target.open) },
    h("summary", {}, summary), content);
}

function rowPart(row, folded, { objective: o, found, scale }) {
  const facts = head.rows[row], [from, to] = [columns.start[row], columns.start[row + 1]];
  const taken = columns[`taken ${o.number}`], batch = head.batches[facts.batch];
  const theirs = taken.subarray(from, to).filter((place) => place === PUT_IN).length;
  const kept = o.kept[facts.batch]?.[row - batch.first];
  const judged = [facts.reward === undefined ? "no reward" : `reward ${number(facts.reward)}`,
    facts.correct === undefined ? null : facts.correct ? "✓ correct" : "✗ wrong"];
  const words = [
    ...(facts.chosen === undefined ? judged : [facts.chosen ? "✓ chosen" : "✗ rejected"]),
    facts.truncated ? "cut at the limit" : null, kept ? null : "not kept", `${to - from} tokens${theirs ? `, ${theirs} not the policy's` : ""}`,
  ].filter(Boolean);
  const until = Math.min(to, from + MOST);
  const laid = (start, end) => tokensPart(Math.max(start, from + folded), Math.min(end, until), { o, taken, found, scale });
  const rewards = Object.entries(facts.rewards ?? {}).map(([name, value]) => `${visible(name, 60)} ${number(value)}`).join(", ");
  const failed = Object.entries(facts.failed ?? {}).map(([name, why]) => `${visible(name, 60)} failed: ${visible(why)}`).join("; ");
  return h("article", { class: kept ? "row" : "row out", "data-row": row },
    h("h3", { title: rewards || null }, words.join(" · "), failed ? h("span", { class: "failed" }, ` ${failed}`) : null),
    turnsOf(facts, to - from).filter(([, , end]) => !folded || end > folded).map(([turn, start, end], i) => turn ? turnPart(turn, i, row, taken.subarray(from + start, from + end), laid(from + start, from + end)) : laid(from + start, from + end)),
    until < to ? h("p", { class: "note" }, `${to - until} more tokens are not laid out`) : null);
}

function tokensPart(from, to, { o, taken, found, scale }) {
  const p = h("p", { class: "tokens", dir: "ltr" });
  for (let i = from; i < to; i++) {
    const span = document.createElement("span");
    span.className = `t ${look(found[i], scale)}${taken[i] >= 0 ? " taken" : ""}${hits(o, i) ? " hit" : ""}${taken[i] === PUT_IN ? " env" : ""}`;
    span.dataset.i = i;
    span.dataset.o = o.number;
    span.textContent = visible(head.texts[columns.text[i]], 200) || "∅";
    p.append(span);
  }
  return p;
}

// [turn or null, start, end] that together have all tokens of a response; null: those between the turns.
function turnsOf(facts, length) {
  const found = [];
  let at = 0;
  for (const turn of facts.turns ?? []) {
    if (turn.start > at) found.push([null, at, turn.start]);
    found.push([turn, turn.start, turn.end]);
    at = turn.end;
  }
  return at < length || !found.length ? [...found, [null, at, length]] : found;
}

// Turns of the policy stand open, those of others are folded.
function turnPart(turn, i, row, taken, tokens) {
  const reward = turn.reward === null ? "" : ` · reward ${number(turn.reward)}`;
  const theirs = taken.every((place) => place === PUT_IN);
  return fold(`${row} ${turn.start}`, !theirs, theirs ? "turn env" : "turn",
    `turn ${turn.number} · ${visible(turn.role, 40)} · ${taken.length} tokens${reward}`, [taken.length ? tokens : h("p", {}, visible(turn.text, 4000))]);
}

const mean = (found) => found.reduce((a, b) => a + b, 0) / found.length;
const deviation = (found) => Math.sqrt(mean(found.map((value) => (value - mean(found)) ** 2)));
