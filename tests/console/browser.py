"""The console as a person uses it. usage: browser.py SCENE CONTROL-SOCKET TOKEN-FILE DIRECTORY"""

import json
import os
import subprocess
import sys
import time
import urllib.request

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

URL = "http://127.0.0.1:9181/"
# Everything that is waited for comes within a sample of five seconds; the rest is for a machine that is busy.
PATIENCE = 40

scene, socket, token_file, directory = sys.argv[1:]
token = open(token_file).read().strip()
pictures = os.environ.get("SCREENSHOTS")


def ctl(*verb, good=True):
    ran = subprocess.run([os.environ["CYGNET"], "--control", socket, *verb], capture_output=True, text=True)
    if good and ran.returncode != 0:
        sys.exit(f"FAILED: cygnet {' '.join(verb)}: {ran.stderr}")
    return ran.stdout


def start():
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for word in ["headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update", "disable-dev-shm-usage",
                 "window-size=1280,900", f"user-data-dir={directory}/chromium"]:
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))


browser = start()


def wait(what, condition):
    """Until the condition gives something true. The page may put another element in one's place between a look and the next."""
    try:
        waiting = WebDriverWait(browser, PATIENCE, poll_frequency=0.2, ignored_exceptions=[StaleElementReferenceException])
        return waiting.until(lambda _: condition())
    except TimeoutException:
        browser.save_screenshot(f"{directory}/failed.png")
        print(browser.get_log("browser"), file=sys.stderr)
        sys.exit(f"FAILED: {what}; the page says: {text()[:1500]}")


def text():
    return browser.find_element(By.TAG_NAME, "body").text


def says(*words):
    wait(f"the page says {words}", lambda: all(w in text() for w in words))


def find(css):
    return wait(f"there is {css}", lambda: (browser.find_elements(By.CSS_SELECTOR, css) or [None])[0])


def button(name):
    path = f"//button[normalize-space()='{name}']"
    return wait(f"there is a button {name}", lambda: (browser.find_elements(By.XPATH, path) or [None])[0])


def press(name):
    def pressed():
        button(name).click()
        return True

    wait(f"the button {name} can be pressed", pressed)


def go(page):
    browser.execute_script("location.hash = arguments[0]", f"#/{page}")


def picture(name):
    if pictures:
        browser.save_screenshot(f"{pictures}/{name}.png")


def condition(state):
    wait(f"the tunnel is {state}", lambda: find("#condition").text.startswith(state))


def unlock(text):
    """Without a mouse."""
    find("#key").send_keys(Keys.ENTER)
    find("#token").send_keys(text, Keys.ENTER)


def contrast():
    """Of text and what is behind it, from 1 to 21 (WCAG 2, 1.4.3), and whether what is behind is the darker one."""
    def luminance(colour):
        parts = [float(p) / 255 for p in colour[colour.index("(") + 1:-1].split(",")[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))

    style = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    front, back = map(luminance, browser.execute_script(style))
    return (max(front, back) + 0.05) / (min(front, back) + 0.05), back < front


# What a daemon that has begun anew says: counters that are lower than before, and grow.
BEGUN_ANEW = """
const real = window.fetch;
window.fetch = async (...a) => {
  const answer = await real(...a);
  if (!String(a[0]).includes("/api/top")) return answer;
  const body = await answer.json();
  for (const i of body.top.ips) for (const k of ["bytes_in", "bytes_out"]) i[k] = Math.floor(i[k] / 4);
  return new Response(JSON.stringify(body), { status: answer.status, headers: answer.headers });
};
"""


