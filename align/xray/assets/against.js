"use strict";
// The same tokens under two objectives: the numbers of align/xray/against.py.

async function agreement(a, b, [from, to], most = 12) {
  const [one, other] = [await values(a, "credit × weight"), await values(b, "credit × weight")];
  const [takenA, takenB] = [columns[`taken ${a.number}`], columns[`taken ${b.number}`]];
  let flips = 0, both = 0, either = 0, dot = 0;
  const sums = [{ size: 0, square: 0 }, { size: 0, square: 0 }];
  for (let i = from; i < to; i++) {
    const carriesA = takenA[i] === CARRIES, carriesB = takenB[i] === CARRIES;
    const x = takenA[i] < CARRIES ? 0 : one[i], y = takenB[i] < CARRIES ? 0 : other[i];
    if (Math.sign(x) * Math.sign(y) < 0) flips++;
    if (carriesA && carriesB) both++;
    if (carriesA || carriesB) either++;
    dot += x * y;
    for (const [sum, value] of [[sums[0], x], [sums[1], y]]) {
      sum.size += Math.abs(value);
      sum.square += value * value;
    }
  }
  const norms = sums.map((sum) => Math.sqrt(sum.square));
  const unit = (value, norm) => (norm ? value / norm : value) || 0;
  const gaps = [];
  for (let i = from; i < to; i++) {
    const gap = Math.abs(unit(one[i], norms[0]) - unit(other[i], norms[1]));
    if (gap > 0) gaps.push([gap, i]);
  }
  gaps.sort((x, y) => y[0] - x[0] || x[1] - y[1]);
  return {
    flips, both, either,
    overlap: both / either,
    cosine: dot / (norms[0] * norms[1]),
    effective: sums.map((sum) => (sum.size * sum.size) / sum.square),
    differ: gaps.slice(0, most).map(([, i]) => i),
  };
}
