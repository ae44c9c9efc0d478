// The console's pages. What the daemon says comes by one stream; what it is not streamed is asked for.

import { Chart } from "./chart.js";
import { Table } from "./table.js";
import { ago, bits, clock, el, octets, rate, span } from "./text.js";

const $ = (id) => document.getElementById(id);
const GATEWAY_SPAN = 3600;
const TUNNEL_SPAN = 600;
const QUALITY_SPAN = 3600;
const STEP = 5;
const MAX_EVENTS = 500;
const MOMENT = 30;
const UP = ["up", "rekeying"];

const state = { head: null, tunnels: new Map(), events: [], token: sessionStorage.getItem("token"), mayChange: false };
let page = null;
let late = false;

/** Shows what has changed a moment later, together with what else comes until then. Also in a window that nobody sees: its
 * charts go on. */
function changed() {
  if (late) return;
  late = true;
  setTimeout(() => {
    late = false;
    page?.update();
  }, MOMENT);
}

// --- asking ----------------------------------------------------------------------------------------------------------

const bearer = () => (state.token ? { Authorization: `Bearer ${state.token}` } : {});

async function ask(path) {
  const answer = await fetch(path, { headers: bearer() });
  const value = await answer.json().catch(() => ({ message: `${answer.status} ${answer.statusText}` }));
  if (!answer.ok) throw new Error(value.message);
  return value;
}

/** Has the daemon do something, and says how it went. */
async function order(verb, what) {
  try {
    const answer = await fetch("/api/order", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...bearer() },
      body: JSON.stringify({ verb, ...what }),
    });
    const value = await answer.json();
    if (answer.status === 401) unlocked(false);
    notice(answer.ok ? "good" : "bad", value.message + (value.hint ? ` (${value.hint})` : ""));
    return answer.ok;
  } catch (e) {
    notice("bad", `The daemon cannot be reached: ${e.message}`);
    return false;
  }
}

function notice(kind, text) {
  $("notice").className = kind;
  $("notice").textContent = text;
  $("notice").hidden = false;
  clearTimeout(notice.timer);
  if (kind === "good") notice.timer = setTimeout(() => { $("notice").hidden = true; }, 8000);
}

// --- the token -------------------------------------------------------------------------------------------------------

function unlocked(yes) {
  state.mayChange = yes;
  if (!yes) {
    state.token = null;
    sessionStorage.removeItem("token");
  }
  $("key").textContent = yes ? "Lock" : "Unlock changes";
  document.querySelectorAll("[data-change]").forEach(permit);
}

/** Marks what only works with a token. */
function permit(control) {
  control.disabled = !state.mayChange;
  control.title = state.mayChange ? "" : "Unlock changes first";
  return control;
}

const changing = (control) => {
  control.dataset.change = "";
  return permit(control);
};

async function session() {
  const s = await ask("/api/session").catch(() => null);
  $("key").hidden = !s?.token_exists;
  unlocked(s?.may_change === true);
  return s?.may_change === true;
}

$("key").onclick = () => {
  if (state.mayChange) return unlocked(false);
  $("token").value = "";
  $("token-wrong").hidden = true;
  $("unlock").showModal();
};
$("token-cancel").onclick = () => $("unlock").close();
$("unlock").querySelector("form").onsubmit = async (e) => {
  e.preventDefault();
  state.token = $("token").value.trim();
  if (await session()) {
    sessionStorage.setItem("token", state.token);
    $("unlock").close();
  } else {
    $("token-wrong").hidden = false;
  }
};

// --- words -----------------------------------------------------------------------------------------------------------

const word = (name) => el("span", { className: `state ${name}` }, name);

/** A tunnel's state, and what is not as it should be although it is up. */
function condition(t) {
  if (UP.includes(t.state) && t.unanswered_s !== undefined) return el("span", { className: "state wait" }, `${t.state}, no answer`);
  if (UP.includes(t.state) && t.health === "degraded") return el("span", { className: "state wait" }, `${t.state}, degraded`);
  if (UP.includes(t.state) && t.covered < t.pairs) return el("span", { className: "state wait" }, `${t.state}, ${t.covered}/${t.pairs}`);
  return word(t.state);
}

const list = (pairs) => el("dl", {}, pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value ?? "–")]));
const card = (title, ...children) => el("section", { className: "card" }, el("h3", {}, title), children);
const link = (href, text) => el("a", { href }, text);
const tunnelPath = (name) => `#/tunnel/${encodeURIComponent(name)}`;