def complaints():
    """What the browser complains about, but for an answer that is an error on purpose."""
    return [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE" and "Failed to load resource: the server responded with a status of 4" not in e["message"]]


def pages():
    browser.get(URL)
    says("userspace data plane", "1 of 1 tunnels are well", "tunnel")
    # What happens elsewhere is seen here without a click.
    ctl("down", "tunnel")
    wait("the tunnel goes down", lambda: find(".window .state").text == "down")
    says("0 of 1 tunnels are well")
    ctl("up", "tunnel")
    wait("the tunnel comes up", lambda: find(".window .state").text == "up")
    wait("traffic is seen", lambda: "kbit/s" in find(".window .row").text)
    picture("tunnels")

    find(".window").send_keys(Keys.ENTER)
    condition("up")
    says("aes256gcm16", "10.1.0.0/16", "agreed")
    says("good", "10.1.0.1 to 10.2.0.2")
    assert not button("Down").is_enabled(), "a change is possible without a token"
    unlock("0123456789abcdef0123456789")
    says("That is not the token")
    find("#token-cancel").click()
    assert not button("Down").is_enabled(), "a wrong token permits changes"
    unlock(token)
    wait("changes are possible", lambda: button("Down").is_enabled())
    press("Down")
    condition("down")
    press("Up")
    condition("up")
    wait("the chart has a rate", lambda: "bit/s" in find("canvas").get_attribute("aria-label").replace("–", ""))
    picture("tunnel")

    go("gateways")
    says("192.0.2.1", "10.0 Mbit/s (command)")
    level = find("main form input")
    level.send_keys("50furlongs", Keys.ENTER)
    says("is no rate")
    level.clear()
    level.send_keys("50mbit", Keys.ENTER)
    says("50.0 Mbit/s (command)")
    assert '"bandwidth_bps": 50000000' in ctl("status", "--json", good=False), "the daemon has another level"
    picture("gateways")

    go("traffic")
    says("10.1.0.2")
    press("10.1.0.2")
    find("#limit-rate").send_keys("300kbit", Keys.ENTER)
    says("10.1.0.2", "300kbit")
    assert "300kbit" in ctl("limit", "gateway"), "the daemon has no such limit"
    find("#limit-ip").clear()
    find("#limit-ip").send_keys("192.168.77.1", Keys.ENTER)
    wait("an address outside is refused", lambda: find("#notice").get_attribute("class") == "bad")
    wait("the chart has a rate", lambda: "(now)" in find(".chart").text and "in –" not in find(".chart").text)
    picture("traffic")
    row = lambda: find("main table tbody tr").text
    browser.execute_script(BEGUN_ANEW)
    wait("what is not known is a gap", lambda: "bit/s" not in row())
    for _ in range(3):
        wait("it counts on", lambda: "bit/s" in row())
        assert "-" not in row() and "(now) -" not in find(".chart").text, f"a rate below nothing: {row()}"
        time.sleep(5)

    # One piece has a line less than it has points.
    browser.set_script_timeout(PATIENCE)
    seen = browser.execute_async_script(PIECES)
    assert seen == [1 - 9, 2 - 7, 2 - 7], f"a line is drawn where nothing was measured: {seen}"

    go("events")
    says("300kbit", "up: SPIs")
    picture("events")
    go("protection")
    says("Half open", "The wall is in force")
    picture("protection")

    # By day and by night, and on a telephone.
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        ratio, dark = contrast()
        assert dark == (scheme == "dark") and ratio >= 4.5, f"{scheme}: contrast {ratio:.1f}"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.set_window_size(390, 844)
    for page, words in [("tunnel/tunnel", "agreed"), ("gateways", "192.0.2.1"), ("traffic", "10.1.0.2"), ("events", "up: SPIs"),
                        ("protection", "Half open"), ("tunnels", "tunnels are well")]:
        go(page)
        says(words)
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= 400, f"{page}: {width} pixels do not fit a telephone"
    picture("telephone")


# How many pieces a line of ten points has of which one was not measured and another one is missing.
PIECES = """
const [done] = arguments;
import("/chart.js").then(({ Chart }) => {
  const pen = CanvasRenderingContext2D.prototype, { moveTo, lineTo } = pen;
  let pieces = 0, lines = 0;
  pen.moveTo = function (...a) { pieces += 1; return moveTo.apply(this, a); };
  pen.lineTo = function (...a) { lines += 1; return lineTo.apply(this, a); };
  const chart = new Chart("test", 60, 5, { lines: [{ key: "v", name: "v", colour: "--in" }], words: String, least: 1 });
  document.body.append(chart.node);
  const now = Date.now() / 1000, count = (points) => { pieces = lines = 0; chart.set(points); return pieces - lines; };
  // The axis has as many pieces as lines.
  const all = Array.from({ length: 10 }, (_, n) => ({ at: now - 50 + n * 5, v: 1 }));
  const whole = count(all);
  const unmeasured = count(all.map((p, n) => (n === 5 ? { ...p, v: null } : p)));
  const missing = count(all.filter((_, n) => n !== 5));
  Object.assign(pen, { moveTo, lineTo });
  chart.node.remove();
  done([whole, unmeasured, missing]);
});
"""


def many():
    browser.get(URL)
    says("0 of 250 tunnels are well; 250 shown")
    drawn = lambda: len(browser.find_elements(By.CSS_SELECTOR, ".window .row"))
    assert drawn() < 60, f"{drawn()} of 250 lines are drawn"
    find(".window").send_keys(Keys.END)
    says("t249")
    find("#search").send_keys("t17 ")
    says("11 shown")
    browser.execute_script("document.querySelector('.head div:nth-child(1) button').click()")
    wait("the order is reversed", lambda: find(".window .row[aria-rowindex='2']").text.startswith("t179"))


# Keeps the longest time without a new picture, tasks that hold the page up for more than 50 ms, and the time from what comes
# from the daemon, or from a person, until the picture after it.
WATCH = """
(() => {
  const w = window.watch = { begin() { Object.assign(w, { gap: 0, tasks: [], messages: {}, last: null }); } };
  w.begin();
  new PerformanceObserver((list) => list.getEntries().forEach((e) => w.tasks.push(e.duration))).observe({ type: "longtask" });
  const picture = (at) => {
    if (w.last !== null) w.gap = Math.max(w.gap, at - w.last);
    w.last = at;
    requestAnimationFrame(picture);
  };
  requestAnimationFrame(picture);
  w.drawn = (then, done) => requestAnimationFrame(() => setTimeout(() => done(performance.now() - then)));
  const Stream = window.EventSource;
  window.EventSource = class extends Stream {
    constructor(...a) {
      super(...a);
      for (const kind of ["all", "change"]) {
        this.addEventListener(kind, () => {
          const then = performance.now();
          // It is shown after a moment, which is part of the time.
          const wait = new MutationObserver(() => {
            wait.disconnect();
            w.drawn(then, (t) => (w.messages[kind] ??= []).push(t));
          });
          wait.observe(document.querySelector("main"), { childList: true, subtree: true, characterData: true });
        });
      }
    }
  };
})();
"""


def measured(what, script=None, seconds=0):
    """Does something in the page, waits, and prints what was seen meanwhile. The script calls `done` with times in ms."""
    browser.execute_script("watch.begin()")
    times = browser.execute_async_script(f"const done = arguments[0]; {script}") if script else []
    time.sleep(seconds)
    seen = browser.execute_script("return { gap: watch.gap, tasks: watch.tasks, messages: watch.messages }")
    whole = lambda numbers: [round(n) for n in numbers]
    line = {"what": what, "longest_frame_ms": round(seen["gap"]), "tasks_over_50_ms": whole(seen["tasks"])}
    if times:
        line["until_drawn_ms"] = {"mean": round(sum(times) / len(times)), "max": round(max(times))}
    for kind, times in seen["messages"].items():
        line[f"{kind}_until_drawn_ms"] = whole(times)
    print(json.dumps(line), flush=True)


# One after the other, each when the picture of the one before is there.
EACH = """
const each = (list, act) => {
  const times = [], rest = [...list];
  const next = () => {
    if (rest.length === 0) return done(times);
    const then = performance.now();
    act(rest.shift());
    watch.drawn(then, (t) => { times.push(t); next(); });
  };
  next();
};
"""


def agree():
    """What the gateway carried and what its tunnels did, each as it is shown, are the same within 1 %."""
    def rates(of):
        points = json.load(urllib.request.urlopen(f"{URL}api/rates?{of}"))["points"]
        return {p["at"]: p for p in points}

    gateway, tunnels = rates("gateway=gateway"), [rates(f"tunnel={t}") for t in ("t0", "t4", "t999")]
    moments = [at for at in gateway if all(at in t for t in tunnels) and gateway[at]["tx_bps"] > 100_000][-3:]
    assert len(moments) == 3, f"the gateway carried too little to compare: {list(gateway.values())[-3:]}"
    for at in moments:
        for way in ("rx_bps", "tx_bps"):
            parts = [t[at][way] for t in tunnels]
            assert min(parts[:2]) > 10_000, f"both tunnels carry: {parts}"
            assert abs(sum(parts) / gateway[at][way] - 1) < 0.01, f"{parts} of {gateway[at]}"
    told = json.loads(ctl("status", "--json", good=False))["gateways"][0]["tx_bps"]
    shown = [rates("gateway=gateway")[at]["tx_bps"] for at in sorted(rates("gateway=gateway"))[-3:]]
    assert any(abs(told / s - 1) < 0.01 for s in shown), f"status says {told}, the console {shown}"


def thousand():
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    browser.set_script_timeout(PATIENCE * 3)
    browser.get(URL)
    says("1000 of 1000 tunnels are well; 1000 shown")
    drawn = lambda: len(browser.find_elements(By.CSS_SELECTOR, ".window .row"))
    assert drawn() < 60, f"{drawn()} of 1000 lines are drawn"
    first = lambda: find(".window .row[aria-rowindex='2']").text.split("\n")[0]
    measured("updates", seconds=21)
    agree()
    measured("scroll", EACH + """
        const pane = document.querySelector(".window");
        each(Array.from({ length: 300 }, (_, n) => n * 120), (y) => { pane.scrollTop = y; });""")
    wait("the last one is reached", lambda: "t999" in text())
    assert drawn() < 60, f"{drawn()} of 1000 lines are drawn after scrolling"
    browser.execute_script("document.querySelector('.window').scrollTop = 0")
    measured("search", EACH + """
        const search = document.querySelector("#search");
        each(["t", "t9", "t99", "t999", "t99", "t9", "t", ""].flatMap((w) => [w, w]), (w) => {
          search.value = w;
          search.dispatchEvent(new Event("input"));
        });""")
    find("#search").send_keys("t17 ")
    # t17, t170 to t179, and no other.
    says("11 shown")
    assert drawn() == 11, f"{drawn()} lines are drawn of 11"
    find("#search").clear()
    find("#search").send_keys(" ")
    says("1000 shown")
    measured("sort", EACH + """
        const heads = [...document.querySelectorAll(".head button")];
        each([1, 2, 3, 4, 5, 6, 0].flatMap((n) => [n, n]), (n) => heads[n].click());""")
    wait("the last one is first", lambda: first() == "t999")
    browser.execute_script("document.querySelector('.head button').click()")
    wait("the first one is first again", lambda: first() == "t0")


try:
    {"pages": pages, "many": many, "thousand": thousand}[scene]()
    if complaints():
        sys.exit(f"FAILED: the browser complains: {complaints()}")
finally:
    browser.quit()
