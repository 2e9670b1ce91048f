"use strict";
// Elements and small charts. Texts become text nodes, so that nothing in them is markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-")) element.setAttribute(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function table(heads, rows, attributes) {
  return h("table", attributes,
    h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell) => h("td", {}, cell))))));
}

function select(label, options, chosen, onchange) {
  const entries = options.map(([value, text]) => h("option", { value, selected: String(value) === String(chosen) }, text));
  return h("label", {}, `${label} `, h("select", { id: label, onchange: (e) => onchange(e.target.value) }, entries));
}

// Axes from [low, high] to pixels, with the ends written on them.
const WIDE = 340, TALL = 150, LEFT = 58, RIGHT = 8, TOP = 10, BOTTOM = 24;

function frame(title, [x0, x1], [y0, y1], parts, attributes) {
  const x = (value) => LEFT + ((value - x0) / (x1 - x0 || 1)) * (WIDE - LEFT - RIGHT);
  const y = (value) => TALL - BOTTOM - ((value - y0) / (y1 - y0 || 1)) * (TALL - TOP - BOTTOM);
  const text = (at, value, anchor) => s("text", { ...at, "text-anchor": anchor }, number(value));
  return h("figure", attributes, h("figcaption", {}, title),
    s("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, role: "img", "aria-label": title },
      s("path", { class: "axis", d: `M${LEFT} ${TOP}V${TALL - BOTTOM}H${WIDE - RIGHT}` }),
      text({ x: LEFT - 4, y: TALL - BOTTOM + 3 }, y0, "end"), text({ x: LEFT - 4, y: TOP + 6 }, y1, "end"),
      text({ x: LEFT, y: TALL - 8 }, x0, "start"), text({ x: WIDE - RIGHT, y: TALL - 8 }, x1, "end"),
      parts(x, y)));
}

function bounds(found) {
  let low = Infinity, high = -Infinity;
  for (const value of found) if (isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  return low > high ? [0, 1] : low === high ? [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2] : [low, high];
}

function line(points, x, y, attributes) {
  const path = points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  const dots = points.length < 12 ? points.map(([a, b]) => s("circle", { cx: x(a), cy: y(b), r: 2.2, class: "dot" })) : [];
  return s("g", attributes, s("path", { d: path }), dots);
}

function band(points, x, y) {  // [x, low, high]
  const up = points.map(([a, , high]) => `${x(a).toFixed(1)} ${y(high).toFixed(1)}`);
  const down = points.map(([a, low]) => `${x(a).toFixed(1)} ${y(low).toFixed(1)}`).reverse();
  return s("path", { class: "band", d: `M${[...up, ...down].join("L")}Z` });
}