function table(heads, rows) {
  if (rows.length === 0) return el("p", { className: "quiet" }, "None.");
  const cell = (tag, c) => (Array.isArray(c) ? el(tag, { className: "n" }, c[0]) : el(tag, {}, c ?? "–"));
  return el("table", {}, el("thead", {}, el("tr", {}, heads.map((h) => cell("th", h)))),
    el("tbody", {}, rows.map((r) => el("tr", {}, r.map((c) => cell("td", c))))));
}

function events(all) {
  const line = (e) => el("li", {}, el("time", { className: "quiet", dateTime: e.time }, clock(e.time)),
    el("span", {}, e.tunnel ? [link(tunnelPath(e.tunnel), e.tunnel), ": "] : [], e.message));
  return all.length === 0 ? el("p", { className: "quiet" }, "None.") : el("ul", { className: "events" }, all.map(line));
}

const counts = (map) => Object.entries(map ?? {}).sort((a, b) => b[1] - a[1]).map(([name, n]) => [name, [String(n)]]);

/** A bandwidth level in words. */
const level = (l) => (l ? `${l.bps === null ? "unlimited" : bits(l.bps)} (${l.origin})${used(l)}` : "unlimited");

/** How much of it is used, if that is known. */
const used = (l) => (l.bps && typeof l.used === "number" ? `, ${Math.ceil((l.used * 100) / l.bps)} % used` : "");

/** A form that sets the level of `whose`. */
function levelForm(whose, label) {
  const text = el("input", { required: true, placeholder: "100mbit or unlimited", "aria-label": label });
  const save = el("input", { type: "checkbox" });
  const inward = el("input", { type: "checkbox" });
  const line = (box, words) => el("label", { className: "line" }, box, words);
  return el("form", { className: "tools", onsubmit: async (e) => {
    e.preventDefault();
    const bps = rate(text.value);
    if (bps === undefined) return notice("bad", `${text.value} is no rate; write a number with kbit, mbit or gbit, or unlimited`);
    if (await order("bandwidth", { gateway: whose, bps, inward: inward.checked, save: save.checked })) text.value = "";
  } }, changing(text), line(inward, "inwards"), line(save, "over restarts"), changing(el("button", {}, "Set")));
}

/** Asks again and again while a page is open. */
function poll(path, take) {
  let timer = null;
  const again = async () => {
    try {
      take(await ask(path), null);
    } catch (e) {
      take(null, e);
    }
    timer = timer === false ? false : setTimeout(again, STEP * 1000);
  };
  again();
  return () => { clearTimeout(timer); timer = false; };
}

// --- pages: each gives { title, nodes, update(what), leave() } ---------------------------------------------------------

function tunnels() {
  const columns = [
    { name: "Name", key: (t) => t.name, cell: (t) => link(tunnelPath(t.name), t.name) },
    { name: "Gateway", key: (t) => t.gateway, cell: (t) => t.gateway },
    { name: "Peer", key: (t) => t.peer, cell: (t) => t.peer },
    { name: "State", key: (t) => t.state, cell: condition },
    { name: "For", key: (t) => -Date.parse(t.since), cell: (t) => ago(t.since) },
    { name: "In", key: (t) => t.rate?.rx_bps ?? -1, cell: (t) => bits(t.rate?.rx_bps), number: true },
    { name: "Out", key: (t) => t.rate?.tx_bps ?? -1, cell: (t) => bits(t.rate?.tx_bps), number: true },
  ];
  const grid = new Table("Tunnels", columns, (t) => { location.hash = tunnelPath(t.name); });
  const search = el("input", { type: "search", id: "search", placeholder: "name, gateway, peer, state", oninput: () => update() });
  const ill = el("button", { type: "button", "aria-pressed": "false", onclick: () => {
    ill.setAttribute("aria-pressed", ill.getAttribute("aria-pressed") !== "true");
    update();
  } }, "Only what is not up");
  const sum = el("p", { className: "quiet", id: "sum", role: "status" });
  const well = (t) => UP.includes(t.state) && t.covered === t.pairs && t.unanswered_s === undefined && t.health !== "degraded";
  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const only = ill.getAttribute("aria-pressed") === "true";
    const text = (t) => `${t.name} ${t.gateway} ${t.peer} ${t.state}`.toLowerCase();
    const all = [...state.tunnels.values()];
    const found = all.filter((t) => (!only || !well(t)) && words.every((w) => text(t).includes(w)));
    sum.textContent = `${all.filter(well).length} of ${all.length} tunnels are well; ${found.length} shown`;
    grid.set(found);
  }
  return { title: "Tunnels", nodes: [el("div", { className: "tools" }, el("label", {}, "Search", search), ill), sum, grid.node], update };
}

