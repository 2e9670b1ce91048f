"use strict";
// One token with its formula; the same tokens under two objectives; pairs; one held-out prompt through the steps.

async function tokenPart(i) {
  const o = objective(), row = rowOf(i), facts = head.rows[row], batch = head.batches[facts.batch];
  await need(["id", `taken ${o.number}`, `credit ${o.number}`, `weight ${o.number}`]);
  const names = Object.keys(streams(o)), found = await Promise.all(names.map((name) => values(o, name)));
  const text = head.texts[columns.text[i]];
  const place = columns[`taken ${o.number}`][i];
  const about = place >= 0 ? o.pieces[place].about : "";
  return [
    h("h2", {}, "Token ", h("code", {}, word(text))),
    h("p", {}, `id ${columns.id[i]}, position ${i - columns.start[row] + 1} of ${columns.start[row + 1] - columns.start[row]}, ${groupWord(batch)} ${visible(facts.group, 60)}, ${stepName(batch)}`),
    h("p", { class: "verdict" }, place >= 0 ? [h("b", {}, `${visible(o.pieces[place].name, 60)} took it. `), about.split("\n\n")[0]]
      : place === PUT_IN ? "An environment or a tool put it in: the policy did not choose it, nothing is learned from it, and it is in no count."
      : place === NO_PART ? "Its response is not in the batch: no reward, or this objective reads another source." : h("b", {}, "It carries gradient.")),
    h("ol", { class: "formula" }, (await formula(o, i, row)).map((said) => h("li", {}, said))),
    table(["stream", "value"], names.map((name, k) => [visible(name, 60), number(found[k][i])])),
    o.equation ? h("details", {}, h("summary", {}, `equation of ${title(o)}`), h("pre", {}, o.equation)) : null,
  ];
}

// How the credit came about, with its numbers.
async function formula(o, i, row) {
  const facts = head.rows[row], said = [], of = (column) => columns[column]?.[i];
  await need(o.after.map((place) => `after ${o.number} ${place}`));
  let before = null;
  for (const place of o.after) {
    const value = of(`after ${o.number} ${place}`), name = visible(o.pieces[place].name, 60);
    if (Number.isNaN(value)) continue;
    if (before === null) said.push(`${name}: ${number(value)}${baseline(o, facts, row)}`);
    else said.push(number(value) === number(before) ? `${name}: stays ${number(value)}` : `${name}: ${number(before)} → ${number(value)}`);
    before = value;
  }
  const credit = of(`credit ${o.number}`), weight = of(`weight ${o.number}`), batch = o.facts[facts.batch] ?? {};
  if (o.implied) said.push(`credit that the loss implies: −count × ∂loss / ∂logprob = ${number(credit)}`);
  if (of(`taken ${o.number}`) === CARRIES) {
    const push = `credit × weight = ${number(credit)} × ${term(weight)} = ${number(credit * weight)}`;
    said.push(batch.count ? `${push}, over ${number(batch.count)} (${batch.unit}) = ${number((credit * weight) / batch.count)}` : push);
  }
  const [now, old, ref, guide] = ["logprob", "old_logprob", "ref_logprob", "guide_logprob"].map((name) => of(`stream ${name}`) ?? NaN);
  if (!Number.isNaN(now - old)) said.push(`ratio = exp(${number(now)} − ${term(old)}) = ${number(Math.exp(now - old))}`);
  if (!Number.isNaN(now - ref)) said.push(`log-ratio to the reference = ${number(now)} − ${term(ref)} = ${number(now - ref)}`);
  if (!Number.isNaN(guide - ref)) said.push(`guide over reference = ${number(guide)} − ${term(ref)} = ${number(guide - ref)}`);
  return said;
}

const term = (value) => (value < 0 ? `(${number(value)})` : number(value));

function baseline(o, facts, row) {
  const batch = head.batches[facts.batch], kept = o.kept[facts.batch] ?? [];
  const rewards = batch.groups.get(facts.group).filter((other) => kept[other - batch.first]).map((other) => head.rows[other].reward);
  if (facts.reward === undefined || rewards.length < 2 || rewards.includes(undefined)) return "";
  return ` (reward ${number(facts.reward)}; kept at the end of the chain: ${rewards.length} of the group, mean ${number(mean(rewards))}, std ${number(deviation(rewards))})`;
}

function rowOf(i) {
  let low = 0, high = columns.start.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (columns.start[middle] <= i) low = middle; else high = middle; }
  return low;
}

