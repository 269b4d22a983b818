"use strict";
// Elements, and text made visible. Text from a run reaches the page only as text: there is no innerHTML anywhere.

const SVG = "http://www.w3.org/2000/svg";

function made(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else element.setAttribute(name, value === true ? "" : value);
  }
  const given = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  element.append(...given);
  return element;
}

// h("p", {class: "note"}, "text", other): strings become text nodes.
function h(tag, attributes, ...children) {
  return made(document.createElement(tag), attributes, children);
}

function s(tag, attributes, ...children) {
  return made(document.createElementNS(SVG, tag), attributes, children);
}

// Characters that show nothing, or change the order of others: said by their code. Joiners stay: scripts need them.
const UNSEEN =
  /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;

function visible(text) {
  return text
    .replace(/\r\n|\n|\r/g, "↵")
    .replace(/\t/g, "⇥")
    .replace(UNSEEN, (one) => `⟨${one.codePointAt(0).toString(16).toUpperCase().padStart(2, "0")}⟩`);
}

// The same of prose: its line breaks stay.
function prose(text) {
  return text.split(/\r\n|\n|\r/).map(visible).join("\n");
}

// A token by itself: its spaces are seen.
function token(text, attributes) {
  return h("code", { class: "token", dir: "auto", ...attributes }, visible(text).replace(/ /g, "·") || "∅");
}

function short(number, digits = 3) {
  if (number === null || number === undefined || Number.isNaN(number)) return "–";
  if (number === 0) return "0";
  const size = Math.abs(number);
  if (size >= 1e5 || size < 1e-3) return number.toExponential(digits > 2 ? 1 : 0).replace("e+", "e");
  return String(Number(number.toPrecision(digits)));
}

function fixed(number, digits = 2) {
  return number === null || number === undefined || Number.isNaN(number) ? "–" : number.toFixed(digits).replace("-", "−");
}

function count(number) {
  return number.toLocaleString("en-US");
}

function percent(share) {
  if (share === null || share === undefined || Number.isNaN(share)) return "–";
  const number = 100 * share;
  return number && number < 0.001 ? `${number.toExponential(1)}%` : `${number >= 100 ? 100 : number.toPrecision(3)}%`;
}

function words(name) {
  return name.replaceAll("_", " ");
}

function choose(options, current, take, attributes) {
  const select = h("select", { ...attributes, onchange: (event) => take(event.target.value) });
  for (const [value, text] of options) select.append(h("option", { value, selected: value === current }, text));
  return select;
}