function tunnel(name) {
  const chart = new Chart(`Traffic of ${name}`, TUNNEL_SPAN, STEP);
  const now = el("p", { id: "condition" });
  const probed = quality(name);
  const facts = el("div", { className: "cards" });
  const rules = el("div", {});
  const keys = el("div", {});
  const why = el("div", {});
  const past = el("div", {});
  const act = (text, verb, more = {}) => changing(el("button", { type: "button", onclick: async (e) => {
    e.target.disabled = true;
    await order(verb, { tunnel: name, timeout_s: 30, ...more });
    permit(e.target);
  } }, text));
  const set = levelForm(`tunnel:${name}`, `Bandwidth of ${name}`);
  const buttons = el("div", { className: "tools" }, act("Up", "up"), act("Down", "down"),
    act("New keys", "rekey", { ike: false }), act("New IKE keys", "rekey", { ike: true }), act("Reset", "reset"));
  ask(`/api/rates?tunnel=${encodeURIComponent(name)}`).then((r) => chart.set(r.points), () => {});
  function update() {
    const t = state.tunnels.get(name);
    if (!t) return now.replaceChildren("There is no tunnel of this name.");
    now.replaceChildren(condition(t), ` for ${ago(t.since)}`,
      t.unanswered_s === undefined ? "" : el("span", { className: "bad" }, `; packets leave and none have come in for ${span(t.unanswered_s)}`),
      t.error ? el("span", { className: "bad" }, `; last error: ${t.error}`) : "");
    chart.add(t.rate);
  }
  function detail(known, error) {
    if (error) return why.replaceChildren(el("p", { className: "bad" }, error.message));
    const t = known.status.snapshot.tunnels[0];
    if (!t) return;
    probed.set(t.quality, known.quality);
    facts.replaceChildren(
      card("Ends", list([["Gateway", t.gateway], ["Customer gateway", t.customer_gateway], ["Start", t.start],
        ["Bandwidth", level(t.bandwidth)], ["Bandwidth inwards", level(t.bandwidth_in)],
        ["Our address", t.path?.local], ["Peer's address", t.path?.remote], ["Peer's identity", t.ike?.peer_id]])),
      card("IKE SA", t.ike ? list([["Algorithms", t.ike.proposal], ["We are", t.ike.role], ["NAT", t.ike.nat],
        ["New keys in", span(t.ike.rekey_in_s)], ["SPIs", `${t.ike.spi_i} ${t.ike.spi_r}`]]) : el("p", { className: "quiet" }, "None.")));
    rules.replaceChildren(table(["Local networks", "Remote networks", "State", ["Carried"]],
      t.rules.map((r) => [r.local.join(" "), r.remote.join(" "), [el("span", {}, word(r.state), r.last_error ? ` ${r.last_error}` : "")][0],
        [`${r.covered}/${r.pairs}`]])));
    keys.replaceChildren(table(["Networks", "Algorithms", ["In"], ["Out"], ["Dropped"], ["Age"]],
      t.children.map((c) => [`${c.local.join(" ")} – ${c.remote.join(" ")}`, c.proposal, [`${octets(c.bytes_in)}, ${c.packets_in} p`],
        [`${octets(c.bytes_out)}, ${c.packets_out} p`], [String(c.drops.replay + c.drops.integrity)], [span(c.age_s)]])));
    why.replaceChildren(...known.explanation.explanation.negotiations.slice(0, 4).map(negotiation));
    if (why.children.length === 0) why.append(el("p", { className: "quiet" }, "Nothing was negotiated yet."));
    past.replaceChildren(events(known.events.events.slice(-50).reverse()));
  }
  const leave = poll(`/api/tunnel?name=${encodeURIComponent(name)}`, detail);
  return { title: name, update, leave, nodes: [el("h2", {}, name), now, buttons, card("Traffic, 10 minutes", chart.node, set), probed.node, facts,
    card("Configured networks", rules), card("ESP SAs", keys), card("Last negotiations", why), card("Events", past)] };
}

