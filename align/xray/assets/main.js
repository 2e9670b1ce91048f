"use strict";
// What is shown, the keys, and the one function that draws.

const state = { view: "tokens", objective: 0, batch: 0, group: null, stream: "credit", hit: null, token: null, other: null, heldOut: null, unfolded: false };

const objective = () => head.objectives[state.objective];
const rivals = (a) => head.objectives.filter((o) => o !== a && o.source === a.source);

// A chain that is spelled out has its pieces for a name: the first and the last tell it.
function title(o) {
  const parts = o.name.split("+"), name = parts.length > 2 ? `${parts[0]} + … + ${parts[parts.length - 1]}` : o.name;
  return `${visible(name, 60)}${o.against ? " (the other recipe)" : ""}`;
}

const stepName = (batch) => (batch.step === null ? "these responses" : `step ${batch.step}`) + (new Set(head.batches.map((b) => b.source)).size > 1 ? `, ${visible(batch.source, 60)}` : "");

const VIEWS = {
  tokens: ["Tokens", tokensView, () => head.objectives.length, "no response with a decision of an objective is recorded"],
  distribution: ["Distribution", distributionView, () => head.objectives.length, "no response with a decision of an objective is recorded"],
  heldOut: ["Held-out prompt", heldOutView, () => head.greedy.length, "no evaluation answered held-out prompts"],
  against: ["A/B", againstView, () => head.objectives.length && rivals(objective()).length, "only one objective: --against RECIPE shows another beside it"],
  pairs: ["Pairs", pairsView, () => head.objectives.length && isPairs(head.batches[state.batch]), "these are no pairs of a chosen and a rejected response"],
  run: ["Run", runView, () => Object.keys(head.metrics).length, "no metrics: they are in the folder of a run"],
};

// What can be chosen in a view, besides its own: of the others nothing would change.
const CHOICES = { tokens: ["objective", "step", "group", "stream"], distribution: ["objective", "step", "stream"], against: ["objective", "step", "group"], pairs: ["objective", "step"] };

const available = () => Object.keys(VIEWS).filter((name) => VIEWS[name][2]());
const batches = () => head.batches.map((batch, i) => i).filter((i) => head.batches[i].source === objective().source);

function set(change) {
  Object.assign(state, change);
  if ("objective" in change && head.batches[state.batch].source !== objective().source) change.batch = state.batch = batches()[0];
  const groups = head.batches[state.batch]?.groups;
  if (groups && (("batch" in change && !("group" in change)) || !groups.has(state.group))) state.group = livelyGroup(groups);
  if (["objective", "batch"].some((name) => name in change) && !("token" in change)) state.token = null;
  if ("objective" in change) state.hit = null;
  if ("group" in change || "batch" in change) state.unfolded = false;
  if (head.objectives.length && !(state.stream in streams(objective()))) state.stream = "credit";
  if (!available().includes(state.view)) state.view = available()[0];
  return draw();
}

// The first group with a token that carries gradient; where the column was not read yet, or none does, the first.
function livelyGroup(groups) {
  const taken = columns[`taken ${objective().number}`];
  const lively = ([, rows]) => taken && taken.subarray(columns.start[rows[0]], columns.start[rows[rows.length - 1] + 1]).includes(CARRIES);
  return ([...groups].find(lively) ?? groups.entries().next().value)[0];
}

function goTo(i) {
  const row = head.rows[rowOf(i)];
  return set({ view: "tokens", batch: row.batch, group: row.group, token: i, hit: null, unfolded: true });
}

let ticket = 0;

async function draw() {
  const mine = ++ticket, main = document.getElementById("main");
  const made = state.view ? await VIEWS[state.view][1]() : h("p", {}, "There is nothing to show: no response with a decision, no metric.");
  const token = state.token === null ? [] : await tokenPart(state.token);
  if (mine !== ticket) return;  // a later call draws
  const held = focused();
  main.replaceChildren(...[made].flat(3).filter(Boolean));
  document.getElementById("token").replaceChildren(...token.flat(2).filter(Boolean));
  document.getElementById("token").hidden = !token.length;
  document.getElementById("bar").replaceChildren(...toolbar());
  document.getElementById("views").replaceChildren(...available().map((name, i) => h("button",
    { role: "tab", "aria-selected": state.view === name, "data-view": name, onclick: () => set({ view: name }) }, h("kbd", {}, i + 1), ` ${VIEWS[name][0]}`)),
    ...Object.values(VIEWS).filter(([, , there]) => !there()).map(([name, , , why]) => h("button", { role: "tab", disabled: true, title: why }, name)));
  mark();
  if (held) document.querySelector(held)?.focus({ preventScroll: true });
  document.documentElement.dataset.drawn = mine;
}

