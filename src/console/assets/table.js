// A list of any length of which only the lines in sight are drawn.

import { el } from "./text.js";

const HEIGHT = 36;
const SPARE = 4;

export class Table {
  /** `columns`: { name, key(row), cell(row) → node or text, number }; `open(row)`: what Enter and a click do. */
  constructor(label, columns, open) {
    this.columns = columns;
    this.open = open;
    this.rows = [];
    this.sort = { column: 0, down: false };
    this.at = 0;
    this.drawn = new Map();
    this.heads = columns.map((c, n) =>
      el("button", { type: "button", className: c.number ? "n" : "", onclick: () => this.order(n) }, c.name));
    this.space = el("div", {});
    this.window = el("div", { className: "window", tabIndex: 0, role: "rowgroup" }, this.space);
    this.node = el("div", { className: "grid", role: "grid", "aria-label": label },
      el("div", { className: "row head", role: "row" },
        columns.map((c, n) => el("div", { role: "columnheader", className: c.number ? "n" : "" }, this.heads[n]))),
      this.window);
    this.window.addEventListener("scroll", () => this.draw());
    this.window.addEventListener("keydown", (e) => this.key(e));
    new ResizeObserver(() => this.draw()).observe(this.window);
  }

  order(column) {
    this.sort = { column, down: this.sort.column === column ? !this.sort.down : this.columns[column].number === true };
    this.set(this.rows);
  }

  set(rows) {
    const current = this.rows[this.at]?.name;
    const { column, down } = this.sort;
    const key = this.columns[column].key;
    const sign = down ? -1 : 1;
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
    this.rows = [...rows].sort((a, b) => sign * compare(key(a), key(b)) || compare(a.name, b.name));
    const again = this.rows.findIndex((r) => r.name === current);
    this.at = again >= 0 ? again : Math.min(this.at, Math.max(0, this.rows.length - 1));
    this.heads.forEach((h, n) => {
      const sorted = n === column ? (down ? "descending" : "ascending") : "none";
      h.parentElement.setAttribute("aria-sort", sorted);
      h.textContent = this.columns[n].name + (n === column ? (down ? " ↓" : " ↑") : "");
    });
    this.node.setAttribute("aria-rowcount", this.rows.length + 1);
    this.drawn.forEach((node) => node.remove());
    this.drawn.clear();
    this.draw();
  }

  draw() {
    this.space.style.height = `${this.rows.length * HEIGHT}px`;
    const first = Math.max(0, Math.floor(this.window.scrollTop / HEIGHT) - SPARE);
    const last = Math.min(this.rows.length, Math.ceil((this.window.scrollTop + this.window.clientHeight) / HEIGHT) + SPARE);
    for (const [n, node] of this.drawn) {
      if (n < first || n >= last) {
        node.remove();
        this.drawn.delete(n);
      }
    }
    for (let n = first; n < last; n += 1) {
      if (!this.drawn.has(n)) this.drawn.set(n, this.line(n));
      this.drawn.get(n).classList.toggle("at", n === this.at);
    }
  }

  line(n) {
    const row = this.rows[n];
    const node = el("div", { className: "row", role: "row", "aria-rowindex": n + 2, onclick: () => this.open(row) },
      this.columns.map((c) => el("div", { role: "gridcell", className: c.number ? "n" : "" }, c.cell(row))));
    node.style.transform = `translateY(${n * HEIGHT}px)`;
    this.window.append(node);
    return node;
  }

  key(e) {
    const page = Math.max(1, Math.floor(this.window.clientHeight / HEIGHT) - 1);
    const to = { ArrowDown: this.at + 1, ArrowUp: this.at - 1, PageDown: this.at + page, PageUp: this.at - page,
      Home: 0, End: this.rows.length - 1 }[e.key];
    if (e.key === "Enter" && this.rows[this.at]) this.open(this.rows[this.at]);
    if (to === undefined) return;
    e.preventDefault();
    this.at = Math.max(0, Math.min(this.rows.length - 1, to));
    const y = this.at * HEIGHT;
    if (y < this.window.scrollTop) this.window.scrollTop = y;
    if (y + HEIGHT > this.window.scrollTop + this.window.clientHeight) this.window.scrollTop = y + HEIGHT - this.window.clientHeight;
    this.draw();
  }
}