const DELAYS = {
  lines: [{ key: "delay_ms", name: "mean", colour: "--in" }, { key: "delay_max_ms", name: "longest", colour: "--out" }],
  words: (v) => `${v.toFixed(v < 10 ? 1 : 0)} ms`,
  least: 1,
};
const LOSSES = {
  lines: [{ key: "loss_ratio", name: "lost", colour: "--out" }],
  words: (v) => `${(v * 100).toFixed(1)} %`,
  least: 0.02,
};

/** What probes say of a tunnel: now, and by the minute. */
function quality(name) {
  const delays = new Chart(`Delay of ${name}`, QUALITY_SPAN, 60, DELAYS);
  const losses = new Chart(`Loss of ${name}`, QUALITY_SPAN, 60, LOSSES);
  const now = el("div", {});
  const node = el("section", { className: "card", hidden: true }, el("h3", {}, "Quality, an hour by the minute"), now, delays.node, losses.node);
  function set(q, minutes) {
    node.hidden = !q;
    if (!q) return;
    const ms = (v) => (v === null || v === undefined ? "–" : `${v.toFixed(1)} ms`);
    now.replaceChildren(list([["Health", el("span", { className: `state ${{ good: "up", degraded: "failed" }[q.health] ?? "waiting"}` },
      q.cause ? `${q.health} (${q.cause.replaceAll("_", " ")})` : q.health)], ["Probes", q.source ? `${q.source} to ${q.target}${q.port ? `, UDP port ${q.port}` : ""}` : q.problem],
    ["Lost", `${q.lost} of ${q.probes} in the last minute`], ["Delay", `${ms(q.delay_ms)}, jitter ${ms(q.jitter_ms)}`]]));
    // The last one is not over.
    const points = minutes.map((m) => ({ ...m, at: Math.min(Date.parse(m.time) / 1000 + 60, Date.now() / 1000) }));
    delays.set(points);
    losses.set(points);
  }
  return { node, set };
}

function negotiation(n) {
  const bad = n.outcome === "refused" || n.outcome === "failed";
  const point = (p) => [p.topic.replaceAll("_", " "), p.ours, p.theirs, p.chosen ?? p.result,
    [p.why, p.change ? `change ${p.change.key} (${p.change.place}): ${p.change.how}` : null].filter(Boolean).join("; ")];
  return el("div", {}, el("p", { className: bad ? "bad" : "" },
    `${clock(n.time)}: ${n.exchange} as ${n.role} with ${n.peer}: ${n.outcome}${n.reason ? `, ${n.reason}` : ""}${n.detail ? `: ${n.detail}` : ""}`),
  n.topics.length > 0 ? table(["About", "Ours", "Theirs", "Chosen", "Why"], n.topics.map(point)) : null);
}

function gateways() {
  const cards = new Map();
  const place = el("div", { className: "cards" });
  function make(g) {
    const chart = new Chart(`Traffic of ${g.name}`, GATEWAY_SPAN, STEP);
    ask(`/api/rates?gateway=${encodeURIComponent(g.name)}`).then((r) => chart.set(r.points), () => {});
    const facts = el("div", {});
    const node = card(g.name, facts, chart.node, levelForm(`gateway:${g.name}`, `Bandwidth of ${g.name}`), el("p", {}, link(`#/traffic/${encodeURIComponent(g.name)}`, "Addresses behind it")));
    place.append(node);
    return { node, chart, facts };
  }
  function update() {
    const names = new Set(state.head.gateways.map((g) => g.name));
    for (const [name, c] of cards) if (!names.has(name)) { c.node.remove(); cards.delete(name); }
    for (const g of state.head.gateways) {
      if (!cards.has(g.name)) cards.set(g.name, make(g));
      const c = cards.get(g.name);
      const own = [...state.tunnels.values()].filter((t) => t.gateway === g.name);
      const quota = state.head.quota?.tunnels_per_gateway?.limit;
      c.facts.replaceChildren(list([["Address", g.address], ["Bandwidth", level({ bps: g.bandwidth_bps, origin: g.bandwidth_origin, used: g.bandwidth_used_bps })],
        ["Bandwidth inwards", level(g.bandwidth_in && { ...g.bandwidth_in, used: g.bandwidth_in_used_bps })],
        ["Tunnels", `${own.filter((t) => UP.includes(t.state)).length} of ${own.length} up${quota ? `, quota ${quota}` : ""}`],
        ["Limited addresses", g.limits ? `${g.limits.rates} to a rate, ${g.limits.blocked} blocked` : "none"]]));
      c.chart.add(g.rate);
    }
  }
  return { title: "Gateways", nodes: [place], update };
}

