// Elements and words. Text only ever becomes text: nothing here parses markup.

/** An element with properties, attributes (with a dash, or `role`) and children. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined));
  return node;
}

const UNITS = ["", "k", "M", "G", "T"];

/** A quantity with three digits and a decimal prefix, as `tc` counts. */
export function scaled(value, unit) {
  let n = 0;
  let v = value;
  while (v >= 999.5 && n < UNITS.length - 1) {
    v /= 1000;
    n += 1;
  }
  const digits = v >= 99.95 || (n === 0 && Number.isInteger(v)) ? 0 : v >= 9.995 ? 1 : 2;
  return `${v.toFixed(digits)} ${UNITS[n]}${unit}`;
}

export const bits = (bps) => (bps === null || bps === undefined ? "–" : scaled(bps, "bit/s"));
export const octets = (n) => (n === null || n === undefined ? "–" : scaled(n, "B"));

/** A span of time in its two largest units. */
export function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** How long ago a time of RFC 3339 was. */
export const ago = (time) => (time ? span((Date.now() - Date.parse(time)) / 1000) : "–");

/** A time of day here, with its date if that is not today's. */
export function clock(time) {
  const t = new Date(time);
  const today = new Date().toDateString() === t.toDateString();
  const hours = t.toLocaleTimeString([], { hourCycle: "h23" });
  return today ? hours : `${t.toLocaleDateString()} ${hours}`;
}

/** Bits a second as the configuration writes them: a number, `null` for unlimited, or `undefined`. */
export function rate(text) {
  const t = text.trim().toLowerCase();
  if (t === "unlimited") return null;
  const m = /^(\d+(?:\.\d+)?)(kbit|mbit|gbit)$/.exec(t);
  if (!m) return undefined;
  return Math.round(Number(m[1]) * { kbit: 1e3, mbit: 1e6, gbit: 1e9 }[m[2]]);
}
