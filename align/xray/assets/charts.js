"use strict";
// The distribution of a stream over a step, and the metrics of the run.

async function distributionView() {
  const o = objective(), batch = head.batches[state.batch], [from, to] = batch.tokens;
  const found = await chosenOnly(o, await values(o, state.stream)), scale = robust(found, batch.tokens);
  const taken = columns[`taken ${o.number}`], theirs = taken.subarray(from, to).filter((place) => place === PUT_IN).length;
  const known = [];
  for (let i = from; i < to; i++) if (!Number.isNaN(found[i])) known.push(i);
  const [low, high] = bounds(known.map((i) => Math.max(-1.25 * scale, Math.min(1.25 * scale, found[i]))));
  const bins = Array.from({ length: 40 }, () => [0, 0]);
  for (const i of known) {
    const part = (Math.max(low, Math.min(high, found[i])) - low) / (high - low);
    bins[Math.min(39, Math.floor(part * 40))][taken[i] === CARRIES ? 0 : 1]++;
  }
  const most = Math.max(1, ...bins.map(([a, b]) => a + b)), width = (high - low) / 40;
  const histogram = frame(`${visible(state.stream, 60)} of ${known.length.toLocaleString("en")} tokens; ends hold what is beyond`, [low, high], [0, most], (x, y) =>
    bins.map(([carrying, other], k) => {
      const at = { x: x(low + k * width) + 0.4, width: Math.max(0.5, x(width) - x(0) - 0.8) };
      return [s("rect", { ...at, class: "carrying", y: y(carrying), height: y(0) - y(carrying) }),
        s("rect", { ...at, class: "other", y: y(carrying + other), height: y(carrying) - y(carrying + other) })];
    }));
  return h("section", { class: "charts large" }, h("h2", {}, `${visible(state.stream, 60)} in ${stepName(batch)}`),
    h("p", { class: "note" }, `${(to - from - known.length - theirs).toLocaleString("en")} tokens have no value: they are left out, not counted as 0. `,
      theirs ? `${theirs.toLocaleString("en")} tokens were put in by an environment or a tool, and are left out. ` : "",
      h("span", { class: "key carrying" }, "carries gradient"), " ", h("span", { class: "key other" }, "does not")),
    histogram, positions(found, batch));
}

// Mean, and the middle 80 %, of a stream at each position from the beginning of the response.
function positions(found, batch) {
  const at = [];
  for (let row = batch.first; row < batch.first + batch.rows; row++)
    for (let i = columns.start[row], k = 0; i < columns.start[row + 1]; i++, k++)
      if (!Number.isNaN(found[i])) (at[k] ??= []).push(found[i]);
  const step = Math.max(1, Math.ceil(at.length / 120)), points = [];
  for (let k = 0; k < at.length; k += step) {
    const here = at.slice(k, k + step).flat().filter((value) => value !== undefined).sort((a, b) => a - b);
    if (here.length) points.push([k + 1, here[Math.floor(0.1 * (here.length - 1))], mean(here), here[Math.ceil(0.9 * (here.length - 1))]]);
  }
  const range = bounds(points.flatMap(([, ...rest]) => rest));
  return frame("by position in the response: mean, and the middle 80 %", bounds(points.map(([k]) => k)), range, (x, y) => [
    band(points.map(([k, low, , high]) => [k, low, high]), x, y), line(points.map(([k, , middle]) => [k, middle]), x, y, { class: "line" })]);
}

const FIRST = ["reward/mean", "eval/reward", "response/length", "eval/length", "loss", "eval/pairs/loss", "eval/pairs/accuracy", "response/entropy"];

function runView() {
  const shown = Object.keys(head.metrics).filter((name) => !/_(low|high)$/.test(name));
  const main = (name) => FIRST.includes(name) || /(^|\/)(kl_|carrying|margin|accuracy)|^seconds\//.test(name);
  const [first, rest] = [shown.filter(main), shown.filter((name) => !main(name))];
  const rank = (name) => (FIRST.indexOf(name) + 1 || 99);
  first.sort((a, b) => rank(a) - rank(b));
  return h("section", { class: "charts" }, h("h2", {}, "The run"),
    h("p", { class: "note" }, "Over the steps; upright lines are 95 % intervals of evaluations."), first.map(chart),
    rest.length ? h("details", {}, h("summary", {}, `${rest.length} more metrics`), rest.map(chart)) : null);
}

function chart(name) {
  const points = head.metrics[name], low = head.metrics[`${name}_low`], high = new Map(head.metrics[`${name}_high`] ?? []);
  const around = low ? low.map(([step, value]) => [step, value, high.get(step)]) : [];
  const range = bounds([...points.map(([, value]) => value), ...around.flatMap(([, a, b]) => [a, b])]);
  return frame(visible(name, 60), bounds(points.map(([step]) => step)), range, (x, y) => [
    around.map(([step, a, b]) => s("path", { class: "whisker", d: `M${x(step)} ${y(a)}V${y(b)}` })), line(points, x, y, { class: "line" })]);
}