function traffic(chosen) {
  const gateway = chosen || state.head.gateways[0]?.name;
  if (!gateway) return { title: "Traffic", nodes: [el("p", {}, "There are no gateways.")], update() {} };
  const choice = el("select", { onchange: () => { location.hash = `#/traffic/${encodeURIComponent(choice.value)}`; } },
    state.head.gateways.map((g) => el("option", { selected: g.name === gateway }, g.name)));
  const heavy = el("div", { id: "addresses" });
  const chart = new Chart("Traffic of an address", TUNNEL_SPAN, STEP);
  const heading = el("h3", {}, "Choose an address");
  const ip = el("input", { required: true, placeholder: "10.1.0.5", id: "limit-ip" });
  const limit = el("input", { required: true, placeholder: "10mbit, block or unlimited", id: "limit-rate" });
  const save = el("input", { type: "checkbox" });
  const form = el("form", { className: "tools", onsubmit: async (e) => {
    e.preventDefault();
    await order("limit", { gateway, limits: [{ ip: ip.value.trim(), rate: limit.value.trim() }], save: save.checked });
  } }, el("label", {}, "Address", changing(ip)), el("label", {}, "Limit", changing(limit)),
  el("label", { className: "line" }, save, "over restarts"), changing(el("button", {}, "Limit")));
  const points = new Map();
  let before = null;
  let shown = null;
  function show(address) {
    shown = address;
    heading.textContent = `Traffic of ${address}, since this page was opened`;
    ip.value = address;
    chart.set([...(points.get(address) ?? [])]);
  }
  function take(answer, error) {
    if (error) return heavy.replaceChildren(el("p", { className: "bad" }, error.message));
    const { top } = answer;
    const at = Date.now() / 1000;
    const passed = before ? (top.at_ns - before.at_ns) / 1e9 : 0;
    const old = new Map(before?.ips.map((i) => [i.ip, i]));
    const rows = top.ips.map((i) => {
      const b = old.get(i.ip);
      // A daemon that has begun anew counts from nothing: what it carried meanwhile is not known.
      const ok = b && passed > 0 && passed < STEP * 2.5 && i.bytes_in >= b.bytes_in && i.bytes_out >= b.bytes_out;
      const point = ok ? { at, rx_bps: ((i.bytes_in - b.bytes_in) * 8) / passed, tx_bps: ((i.bytes_out - b.bytes_out) * 8) / passed } : null;
      if (point) points.set(i.ip, [...(points.get(i.ip) ?? []).slice(-TUNNEL_SPAN / STEP), point]);
      if (point && i.ip === shown) chart.add(point);
      return { ...i, point };
    });
    before = top;
    if (!top.counts_ips) return heavy.replaceChildren(el("p", {}, "This data plane does not count addresses."));
    heavy.replaceChildren(table(["Address", ["To it"], ["From it"], ["Last day"], ["Dropped"], "Limit"], rows.slice(0, 200).map((r) => [
      el("button", { type: "button", onclick: () => show(r.ip) }, r.ip), [bits(r.point?.rx_bps)], [bits(r.point?.tx_bps)],
      [octets(r.day_in + r.day_out)], [String(r.dropped)], r.limit ?? "none"])));
  }
  const leave = poll(`/api/top?gateway=${encodeURIComponent(gateway)}`, take);
  return { title: "Traffic", leave, update() {}, nodes: [el("div", { className: "tools" }, el("label", {}, "Gateway", choice)), form,
    el("section", { className: "card" }, heading, chart.node), card("Busiest addresses", heavy)] };
}

function happened() {
  const search = el("input", { type: "search", placeholder: "tunnel, gateway, words", oninput: () => update() });
  const place = el("div", { className: "card", id: "events" });
  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (e) => `${e.event} ${e.tunnel ?? ""} ${e.gateway ?? ""} ${e.message}`.toLowerCase();
    place.replaceChildren(events(state.events.filter((e) => words.every((w) => text(e).includes(w))).slice(-200).reverse()));
  }
  return { title: "Events", update, nodes: [el("div", { className: "tools" }, el("label", {}, "Search", search)), place] };
}