async function againstView() {
  const a = objective(), others = rivals(a), batch = head.batches[state.batch];
  const b = others.find((o) => o.number === state.other) ?? others[0];
  await need(["id"]);
  const here = await agreement(a, b, batch.tokens);
  const all = await agreement(a, b, [0, columns.start[columns.start.length - 1]]);
  const row = (name, key, what) => [name, h("span", { "data-ab": key }, what(here)), what(all)];
  const percent = (value) => (Number.isNaN(value) ? "not defined" : `${(100 * value).toFixed(1)} %`);
  const [one, other] = [await values(a, "credit × weight"), await values(b, "credit × weight")];
  const sides = [[a, one], [b, other]].map(([o, found]) => ({ objective: o, found, scale: robust(found, batch.tokens), stream: "credit × weight" }));
  const rows = byReward(batch.groups.get(state.group));
  return [
    h("section", {}, h("h2", {}, `The same responses under ${title(a)} and ${title(b)}`),
      select("against", others.map((o) => [o.number, title(o)]), b.number, (value) => set({ other: Number(value) })),
      table(["", stepName(batch), "all on this page"], [
        row("sign flips: one pushes up what the other pushes down", "flips", (x) => x.flips.toLocaleString("en")),
        row("carry gradient under both", "both", (x) => x.both.toLocaleString("en")),
        row("of those under either", "overlap", (x) => percent(x.overlap)),
        row("cosine of credit × weight", "cosine", (x) => (Number.isNaN(x.cosine) ? "not defined" : signed(x.cosine.toFixed(6)))),
        row(`effective tokens, ${title(a)}`, "effective a", (x) => number(x.effective[0])),
        row(`effective tokens, ${title(b)}`, "effective b", (x) => number(x.effective[1])),
      ], { "data-numbers": JSON.stringify(here) })),
    h("section", {}, h("h2", {}, "Tokens that differ most, each side over its own norm"),
      table(["token", groupWord(batch), title(a), title(b)], here.differ.map((i) => [
        h("button", { class: "link", onclick: () => goTo(i) }, word(head.texts[columns.text[i]])),
        visible(head.rows[rowOf(i)].group, 40), number(one[i]), number(other[i])]))),
    h("section", { class: "group" }, h("h2", {}, `${isPairs(batch) ? "Pair" : "Group"} ${visible(state.group, 60)}: above ${title(a)}, below ${title(b)}`), legend(sides[0]),
      rows.map((each) => h("div", { class: "twice" }, sides.map((side) => [h("b", { class: "side" }, title(side.objective)), rowPart(each, 0, side)])))),
  ];
}

async function pairsView() {
  const o = objective(), batch = head.batches[state.batch];
  const push = await values(o, "credit × weight");
  const masks = [];
  for (const name of head.streams) if (name.endsWith("_mask")) masks.push([name, await chosenOnly(o, await values(o, name))]);
  const sum = (row, found) => { let total = 0; for (let i = columns.start[row]; i < columns.start[row + 1]; i++) total += found[i] || 0; return total; };
  const average = (row, found) => { const part = found.subarray(columns.start[row], columns.start[row + 1]).filter((v) => !Number.isNaN(v)); return part.length ? mean([...part]) : NaN; };
  const pairs = [...batch.groups].map(([name, rows]) => [name, rows.find((row) => head.rows[row].chosen === true), rows.find((row) => head.rows[row].chosen === false)])
    .filter(([, chosen, rejected]) => chosen !== undefined && rejected !== undefined);
  const scale = Math.max(1e-12, ...pairs.flatMap(([, ...rows]) => rows.map((row) => Math.abs(sum(row, push)))));
  const bar = (value) => [h("span", { class: "sum" }, number(value)), s("svg", { class: "mini", viewBox: "-50 0 100 10", "aria-hidden": "true" },
    s("rect", { class: value < 0 ? "down" : "up", x: Math.min(0, (50 * value) / scale), width: (50 * Math.abs(value)) / scale, y: 1, height: 8 }))];
  return h("section", {}, h("h2", {}, `Pairs of ${stepName(batch)}: credit${o.implied ? " that the loss implies" : ""}, summed over each response`),
    factsPart(o.facts[state.batch] ?? {}),
    table(["pair", "chosen", "rejected", ...masks.flatMap(([name]) => [`${name}, mean of chosen`, "of rejected"]), "tokens of each"], pairs.map(([name, chosen, rejected]) => [
      h("button", { class: "link", onclick: () => set({ view: "tokens", group: name }) }, visible(name, 60)),
      h("span", {}, bar(sum(chosen, push))), h("span", {}, bar(sum(rejected, push))),
      ...masks.flatMap(([, found]) => [number(average(chosen, found)), number(average(rejected, found))]),
      `${columns.start[chosen + 1] - columns.start[chosen]}, ${columns.start[rejected + 1] - columns.start[rejected]}`])));
}

function heldOutView() {
  const found = head.greedy[state.heldOut], told = (reward) => (reward === null ? "none" : number(reward));
  const same = sharedWords(head.greedy.map((entry) => entry.prompt));
  const label = ({ prompt, answers }, i) => `${i + 1}. ${same ? "… " : ""}${visible(prompt.slice(same), 60).replaceAll("\n", " ")} · reward ${told(answers[0][2])} → ${told(answers[answers.length - 1][2])}`;
  return h("section", {}, h("h2", {}, "One held-out prompt through the steps, answered greedily"),
    select("prompt", head.greedy.map((entry, i) => [i, label(entry, i)]), state.heldOut, (value) => set({ heldOut: Number(value) })),
    h("p", { class: "prompt turn env" }, visible(found.prompt, 4000)),
    table(["after step", "reward", "answer"], found.answers.map(([step, response, reward]) => [step, number(reward), h("p", { class: "answer" }, visible(response, 4000))])));
}

// The first prompt whose reward changed; where none did, the first.
const telling = () => Math.max(0, head.greedy.findIndex(({ answers }) => answers[0][2] !== answers[answers.length - 1][2]));

// How many characters all texts begin with, up to the last space among them.
function sharedWords(texts) {
  let n = 0;
  while (n < texts[0].length && texts.every((text) => text[n] === texts[0][n])) n++;
  return texts.length > 1 ? texts[0].slice(0, n).lastIndexOf(" ") + 1 : 0;
}
