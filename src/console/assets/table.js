// A list of any length of which only the lines in sight are drawn.

import { el } from "./text.js";

const HEIGHT = 36;
const SPARE = 4;
// Made once: a comparison that names its options makes a collator of its own, which takes longer than all else.
const collator = new Intl.Collator(undefined, { numeric: true });
const compare = (a, b) => (typeof a === "string" ? collator.compare(a, b) : a - b);

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
    const keyed = rows.map((row) => ({ row, key: key(row) }));
    keyed.sort((a, b) => sign * compare(a.key, b.key) || compare(a.row.name, b.row.name));
    this.rows = keyed.map((k) => k.row);
    const again = this.rows.findIndex((r) => r.name === current);
    this.at = again >= 0 ? again : Math.min(this.at, Math.max(0, this.rows.length - 1));
    this.heads.forEach((h, n) => {
      const sorted = n === column ? (down ? "descending" : "ascending") : "none";
      h.parentElement.setAttribute("aria-sort", sorted);
      h.textContent = this.columns[n].name + (n === column ? (down ? " ↓" : " ↑") : "");
    });
    this.node.setAttribute("aria-rowcount", this.rows.length + 1);
    this.drawn.forEach((line, n) => {
      if (n < this.rows.length) this.fill(line, n);
    });
    this.draw();
  }

  draw() {
    const height = `${this.rows.length * HEIGHT}px`;
    if (this.space.style.height !== height) this.space.style.height = height;
    const first = Math.max(0, Math.floor(this.window.scrollTop / HEIGHT) - SPARE);
    const last = Math.min(this.rows.length, Math.ceil((this.window.scrollTop + this.window.clientHeight) / HEIGHT) + SPARE);
    // A line that is out of sight becomes one that comes into it.
    const spare = [];
    for (const [n, line] of this.drawn) {
      if (n < first || n >= last) {
        this.drawn.delete(n);
        spare.push(line);
      }
    }
    for (let n = first; n < last; n += 1) {
      let line = this.drawn.get(n);
      if (!line) {
        line = spare.pop() ?? this.line();
        this.place(line, n);
        this.drawn.set(n, line);
      }
      line.classList.toggle("at", n === this.at);
    }
    spare.forEach((line) => line.remove());
  }

  line() {
    const line = el("div", { className: "row", role: "row", onclick: () => this.open(this.rows[line.n]) },
      this.columns.map((c) => el("div", { role: "gridcell", className: c.number ? "n" : "" })));
    this.window.append(line);
    return line;
  }

  place(line, n) {
    // Whoever was in it is not taken to another tunnel.
    if (line.contains(document.activeElement)) this.window.focus({ preventScroll: true });
    line.n = n;
    line.setAttribute("aria-rowindex", n + 2);
    line.style.transform = `translateY(${n * HEIGHT}px)`;
    this.fill(line, n);
  }

  /** Writes what is another one than before: what is pointed at or has the focus stays as far as it is the same. */
  fill(line, n) {
    this.columns.forEach((c, i) => {
      const value = c.cell(this.rows[n]);
      const cell = line.children[i];
      if (typeof value === "string") {
        if (cell.firstElementChild || cell.textContent !== value) cell.textContent = value;
      } else if (!cell.firstChild?.isEqualNode(value)) cell.replaceChildren(value);
    });
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
