// A chart of values over time. Its axis begins at zero, time runs evenly, and where nothing was measured there is no line.

import { bits, clock, el } from "./text.js";

const LEFT = 74;
const BOTTOM = 22;
const TOP = 8;
const RIGHT = 10;

/** A sample that comes after more than so many steps comes after one that is missing. */
const LATE = 1.75;

/** The next of 1, 2, 5 times a power of ten. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((f) => f * power).find((v) => v >= value * 0.9999);
}

/** What passes each way. */
export const RATES = {
  lines: [{ key: "rx_bps", name: "in", colour: "--in" }, { key: "tx_bps", name: "out", colour: "--out" }],
  words: bits,
  least: 1000,
};

export class Chart {
  /** `span`: seconds that are shown; `step`: seconds between two samples; `kind`: lines, their unit in words, and the least
   * value that the axis reaches to. A point without a line's value is a gap in it. */
  constructor(label, spanS, step, kind = RATES) {
    this.label = label;
    this.kind = kind;
    this.span = spanS;
    this.step = step;
    this.points = [];
    this.canvas = el("canvas", { role: "img", "aria-label": label });
    this.legend = el("p", { className: "quiet" });
    this.node = el("div", { className: "chart" }, this.canvas, this.legend);
    this.over = null;
    this.canvas.addEventListener("pointermove", (e) => { this.over = e.offsetX; this.draw(); });
    this.canvas.addEventListener("pointerleave", () => { this.over = null; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  set(points) {
    this.points = points;
    this.draw();
  }

  /** Takes a point, once. */
  add(point) {
    const last = this.points.at(-1);
    if (!point || (last && point.at <= last.at)) return;
    this.points.push(point);
    while (this.points.length > 0 && this.points[0].at < point.at - this.span) this.points.shift();
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (width === 0) return;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const c = this.canvas.getContext("2d");
    c.scale(ratio, ratio);
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(name);
    const end = Math.max(Date.now() / 1000, this.points.at(-1)?.at ?? 0);
    const begin = end - this.span;
    const shown = this.points.filter((p) => p.at >= begin);
    const { lines, words, least } = this.kind;
    const has = (p, key) => p[key] !== null && p[key] !== undefined;
    const most = Math.max(least, ...lines.flatMap(({ key }) => shown.filter((p) => has(p, key)).map((p) => p[key])));
    const tick = nice(most / 4);
    const top = Math.ceil(most / tick) * tick;
    const x = (at) => LEFT + ((at - begin) / this.span) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - value / top) * (height - TOP - BOTTOM);
    c.font = "12px system-ui, sans-serif";
    c.strokeStyle = colour("--line");
    c.fillStyle = colour("--quiet");
    c.textAlign = "right";
    c.textBaseline = "middle";
    for (let v = 0; v <= top * 1.0001; v += tick) {
      c.fillText(words(v), LEFT - 8, y(v));
      c.beginPath();
      c.moveTo(LEFT, y(v));
      c.lineTo(width - RIGHT, y(v));
      c.stroke();
    }
    c.textAlign = "center";
    c.textBaseline = "top";
    const every = [60, 120, 300, 600, 900, 1800].find((s) => this.span / s <= width / 130) ?? 3600;
    for (let at = Math.ceil(begin / every) * every; at <= end; at += every) {
      if (x(at) < LEFT + 20 || x(at) > width - 24) continue;
      c.fillText(new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }), x(at), height - BOTTOM + 6);
    }
    for (const { key, colour: name } of lines) {
      c.strokeStyle = colour(name);
      c.lineWidth = 1.75;
      c.beginPath();
      const measured = (p) => p && has(p, key);
      const apart = (a, b) => !measured(a) || !measured(b) || b.at - a.at > this.step * LATE;
      c.fillStyle = colour(name);
      shown.forEach((p, n) => {
        if (!measured(p)) return;
        const begins = apart(shown[n - 1], p);
        if (begins) c.moveTo(x(p.at), y(p[key]));
        else c.lineTo(x(p.at), y(p[key]));
        // A point between two gaps is no line.
        if (begins && apart(p, shown[n + 1])) c.fillRect(x(p.at) - 2, y(p[key]) - 2, 4, 4);
      });
      c.stroke();
    }
    this.tell(shown, begin, end, width, x);
  }

  /** The values under the pointer, or the last ones, in words. */
  tell(shown, begin, end, width, x) {
    let point = shown.at(-1);
    let when = "now";
    if (this.over !== null && shown.length > 0) {
      const near = (p) => Math.abs(x(p.at) - this.over);
      point = shown.reduce((a, b) => (near(b) < near(a) ? b : a));
      when = clock(point.at * 1000);
    } else if (point && end - point.at > this.step * 2.5) {
      when = clock(point.at * 1000);
    }
    const value = (v) => (v === null || v === undefined ? "–" : this.kind.words(v));
    const part = ({ key, name, colour }) => [el("span", { className: `key${colour}` }, "■ "), `${name} ${value(point?.[key])} `];
    this.legend.replaceChildren(...this.kind.lines.flatMap(part), point ? `(${when})` : "nothing measured yet");
    this.canvas.setAttribute("aria-label", `${this.label}: ${this.legend.textContent}`);
  }
}
