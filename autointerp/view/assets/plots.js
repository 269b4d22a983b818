"use strict";
// Plots in SVG. Lengths are in the units of the viewBox; colours are classes of the style.

function scale(low, high, from, to) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

// About n round numbers between low and high.
function ticks(low, high, n) {
  const raw = (high - low) / n || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((one) => one * power >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9 * step; at++) found.push(at * step || 0); // never -0
  return found;
}

const PLOT = { width: 290, height: 190, left: 46, right: 10, top: 10, bottom: 36 };

// Axes and their words; `draw(x, y)` gives what stands between them.
function plot({ x, y, xTicks, yTicks, xName, yName, xText = short, yText = short, label, draw }) {
  const { width, height, left, right, top, bottom } = PLOT;
  const atX = scale(...x, left, width - right);
  const atY = scale(...y, height - bottom, top);
  return s(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img", "aria-label": label ?? `${yName} by ${xName}` },
    yTicks.map((one) => s("line", { class: "grid", x1: left, x2: width - right, y1: atY(one), y2: atY(one) })),
    draw(atX, atY),
    s("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    yTicks.map((one) => s("text", { x: left - 5, y: atY(one) + 3.5, class: "end" }, yText(one))),
    xTicks.map((one) => s("text", { x: atX(one), y: height - bottom + 14, class: "middle" }, xText(one))),
    s("text", { x: (left + width - right) / 2, y: height - 5, class: "middle name" }, xName),
    s("text", { x: 0, y: 0, class: "middle name", transform: `translate(10 ${(top + height - bottom) / 2}) rotate(-90)` }, yName),
  );
}

// Numbers -> counts of equal bins between low and high; what lies outside goes to the ends, NaN nowhere.
function binned(values, low, high, n) {
  const counts = new Uint32Array(n);
  for (const value of values) {
    if (Number.isNaN(value)) continue;
    counts[Math.min(n - 1, Math.max(0, Math.floor(((value - low) / (high - low || 1)) * n)))]++;
  }
  return counts;
}

// The smallest and the largest, NaN aside.
function ends(values) {
  let low = Infinity;
  let high = -Infinity;
  for (let at = 0; at < values.length; at++) {
    if (values[at] < low) low = values[at];
    if (values[at] > high) high = values[at];
  }
  return [low, high];
}

// The ends of an axis: scores between 0 and 1 have these.
function span(values) {
  const [low, high] = ends(values);
  if (!(low <= high)) return [0, 1];
  return low >= 0 && high <= 1 ? [0, 1] : [low, high === low ? low + 1 : high];
}

// `marks`: [{at, text, kind}], lines that stand for chance, the mean, a control.
function histogram(values, { name, marks = [] }) {
  const [low, high] = span(values);
  const n = 25;
  const counts = binned(values, low, high, n);
  const most = Math.max(1, ...counts);
  return plot({
    x: [low, high], y: [0, most * 1.12], xTicks: ticks(low, high, 5), yTicks: ticks(0, most, 4), xName: name, yName: "features", yText: whole,
    draw: (atX, atY) => [
      Array.from(counts, (count, bin) => {
        const from = low + ((high - low) * bin) / n;
        const left = atX(from);
        const to = from + (high - low) / n;
        const bar = s("rect", { class: "bar", x: left + 0.3, width: atX(to) - left - 0.6, y: atY(count), height: atY(0) - atY(count) });
        bar.append(s("title", null, `${short(from)} to ${short(to)}: ${count} features`));
        return bar;
      }),
      marks.map(({ at, text, kind }) => {
        const line = s("line", { class: `mark ${kind}`, x1: atX(at), x2: atX(at), y1: PLOT.top, y2: atY(0) });
        line.append(s("title", null, `${text}: ${short(at)}`));
        return line;
      }),
    ],
  });
}

function whole(number) {
  if (!Number.isInteger(number)) return "";
  return number >= 1e6 ? `${number / 1e6}M` : number >= 1e3 ? `${number / 1e3}k` : String(number);
}

const POINTS_UP_TO = 1500;

// Pairs of numbers, a point each, or, of many, cells as dark as they are full. `open(row)`: on a click.
function cloud(xs, ys, { xName, yName, logX = false, open, mark }) {
  const placed = new Float64Array(xs.length).fill(NaN); // on the axis; NaN where there is no point
  const known = new Float64Array(xs.length).fill(NaN);
  let n = 0;
  for (let row = 0; row < xs.length; row++) {
    const x = logX ? (xs[row] > 0 ? Math.log10(xs[row]) : NaN) : xs[row];
    if (Number.isNaN(x) || Number.isNaN(ys[row])) continue;
    placed[row] = x;
    known[row] = ys[row];
    n++;
  }
  const xSpan = logX ? powers(placed) : span(placed);
  const ySpan = span(known);
  const points = (atX, atY) => Array.from(placed.keys()).filter((row) => !Number.isNaN(placed[row])).map((row) =>
    s("circle", { class: "point", cx: atX(placed[row]), cy: atY(known[row]), r: 2.6, onclick: () => open(row) }, s("title", null, index.id(row))));
  return plot({
    x: xSpan, y: ySpan, xName, yName,
    xTicks: logX ? ticks(...xSpan, 5).filter(Number.isInteger) : ticks(...xSpan, 5),
    yTicks: ticks(...ySpan, 5),
    xText: logX ? (one) => `1e${one}` : short,
    draw: (atX, atY) => [
      mark === undefined ? null : s("line", { class: "mark chance", x1: PLOT.left, x2: PLOT.width - PLOT.right, y1: atY(mark), y2: atY(mark) }),
      n <= POINTS_UP_TO ? points(atX, atY) : cells(placed, known, xSpan, ySpan, atX, atY),
    ],
  });
}

// From the power of ten below the smallest to that above the largest.
function powers(values) {
  const [low, high] = ends(values);
  return low <= high ? [Math.floor(low), Math.max(Math.ceil(high), Math.floor(low) + 1)] : [-4, 0];
}

function cells(placed, known, xSpan, ySpan, atX, atY) {
  const [nX, nY] = [48, 32];
  const counts = new Uint32Array(nX * nY);
  const [x0, y0] = [xSpan[0], ySpan[0]];
  const [width, height] = [(xSpan[1] - x0) / nX, (ySpan[1] - y0) / nY];
  for (let row = 0; row < placed.length; row++) {
    if (Number.isNaN(placed[row])) continue;
    const [column, line] = [Math.floor((placed[row] - x0) / width), Math.floor((known[row] - y0) / height)];
    counts[Math.min(nY - 1, line) * nX + Math.min(nX - 1, column)]++;
  }
  const most = Math.log1p(Math.max(...counts));
  return Array.from(counts, (count, at) => {
    if (!count) return null;
    const [x, y] = [x0 + (at % nX) * width, y0 + Math.floor(at / nX) * height];
    const cell = s("rect", {
      class: "cell", x: atX(x), y: atY(y + height), width: atX(x + width) - atX(x) + 0.2, height: atY(y) - atY(y + height) + 0.2,
      "fill-opacity": 0.12 + (0.88 * Math.log1p(count)) / most,
    });
    cell.append(s("title", null, `${count} features`));
    return cell;
  });
}

const SERIES = 6; // colours that the style has

// Lines over the same points. `series`: [{name, values, low, high}], null where there is none.
function lines(series, { xName, yName, xNames }) {
  const last = xNames.length - 1;
  return plot({
    x: [-0.3, last + 0.3], y: [0, 1], xTicks: xNames.map((_, at) => at), yTicks: ticks(0, 1, 5), xName, yName, xText: (at) => xNames[at],
    draw: (atX, atY) =>
      series.map(({ name, values }, which) => {
        const points = values.map((value, at) => (value === null ? null : [atX(at), atY(value)])).filter(Boolean);
        const kind = `series s${which % SERIES}`;
        return s("g", { class: kind }, s("title", null, name),
          s("polyline", { points: points.map((point) => point.join(",")).join(" ") }),
          points.map(([cx, cy], at) => s("circle", { cx, cy, r: 2.6 }, s("title", null, `${name}, ${xNames[at]}: ${fixed(values[at])}`))));
      }),
  });
}

function legend(names) {
  return h("ul", { class: "legend" }, names.map((name, which) => h("li", { class: `s${which % SERIES}` }, name)));
}

// Horizontal bars with their words: [{name, n, note, kind}].
function funnel(steps) {
  const most = Math.max(1, ...steps.map((one) => one.n));
  return h("div", { class: "funnel" }, steps.map(({ name, n, note, kind = "" }) =>
    h("div", { class: `step ${kind}` },
      h("span", { class: "what" }, name),
      h("span", { class: "track" }, h("span", { class: "fill", style: { width: `${(100 * n) / most}%` } })),
      h("span", { class: "n" }, count(n)),
      h("span", { class: "note" }, note ?? ""))));
}

// A number on a line with its interval, chance and floors: what tables and features show of a score.
function scoreBar({ value, low, high, chance, floors = [] }, range = [0, 1]) {
  const place = (number) => `${Math.min(100, Math.max(0, 100 * ((number - range[0]) / (range[1] - range[0]))))}%`;
  const has = (number) => number !== null && number !== undefined && !Number.isNaN(number);
  if (!has(value)) return h("span", { class: "score-bar none" });
  const bar = h("span", { class: "score-bar" }, h("i", { class: "value", style: { width: place(value) } }));
  if (has(low) && has(high)) bar.append(h("i", { class: "interval", style: { left: place(low), right: `calc(100% - ${place(high)})` } }));
  if (has(chance)) bar.append(h("i", { class: "chance", style: { left: place(chance) } }));
  for (const floor of floors) bar.append(h("i", { class: "floor", style: { left: place(floor) } }));
  return bar;
}

// Counts of activations over bins of equal width in the logarithm: [[from, to, n]].
function activationHistogram(bins) {
  const most = Math.max(1, ...bins.map(([, , n]) => n));
  const labels = bins.map((_, at) => at).filter((at) => at % Math.max(1, Math.ceil(bins.length / 6)) === 0);
  return plot({
    x: [0, bins.length], y: [0, most * 1.06], xTicks: labels, yTicks: ticks(0, most, 3), xName: "activation (logarithmic)", yName: "tokens",
    xText: (at) => short(bins[at][0], 2), yText: whole,
    draw: (atX, atY) => bins.map(([from, to, n], at) => {
      const bar = s("rect", { class: "bar warm", x: atX(at) + 0.5, width: Math.max(0.5, atX(at + 1) - atX(at) - 1), y: atY(n), height: atY(0) - atY(n) });
      bar.append(s("title", null, `${short(from)} to ${short(to)}: ${count(n)} tokens`));
      return bar;
    }),
  });
}