function protection() {
  const place = el("div", { className: "cards" });
  const loud = el("div", {});
  function update() {
    const h = state.head;
    const f = h.flood;
    const quota = Object.entries(h.quota ?? {}).filter(([, q]) => q.limit !== null);
    place.replaceChildren(
      card("Handshakes of strangers", list([["Half open", `${h.half_open} of at most ${f.half_open_limit}`],
        ["Asked for a cookie", String(f.cookies_demanded)], ["Came back with it", String(f.cookies_returned)]])),
      card("IKE datagrams dropped", table(["Reason", ["Count"]], counts(f.dropped).filter(([, [n]]) => n !== "0"))),
      card("Packets dropped by the data plane", table(["Reason", ["Count"]], counts(h.plane_drops).filter(([, [n]]) => n !== "0"))),
      card("Kept from leaving in clear text", el("p", {}, h.wall.in_force ? "The wall is in force." : "There is no wall on this host."),
        table(["Reason", ["Count"]], counts(h.wall.drops))),
      card("In the way of the guards", table(["What", "Fix"], (h.obstacles ?? []).map((o) => [o.detail, o.fix]))),
      card("Quotas", table(["What", ["Used"], ["At most"]], quota.map(([name, q]) => [name.replaceAll("_", " "), [String(q.used)], [String(q.limit)]]))));
  }
  const leave = poll("/api/peers", (answer, error) => {
    if (error) return loud.replaceChildren(el("p", { className: "bad" }, error.message));
    loud.replaceChildren(table(["Source (unproven)", ["Refused"], "Reasons", ["Last"]], answer.top.peers.map((p) => [p.source,
      [String(p.refused)], Object.keys(p.reasons).join(", "), [`${span(p.last_s)} ago`]])));
  });
  return { title: "Protection", update, leave, nodes: [place, card("Loudest strangers", loud)] };
}

// --- where we are ----------------------------------------------------------------------------------------------------

const PAGES = { tunnels, tunnel, gateways, traffic, events: happened, protection };

function go() {
  if (!state.head) return;
  page?.leave?.();
  const [name, argument] = location.hash.replace(/^#\//, "").split("/").map(decodeURIComponent);
  const make = Object.hasOwn(PAGES, name) ? PAGES[name] : tunnels;
  page = make(argument);
  document.title = `${page.title} – cygnet`;
  $("main").replaceChildren(...page.nodes);
  const current = name === "tunnel" || make === tunnels ? "tunnels" : name;
  document.querySelectorAll("nav a").forEach((a) => {
    if (a.dataset.page === current) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  });
  page.update();
}
addEventListener("hashchange", () => { $("notice").hidden = true; go(); $("main").focus({ preventScroll: true }); scrollTo(0, 0); });

function linked(yes) {
  document.body.classList.toggle("stale", !yes);
  $("link").classList.toggle("lost", !yes);
  const h = state.head;
  $("link").textContent = yes && h ? `${h.version}, ${h.data_plane} data plane, up ${ago(h.started)}${h.config_ok ? "" : ", last configuration refused"}`
    : "connection lost; what is shown is old";
}

function follow() {
  const stream = new EventSource("/api/stream");
  const read = (e) => JSON.parse(e.data);
  stream.addEventListener("all", (e) => {
    const all = read(e);
    const first = state.head === null;
    state.head = all.head;
    state.tunnels = new Map(all.tunnels.map((t) => [t.name, t]));
    past();
    if (first) go();
    else changed();
    linked(true);
  });
  stream.addEventListener("change", (e) => {
    const change = read(e);
    state.head = change.head;
    for (const t of change.tunnels) state.tunnels.set(t.name, t);
    changed();
    linked(true);
  });
  stream.addEventListener("event", (e) => {
    state.events.push(read(e));
    if (state.events.length > MAX_EVENTS) state.events.shift();
    if (page?.title === "Events") changed();
  });
  stream.addEventListener("lost", past);
  stream.onerror = () => linked(false);
}

async function past() {
  state.events = await ask("/api/events").catch(() => state.events);
  if (page?.title === "Events") page.update();
}

await session();
follow();