// A selector of what has the focus, so that its successor gets it.
function focused() {
  const element = document.activeElement, name = ["data-place", "data-view", "data-objective", "id"].find((key) => element.hasAttribute(key));
  return name && element !== document.body ? `${element.tagName}[${name}="${CSS.escape(element.getAttribute(name))}"]` : null;
}

function mark() {
  document.querySelectorAll(".t.now").forEach((element) => element.classList.remove("now"));
  if (state.token === null) return;
  const now = document.querySelectorAll(`#main .t[data-i="${state.token}"]`);
  now.forEach((element) => element.classList.add("now"));
  const turn = now[0]?.closest("details");
  if (turn) turn.open = true;
  now[0]?.scrollIntoView({ block: "nearest" });
}

function toolbar() {
  const last = [h("button", { onclick: theme, title: "t" }, "light / dark"), h("details", { class: "help" }, h("summary", {}, "keys"), table(["key", "what it does"], KEYS_TOLD))];
  const chosen = CHOICES[state.view];
  if (!chosen) return last;
  const groups = [...head.batches[state.batch].groups];
  const reward = (rows) => { const known = rows.filter((row) => head.rows[row].chosen === undefined).map((row) => head.rows[row].reward).filter((r) => r !== undefined); return known.length ? ` · reward ${number(mean(known))}` : ""; };
  const tabs = head.objectives.map((o) => h("button",
    { class: "tab", "aria-pressed": o === objective(), "data-objective": o.number, onclick: () => set({ objective: o.number }) }, title(o), o.source === "data" ? "" : ` · ${visible(o.source, 40)}`));
  const controls = {
    objective: () => h("span", { class: "tabs", role: "group", "aria-label": "objective" }, tabs),
    step: () => select("step", batches().map((i) => [i, stepName(head.batches[i])]), state.batch, (value) => set({ batch: Number(value) })),
    group: () => select(groupWord(head.batches[state.batch]), groups.map(([name, rows]) => [name, `${visible(name, 40)}${reward(rows)}`]), state.group, (value) => set({ group: value, hit: null })),
    stream: () => select("stream", Object.keys(streams(objective())).map((name) => [name, visible(name, 60)]), state.stream, (value) => set({ stream: value })),
  };
  return [...chosen.map((name) => controls[name]()), ...last];
}

function theme() {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
}

const around = (list, now, by) => list[(list.indexOf(now) + by + list.length) % list.length];
const byGroup = (by) => state.view === "heldOut" ? set({ heldOut: (state.heldOut + by + head.greedy.length) % head.greedy.length }) : set({ group: around([...head.batches[state.batch].groups.keys()], state.group, by), hit: null, token: null });
const byStep = (by) => set({ batch: around(batches(), state.batch, by) });
const byStream = (by) => set({ stream: around(Object.keys(streams(objective())), state.stream, by) });

function byToken(by) {
  const laid = [...document.querySelectorAll("#main .t[data-i]")].map((element) => Number(element.dataset.i));
  if (laid.length) set({ token: state.token === null ? laid[0] : around(laid, state.token, by) });
}

const KEYS = {
  ArrowRight: () => byStep(1), ArrowLeft: () => byStep(-1), n: () => byGroup(1), p: () => byGroup(-1), s: () => byStream(1), S: () => byStream(-1),
  j: () => byToken(1), k: () => byToken(-1), o: () => set({ objective: around(head.objectives, objective(), 1).number }), t: theme,
  Escape: () => set({ hit: null, token: null }), "?": () => { const help = document.querySelector(".help"); if (help) help.open = !help.open; },
};

const KEYS_TOLD = [["← →", "step"], ["p n", "group, or held-out prompt"], ["S s", "stream"], ["k j", "token"], ["o", "objective"], ["1 to 9", "view"], ["t", "light or dark"], ["Esc", "back from tokens of a bar, and from a token"]];

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input")) return;
  const view = available()[Number(event.key) - 1];
  if (view) set({ view });
  else if (KEYS[event.key] && (head.objectives.length || state.view === "heldOut" || ["t", "?", "Escape"].includes(event.key))) { event.preventDefault(); KEYS[event.key](); }
});

document.addEventListener("click", (event) => {
  const token = event.target.closest(".t[data-i]");
  if (token) set({ token: Number(token.dataset.i) });
});

open().then(() => {
  document.getElementById("notes").append(...head.notes.map((note) => h("p", { class: "note" }, visible(note, 2000))));
  state.heldOut = telling();
  if (!head.objectives.length) return set({});
  return need(["taken 0"]).then(() => set({ batch: batches()[batches().length - 1] }));
}).catch((error) => {
  document.getElementById("main").append(h("p", { class: "note" }, `The data of this page cannot be read: ${error}. A browser of 2023 or later is needed.`));
  throw error;
});
