"use strict";
// Colour of a value and a second cue: blue and underlined above 0, orange and dotted below; never colour alone.

const LEVELS = 8;

function look(value, scale) {
  if (Number.isNaN(value)) return "missing";
  const part = Math.min(1, Math.abs(value) / scale);
  const level = value === 0 ? 0 : Math.max(1, Math.round(part * LEVELS));
  const side = value < 0 ? "down" : value > 0 ? "up" : "zero";
  return `${side} l${level}${Math.abs(value) > scale ? " over" : ""}`;
}

function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "not known";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return signed(String(value));
  const size = Math.abs(value);
  return signed(size >= 1e6 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4))));
}

function signed(text) {
  return text.replaceAll("-", "−");
}

// The text of one token in a sentence or a table, where spaces at its ends would not be seen.
function word(text) {
  return visible(text, 60).replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) || "∅";
}

// A text of others: what acts on a page or hides in it is written out, and a long one is cut.
const ACTS = /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}]|(?![\u200c\u200d])\p{Cf}/gu;

function visible(text, limit = 400) {
  const cut = text.length > limit ? `${text.slice(0, limit)}… (${text.length - limit} more characters)` : text;
  return cut.replace(ACTS, (c) => (c === "\n" ? "↵\n" : c === "\t" ? "⇥\t" : `\\u{${c.codePointAt(0).toString(16)}}`));
}
