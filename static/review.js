// The review page of idem. It shows what the server says and sends back numbers and switches, no names and no paths.
// Everything is put on the page as text: a file may be called whatever it likes.

// ── small helpers ──

const by = (id) => document.getElementById(id);

/** An element with these properties and children; text children become text, never markup. */
function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && !name.startsWith("aria")) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** 3.2 MB for 3,200,000 bytes, as file managers show it. */
function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  const units = ["KB", "MB", "GB", "TB", "PB"];
  let value = bytes / 1000;
  let unit = 0;
  while (value >= 999.95 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value.toFixed(unit === 0 && value >= 9.95 ? 0 : 1)} ${units[unit]}`;
}

const number = (value) => value.toLocaleString("en");
const plural = (count, noun, nouns = `${noun}s`) => `${number(count)} ${count === 1 ? noun : nouns}`;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const path = (replica) => (replica.folder ? `${replica.folder}/${replica.name}` : replica.name);

function duration(seconds) {
  const whole = Math.round(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const [first, ...rest] = parts[0] ? parts : parts.slice(1);
  return seconds < 10 ? `${seconds.toFixed(1)} s` : [first, ...rest.map((part) => String(part).padStart(2, "0"))].join(":");
}

/** A path as text, each part of it by itself: so that one from right to left does not turn the others round. */
function pathText(text) {
  const parts = text.split(/([\\/])/).map((part) => h("bdi", {}, part));
  return h("span", { class: "path" }, ...parts);
}

function announce(text) {
  by("announcer").textContent = text;
}

// ── the server ──

class Gone extends Error {}

/** The JSON that the server answers; with a body, what is asked is done. Gone when nobody answers. */
async function ask(address, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Gone("idem is not running any more. Everything confirmed so far is done; nothing else has been touched.");
  }
  if (response.status === 403) throw new Gone("This page belongs to a run of idem that has ended.");
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function showProblem(error) {
  const problem = by("problem");
  problem.hidden = false;
  problem.replaceChildren(h("p", {}, error.message));
  if (error instanceof Gone) {
    document.body.classList.add("gone");
    by("groups").inert = true;
    problem.append(h("p", {}, "To go on, start it again in the terminal and open the new address."));
    for (const id of ["confirm", "done", "undo-last", "previous", "next", "sort", "kind", "view"]) by(id).disabled = true;
  }
  problem.scrollIntoView({ block: "nearest" });
}

function clearProblem() {
  if (!document.body.classList.contains("gone")) by("problem").hidden = true;
}

// ── a group ──

const LISTED = 8; // files that go to the trash; more of them are folded up
const factsKnown = new Map(); // "group/replica" -> promise of what the file's header says

function factsOf(group, replica) {
  const key = `${group}/${replica}`;
  if (!factsKnown.has(key)) factsKnown.set(key, ask(`facts/${key}`).catch(() => ({})));
  return factsKnown.get(key);
}

/** The rows of a card's table: what can differ between copies. */
function rowsOf(view, replica, facts, anyTaken, anyCamera) {
  const width = replica.width || facts.width || 0;
  const height = replica.height || facts.height || 0;
  const megapixels = (width * height) / 1e6;
  const rows = [
    ["Dimensions", width ? `${width} × ${height}${megapixels < 0.01 ? "" : ` · ${megapixels.toFixed(megapixels < 0.1 ? 2 : 1)} MP`}` : facts.reason ? "—" : "…"],
    ["Size", size(replica.bytes)],
    ["Format", facts.format || (facts.reason ? "—" : "…")],
  ];
  if (replica.seconds) rows.push(["Length", duration(replica.seconds)]);
  if (anyTaken) rows.push(["Taken", facts.taken || "—"]);
  else rows.push(["Modified", replica.modified || "—"]);
  if (anyCamera) rows.push(["Camera", facts.camera || "—"]);
  return rows;
}

class GroupCard {
  constructor(view, ordinal) {
    this.view = view;
    this.ordinal = ordinal;
    this.unsent = false; // there are changes that the server does not know of
    this.facts = view.replicas.map(() => ({}));
    this.cards = view.replicas.map((replica, place) => this.makeCard(replica, place));
    this.title = h("h2", { id: `group-${view.number}` });
    this.skip = h("button", { type: "button", class: "quiet", onclick: () => this.choose({ skipped: !this.view.skipped }) });
    this.plan = h("div", { class: "plan" });
    this.cardBox = h("div", { class: "cards" }, ...this.cards.map((card) => card.node));
    this.node = h(
      "article",
      { class: "group", tabIndex: -1, "aria-labelledby": `group-${view.number}` },
      h("header", {}, this.title, this.skip),
      this.cardBox,
      this.plan,
    );
    this.node.addEventListener("focusin", () => page.setCurrent(this));
    this.node.addEventListener("pointerdown", () => page.setCurrent(this));
    this.update(view);
  }

  makeCard(replica, place) {
    const { number: group } = this.view;
    const image = h("img", { loading: "lazy", decoding: "async", alt: "", src: `thumbnail/${group}/${place}` });
    image.setAttribute("fetchpriority", "low");
    const well = h(
      "button",
      { type: "button", class: "well", "aria-label": `See ${replica.name} large`, onclick: () => viewer.open(this, place) },
      image,
      this.view.kind === "video" ? h("span", { class: "play", "aria-hidden": "true" }) : null,
    );
    image.addEventListener("load", () => well.classList.add("loaded"));
    image.addEventListener("error", () => {
      well.classList.add("broken");
      image.remove();
      well.append(h("span", { class: "broken-text" }, "cannot be shown"));
    });
    const keep = h("input", { type: "checkbox", onchange: () => this.toggle(place) });
    keep.setAttribute("role", "switch");
    keep.setAttribute("aria-label", `Keep ${path(replica)}`);
    const state = h("span", { class: "state", "aria-hidden": "true" });
    const name = this.radio("name", place, "named", replica.name);
    const folder = this.radio("folder", place, "placed", replica.folder || "the top folder");
    const table = h("dl", { class: "facts" });
    const badge = place < 9 ? h("kbd", { class: "digit", "aria-hidden": "true" }, String(place + 1)) : null;
    const node = h(
      "div",
      { class: "card", role: "group", "aria-label": `Copy ${place + 1}: ${path(replica)}` },
      well,
      h("div", { class: "keep-row" }, h("label", { class: "switch" }, keep, h("span", {}, "Keep")), state, badge),
      h("p", { class: "name" }, replica.name),
      h("p", { class: "folder" }, replica.folder || "top folder"),
      table,
      h("div", { class: "uses" }, name.label, folder.label),
    );
    return { node, well, keep, state, table, name: name.input, folder: folder.input };
  }

  /** "Use this name" or "Use this folder" of one card. */
  radio(what, place, field, spoken) {
    const input = h("input", { type: "radio", name: `${what}-${this.view.number}`, onchange: () => this.choose({ [what]: place }) });
    input.setAttribute("aria-label", `Use this ${what}: ${spoken}`);
    return { input, label: h("label", { class: "use" }, input, h("span", {}, `Use this ${what}`)) };
  }

  toggle(place) {
    const { keep } = this.view;
    const kept = keep.includes(place) ? keep.filter((each) => each !== place) : [...keep, place].sort((a, b) => a - b);
    if (!kept.length) {
      this.cards[place].keep.checked = true;
      viewer.refresh();
      this.cards[place].node.classList.remove("refused");
      requestAnimationFrame(() => this.cards[place].node.classList.add("refused"));
      page.say("At least one copy stays: switch another one on first, or skip the group.");
      return;
    }
    this.choose({ keep: kept });
  }

  /** The next replica that gives its name or folder. */
  cycle(what) {
    const count = this.view.replicas.length;
    const effective = what === "name" ? this.view.named : this.view.placed;
    const own = (place) => (what === "name" ? this.view.replicas[place].name : this.view.replicas[place].folder);
    for (let step = 1; step <= count; step += 1) {
      const place = (effective + step) % count;
      if (own(place) !== own(effective) || step === count) {
        this.choose({ [what]: place });
        return;
      }
    }
  }

  /** Show a change at once, send it, and show what the server makes of it. */
  choose(change) {
    if (page.busy) return Promise.resolve();
    Object.assign(this.view, change);
    if ("name" in change) this.view.named = change.name;
    if ("folder" in change) this.view.placed = change.folder;
    this.update(this.view);
    viewer.refresh();
    this.unsent = true;
    return page.inTurn(() => this.send());
  }

  /** Send all changes that have not been sent. What is changed meanwhile counts more than the answer. */
  async send() {
    if (!this.unsent || !page.cards.includes(this)) return; // another page has come in between
    this.unsent = false;
    const { number: group, revision, keep, name, folder, skipped } = this.view;
    const query = new URLSearchParams({ kind: page.kind, view: page.view });
    const answer = await ask(`choose?${query}`, { group, revision, keep, name, folder, skipped });
    for (const other of answer.group.others) page.cards.find((card) => card.view.number === other.number)?.changedByOthers(other);
    if (this.unsent) {
      this.view.revision = answer.group.revision;
      return;
    }
    this.update(answer.group);
    Object.assign(page.data, answer.totals);
    page.showTotals();
    viewer.refresh();
    announce(this.summary());
  }

  /** The server says that something else comes of this group, as another one takes a name or leaves it free. */
  changedByOthers(view) {
    if (this.unsent) this.view.revision = view.revision;
    else this.update(view);
  }

  summary() {
    const { view } = this;
    if (view.skipped) return "Skipped: nothing happens to this group.";
    const trash = view.trash.length ? `${plural(view.trash.length, "file")} to the trash` : "nothing to the trash";
    return `Keeps ${view.keeps}${view.target ? ` as ${view.target}` : ""}, ${trash}.`;
  }

  update(view) {
    this.view = view;
    const copies = view.kind === "video" ? plural(view.replicas.length, "video") : plural(view.replicas.length, "copy", "copies");
    const frees = view.bytes ? `frees ${size(view.bytes)}` : "frees nothing";
    this.title.replaceChildren(
      h("span", { class: "ordinal" }, number(this.ordinal)),
      h("span", {}, view.replicas[view.keeper].name),
      h("span", { class: "frees" }, `${copies} · ${view.skipped ? "skipped" : frees}`),
    );
    this.skip.textContent = view.skipped ? "Bring back" : "Skip group";
    this.node.classList.toggle("skipped", view.skipped);
    if (view.skipped && (this.cardBox.contains(document.activeElement) || this.plan.contains(document.activeElement))) this.skip.focus();
    this.cardBox.hidden = view.skipped;
    this.plan.hidden = view.skipped;
    this.cards.forEach((card, place) => {
      const kept = view.keep.includes(place);
      card.keep.checked = kept;
      card.node.classList.toggle("kept", kept);
      card.state.textContent = kept ? (place === view.keeper ? "stays" : "stays, too") : "to the trash";
      card.name.checked = view.named === place;
      card.folder.checked = view.placed === place;
    });
    this.showFacts();
    this.showPlan();
  }

  showPlan() {
    const { view } = this;
    const line = (verb, style, ...rest) => h("p", { class: style }, h("strong", {}, verb), h("span", {}, ...rest));
    const lines = [];
    const moved = view.target ? [" as ", pathText(view.target)] : [];
    lines.push(line("Keep", "keeps", pathText(view.keeps), ...moved));
    for (const stay of view.stays) lines.push(line("Keep", "keeps", pathText(stay)));
    const listed = view.trash.map((each) => h("li", {}, pathText(each)));
    if (!listed.length) lines.push(line("Trash", "trashes", "nothing"));
    else if (listed.length <= LISTED) lines.push(h("div", { class: "trashes" }, h("strong", {}, "Trash"), h("ul", {}, ...listed)));
    else {
      const open = Boolean(this.plan.querySelector("details")?.open);
      const all = h("details", { open }, h("summary", {}, plural(listed.length, "file")), h("ul", {}, ...listed));
      lines.push(h("div", { class: "trashes" }, h("strong", {}, "Trash"), all));
    }
    this.plan.replaceChildren(...lines);
  }

  showFacts() {
    const anyTaken = this.facts.some((facts) => facts.taken);
    const anyCamera = this.facts.some((facts) => facts.camera);
    const all = this.view.replicas.map((replica, place) => rowsOf(this.view, replica, this.facts[place], anyTaken, anyCamera));
    const keeper = new Map(all[this.view.keeper]);
    all.forEach((rows, place) => {
      const shown = rows.map(([term, value]) => {
        const differs = place !== this.view.keeper && value !== keeper.get(term) && value !== "…" && keeper.get(term) !== "…";
        const about = differs ? h("span", { class: "unseen" }, " (differs from the kept copy)") : null;
        return h("div", { class: differs ? "differs" : "" }, h("dt", {}, term), h("dd", {}, h("span", {}, value), about));
      });
      if (this.facts[place].reason) shown.push(h("div", { class: "differs reason" }, h("dd", {}, this.facts[place].reason)));
      this.cards[place].table.replaceChildren(...shown);
    });
  }

  /** Ask what the files say of themselves, once the group is about to be seen. */
  async lookInside() {
    const found = await Promise.all(this.view.replicas.map((_, place) => factsOf(this.view.number, place)));
    this.facts = found;
    this.showFacts();
  }
}

const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      seen.unobserve(entry.target);
      page.cards.find((card) => card.node === entry.target)?.lookInside();
    }
  },
  { rootMargin: "600px" },
);

// ── the page ──

const SHOWN_AT_ONCE = 20; // groups, between which the browser can paint

const page = {
  sort: "space",
  kind: "both",
  view: "open",
  data: null,
  cards: [],
  current: null,
  busy: false,
  queue: Promise.resolve(),

  /** Do one thing after the other; what fails is said. */
  inTurn(work) {
    this.queue = this.queue.then(work).catch((error) => {
      if (viewer.dialog.open) viewer.close();
      showProblem(error);
      return error instanceof Gone ? null : this.load("at", this.first()).catch(showProblem);
    });
    return this.queue;
  },

  /** When all that has been asked of the server is answered. */
  async settled() {
    let last;
    do {
      last = this.queue;
      await last;
    } while (last !== this.queue);
  },

  first: () => page.cards[0]?.view.number,

  async load(step, at) {
    const query = new URLSearchParams({ sort: this.sort, kind: this.kind, view: this.view, step });
    if (at !== undefined && at !== null) query.set("at", at);
    this.data = await ask(`groups?${query}`);
    await this.show();
  },

  async show() {
    const { data } = this;
    const groups = by("groups");
    seen.disconnect();
    groups.setAttribute("aria-busy", "true");
    groups.replaceChildren();
    this.cards = [];
    this.current = null;
    by("confirm").disabled = true; // until all of the page is there to be seen
    window.scrollTo(0, 0);
    for (let start = 0; start < data.groups.length; start += SHOWN_AT_ONCE) {
      if (start) await new Promise((resolve) => setTimeout(resolve));
      const made = data.groups.slice(start, start + SHOWN_AT_ONCE).map((view, place) => new GroupCard(view, data.first + start + place));
      this.cards.push(...made);
      groups.append(...made.map((card) => card.node));
      for (const card of made) seen.observe(card.node);
    }
    groups.setAttribute("aria-busy", "false");
    this.showTotals();
    this.showEmpty();
    by("pages").replaceChildren(h("span", { class: "wide" }, "Page "), `${number(data.page)} of ${number(data.pages)}`);
    by("previous").disabled = data.page <= 1;
    by("next").disabled = data.page >= data.pages;
    this.remember();
  },

  /** Keep in the address what a reload needs. */
  remember() {
    const query = new URLSearchParams({ sort: this.sort, kind: this.kind, view: this.view });
    if (this.data.page > 1) query.set("at", this.first());
    history.replaceState(history.state, "", `#${query}`);
  },

  recall() {
    const query = new URLSearchParams(location.hash.slice(1));
    for (const [name, known] of [["sort", ["space", "folder", "copies"]], ["kind", ["both", "image", "video"]], ["view", ["open", "skipped"]]]) {
      if (known.includes(query.get(name))) this[name] = query.get(name);
    }
    by("sort").value = this.sort;
    by("kind").value = this.kind;
    return /^\d{1,9}$/.test(query.get("at") ?? "") ? query.get("at") : null;
  },

  /** The cards of the groups that Confirm would act on. */
  open: () => page.cards.filter((card) => !card.view.skipped),

  showTotals() {
    const { left, skipped } = this.data;
    const open = this.open();
    const bytes = open.reduce((sum, card) => sum + card.view.bytes, 0);
    const trash = open.reduce((sum, card) => sum + card.view.trash.length, 0);
    by("totals").replaceChildren(
      h("strong", {}, plural(left.groups, "group")),
      ` ${this.view === "skipped" ? "skipped" : "left"} · ${plural(left.files, "file")} · `,
      h("strong", {}, size(left.bytes)),
      " to free in all",
    );
    by("page-totals").replaceChildren(
      ...(open.length
        ? [h("span", { class: "wide" }, `${plural(open.length, "group")} here · `), `${plural(trash, "file")} to the trash · `, h("strong", {}, size(bytes)), " freed"]
        : []),
    );
    by("confirm").disabled = !open.length || document.body.classList.contains("gone");
    by("undo-last").hidden = !this.data.undo;
    const view = by("view");
    view.hidden = this.view === "open" && !skipped;
    view.textContent = this.view === "open" ? `Skipped (${number(skipped)})` : "Back to the others";
  },

  showEmpty() {
    const empty = by("empty");
    const { cards, data } = this;
    empty.hidden = cards.length > 0;
    document.body.classList.toggle("nothing-left", !cards.length);
    if (cards.length) return;
    const title = this.view === "skipped" ? "No group is skipped" : "Nothing is left to decide";
    const more = this.view === "open" && data.skipped
      ? `${plural(data.skipped, "group is skipped", "groups are skipped")}: see them with the button above. `
      : "";
    empty.replaceChildren(
      h("h2", {}, title),
      h("p", {}, `${more}Done ends idem; what was moved stays in the trash folder until you delete that yourself.`),
    );
  },

  setCurrent(card) {
    if (this.current === card) return;
    this.current?.node.classList.remove("current");
    this.current = card;
    card.node.classList.add("current");
  },

  /** Go to the group so many further down. */
  go(step) {
    const place = this.current ? this.cards.indexOf(this.current) + step : 0;
    const card = this.cards[clamp(place, 0, this.cards.length - 1)];
    if (!card) return;
    this.setCurrent(card);
    card.node.focus({ preventScroll: true });
    card.node.scrollIntoView({ block: card.node.offsetHeight > innerHeight - 160 ? "start" : "nearest" });
  },

  here() {
    if (!this.current && this.cards.length) this.setCurrent(this.cards[0]);
    return this.current;
  },

  turn(step) {
    if (this.busy || by(step === "after" ? "next" : "previous").disabled) return;
    clearProblem();
    const at = step === "after" ? this.cards.at(-1)?.view.number : this.first();
    this.inTurn(() => this.load(step, at).then(() => this.startAtTop()));
  },

  filter(change) {
    Object.assign(this, change);
    this.inTurn(() => this.load("at", null).then(() => announce(`${by("totals").textContent}, ${this.where()}`)));
  },

  where: () => `page ${number(page.data.page)} of ${number(page.data.pages)}`,

  /** After turning to another page: its first group has the focus. */
  startAtTop() {
    const [first] = this.cards;
    if (first) first.node.focus({ preventScroll: true });
    window.scrollTo(0, 0);
    announce(this.where());
  },

  say(text) {
    announce(text);
    toast.show(text);
  },
};

const toast = {
  node: h("p", { class: "toast", "aria-hidden": "true" }),
  timer: 0,
  show(text) {
    this.node.textContent = text;
    (document.querySelector("dialog[open]") ?? document.body).append(this.node);
    this.node.classList.add("shown");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.node.classList.remove("shown"), 4000);
  },
};

// ── confirming, and what came of it ──

const TIME_TO_READ = 400; // ms

const confirmation = {
  dialog: by("confirm-dialog"),
  timer: 0,

  /** Show in numbers what Confirm would do. Waits for choices that are on their way. */
  async open() {
    await page.settled();
    const open = page.open();
    if (by("confirm").disabled || page.busy || document.querySelector("dialog[open]")) return;
    const sum = (value) => open.reduce((total, card) => total + value(card.view), 0);
    const skipped = page.cards.length - open.length;
    const rows = [
      ["Groups", number(open.length) + (skipped ? ` (${number(skipped)} skipped)` : "")],
      ["Files to the trash", number(sum((view) => view.trash.length))],
      ["Files kept", number(sum((view) => view.keep.length))],
      ["Of these renamed or moved", number(sum((view) => (view.target ? 1 : 0)))],
      ["Space freed, once you empty the trash", size(sum((view) => view.bytes))],
    ];
    by("confirm-numbers").replaceChildren(...rows.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
    this.showProgress(null);
    this.show("Confirm this page");
    by("confirm-yes").disabled = true; // an Enter that was held or pressed twice must not be taken for a yes
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (!this.dialog.open || page.busy) return;
      by("confirm-yes").disabled = false;
      by("confirm-yes").focus({ preventScroll: true });
    }, TIME_TO_READ);
  },

  show(title) {
    by("confirm-title").textContent = title;
    if (!this.dialog.open) this.dialog.showModal();
    by("confirm-title").focus();
    this.dialog.scrollTop = 0;
  },

  showProgress(moving) {
    by("confirm-progress").hidden = !moving;
    by("confirm-buttons").hidden = by("confirm-note").hidden = Boolean(moving);
    if (moving && moving[0]) {
      by("progress").max = moving[1];
      by("progress").value = moving[0];
    } else {
      by("progress").removeAttribute("value");
    }
  },

  async run() {
    const groups = page.open().map(({ view }) => ({
      group: view.number, revision: view.revision, keep: view.keep, name: view.name, folder: view.folder,
    }));
    const first = page.first();
    this.show("Moving files…");
    await this.moving(() => ask("confirm", { groups }), [0, groups.length], first);
  },

  async undo() {
    await page.settled();
    if (page.busy || !page.data?.undo) {
      if (!page.busy) page.say("There is nothing to undo.");
      return;
    }
    by("confirm-numbers").replaceChildren();
    this.show("Putting files back…");
    await this.moving(() => ask("undo", {}), [0, 0], null);
  },

  /** Have files moved, show how far it is, then what came of it. */
  async moving(work, start, first) {
    page.busy = true;
    this.showProgress(start);
    const timer = setInterval(async () => {
      const { moving } = await ask("progress").catch(() => ({}));
      if (page.busy && moving) this.showProgress(moving);
    }, 400);
    try {
      const result = await work();
      clearProblem();
      if (result?.groups) page.view = "open";
      await page.load("at", result?.groups?.[0] ?? first);
      showResult(page.data.result, true);
    } catch (error) {
      showProblem(error);
      if (!(error instanceof Gone)) await page.load("at", first).catch(showProblem);
    } finally {
      clearInterval(timer);
      page.busy = false;
      this.showProgress(null);
      this.dialog.close();
      if (!by("result").hidden) by("result").focus({ preventScroll: true });
    }
  },

  /** The page was opened again while files were being moved: wait for that. */
  async waitForMoves(moving) {
    by("confirm-numbers").replaceChildren();
    this.show("Moving files…");
    await this.moving(async () => {
      while ((await ask("progress")).moving) await new Promise((resolve) => setTimeout(resolve, 300));
    }, moving, null);
  },
};

/** What was trashed, renamed, put back and refused. */
function showResult(result, fresh) {
  const panel = by("result");
  panel.hidden = !result;
  if (!result) return;
  const parts = [
    result.trashed ? `${plural(result.trashed, "file")} moved to the trash` : "",
    result.renamed ? `${number(result.renamed)} renamed or moved` : "",
    result.companions ? `${plural(result.companions, "companion file")} went along` : "",
    result.returned ? `${plural(result.returned, "file")} put back` : "",
    result.refused.length ? `${number(result.refused.length)} refused` : "",
  ].filter(Boolean);
  const title = parts.length ? `${parts.join(", ")}.` : result.error ? "Nothing was moved." : "Nothing had to be moved.";
  const freed = result.freed ? `${size(result.freed)} will be free once you empty the trash folder.` : "";
  panel.classList.toggle("problem", Boolean(result.error || result.refused.length));
  panel.replaceChildren(
    h("div", { class: "result-head" },
      h("div", {}, h("h2", {}, title), h("p", {}, freed)),
      h("div", { class: "buttons" },
        result.undo ? h("button", { type: "button", id: "undo", onclick: () => confirmation.undo() }, result.returned ? "Undo the page before" : "Undo") : null,
        h("button", { type: "button", class: "quiet", "aria-label": "Hide this", onclick: () => { panel.hidden = true; by("main").focus(); } }, "×"))),
    result.error ? h("p", { class: "error" }, result.error) : "",
    result.refused.length
      ? h("ul", { class: "refused-list" }, ...result.refused.map((each) => h("li", {}, pathText(each.path), ` ${each.reason}`)))
      : "",
    result.lines.length
      ? h("details", {}, h("summary", {}, "All moves"), h("ul", { class: "moves" }, ...result.lines.map((line) => h("li", {}, line))))
      : "",
  );
  if (fresh) announce(`${title} ${freed}`);
}

async function finish() {
  await page.settled();
  if (page.busy) return;
  for (const image of document.images) if (!image.complete) image.removeAttribute("src"); // nobody will answer
  try {
    const { lines } = await ask("done", {});
    document.body.classList.add("over");
    const text = lines.split("\n").filter((line) => !/^─+$/.test(line));
    by("main").replaceChildren(
      h("section", { class: "panel empty" }, h("h2", {}, "idem has ended"), ...text.map((line) => h("p", {}, line)), h("p", {}, "You can close this tab.")),
    );
    by("main").focus();
  } catch (error) {
    showProblem(error);
  }
}

// ── the viewer ──

const LARGEST_PIXEL = 12; // a pixel of the picture fills at most so many of the screen
const stage = by("stage");

const viewer = {
  dialog: by("viewer"),
  card: null,
  place: 0,
  layers: [], // one for each replica: its picture or video
  zoom: 1, // relative to the whole picture
  centre: { x: 0.5, y: 0.5 }, // what is in the middle of the stage, as a share of the picture
  difference: null, // the layer on top that shows it
  shown: { one: 0, other: 0 },
  pointers: new Map(),

  get isVideo() {
    return this.card?.view.kind === "video";
  },

  open(card, place) {
    page.setCurrent(card);
    this.card = card;
    this.opener = document.activeElement;
    this.zoom = 1;
    this.centre = { x: 0.5, y: 0.5 };
    this.difference = null;
    this.layers = card.view.replicas.map((_, each) => (this.isVideo ? this.videoLayer(each) : this.pictureLayer(each)));
    stage.replaceChildren(...this.layers.map((layer) => layer.node));
    this.dialog.classList.toggle("is-video", this.isVideo);
    by("strip").replaceChildren(...card.view.replicas.map((replica, each) => {
      const image = h("img", { src: `thumbnail/${card.view.number}/${each}`, alt: "" });
      const button = h("button", { type: "button", onclick: () => this.flipTo(each) }, image, h("span", {}, String(each + 1)));
      button.setAttribute("aria-label", `Copy ${each + 1}: ${path(replica)}`);
      return button;
    }));
    this.dialog.showModal();
    history.pushState({ viewer: true }, ""); // so that Back, which phones have a gesture for, closes it
    stage.focus();
    this.place = place;
    this.flipTo(place);
  },

  pictureLayer(place) {
    const { number: group, replicas } = this.card.view;
    const node = h("img", { class: "layer", alt: `${replicas[place].name}, large`, draggable: false, src: `thumbnail/${group}/${place}` });
    const layer = { node, place, width: replicas[place].width, height: replicas[place].height, state: "thumbnail" };
    node.addEventListener("load", () => {
      if (!layer.width || layer.state === "preview") this.measure(layer);
      this.arrange();
    });
    return layer;
  },

  /** Where the server has not decoded a file, its own numbers count. */
  async measure(layer) {
    const facts = await factsOf(this.card.view.number, layer.place);
    layer.width = layer.width || facts.width || layer.node.naturalWidth;
    layer.height = layer.height || facts.height || layer.node.naturalHeight;
    this.arrange();
  },

  /** Exchange the thumbnail for all pixels, once they are there and decoded. */
  async sharpen(layer) {
    if (layer.state !== "thumbnail") return;
    layer.state = "loading";
    const full = new Image();
    layer.full = full;
    full.src = `preview/${this.card.view.number}/${layer.place}`;
    try {
      await full.decode();
      layer.state = "preview";
      layer.node.src = full.src;
    } catch {
      layer.state = "failed";
    }
    this.caption();
  },

  videoLayer(place) {
    const { number: group } = this.card.view;
    const node = h("video", { class: "layer", controls: true, preload: "metadata", playsInline: true, poster: `thumbnail/${group}/${place}` });
    const layer = { node, place, state: "new" };
    node.addEventListener("error", () => this.convert(layer));
    node.addEventListener("loadedmetadata", () => {
      layer.state = "ready";
      if (layer.seconds) node.currentTime = layer.seconds;
      this.caption();
    });
    return layer;
  },

  async startVideo(layer) {
    if (layer.state !== "new") return;
    layer.state = "loading";
    const facts = await factsOf(this.card.view.number, layer.place);
    if (facts.plays) layer.node.src = `video/${this.card.view.number}/${layer.place}`;
    else this.convert(layer);
  },

  /** Have the server convert the video, and show it when that is done; nothing when the viewer has been closed. */
  async convert(layer) {
    if (layer.state === "converted" || layer.state === "failed") {
      layer.state = "failed";
      this.caption();
      return;
    }
    layer.state = "converting";
    this.caption();
    const address = `${this.card.view.number}/${layer.place}`;
    let answer = {};
    while (!answer.ready && this.layers.includes(layer)) {
      answer = await ask(`conversion/${address}`).catch((error) => ({ ready: true, reason: error.message }));
      if (!answer.ready) await new Promise((resolve) => setTimeout(resolve, 400));
    }
    if (!this.layers.includes(layer)) return;
    layer.state = answer.reason ? "failed" : "converted";
    layer.reason = answer.reason;
    if (!answer.reason) layer.node.src = `converted/${address}`;
    this.caption();
  },

  flip(step) {
    const count = this.layers.length;
    this.flipTo((this.place + step + count) % count);
  },

  flipTo(place) {
    const before = this.layers[this.place];
    const layer = this.layers[place];
    this.difference?.node.remove();
    this.difference = null;
    if (this.isVideo && before !== layer) {
      layer.seconds = before.node.currentTime;
      if (layer.state === "ready") layer.node.currentTime = layer.seconds;
      before.node.pause();
    }
    this.place = place;
    for (const each of this.layers) each.node.classList.toggle("on", each === layer);
    if (this.isVideo) {
      this.startVideo(layer);
    } else {
      this.sharpen(layer);
      for (const step of [1, -1]) this.sharpen(this.layers[(place + step + this.layers.length) % this.layers.length]);
    }
    this.arrange();
    this.refresh();
  },

  /** What is said about the copy that is shown. */
  refresh() {
    if (!this.dialog.open || !this.card) return;
    const { view, facts } = this.card;
    const replica = view.replicas[this.place];
    const layer = this.layers[this.place];
    const width = replica.width || layer.width || facts[this.place].width;
    const height = replica.height || layer.height || facts[this.place].height;
    by("viewer-name").textContent = by("viewer-name").title = replica.name;
    const about = [`${this.place + 1} of ${view.replicas.length}`, replica.folder || "top folder", width ? `${width} × ${height}` : "", size(replica.bytes)];
    by("viewer-about").textContent = about.filter(Boolean).join(" · ");
    by("viewer-keep").checked = view.keep.includes(this.place);
    by("difference").setAttribute("aria-pressed", String(Boolean(this.difference)));
    [...by("strip").children].forEach((button, each) => {
      button.setAttribute("aria-pressed", String(each === this.place));
      button.classList.toggle("kept", view.keep.includes(each));
    });
    this.caption();
  },

  caption() {
    const layer = this.layers[this.place];
    if (!layer) return;
    let text = "";
    if (this.difference) text = this.difference.text;
    else if (layer.state === "loading" && !this.isVideo) text = "loading all pixels…";
    else if (layer.state === "converting") text = "converting for the browser; a long video takes a while…";
    else if (layer.state === "failed") text = `this file cannot be shown${layer.reason ? `: ${layer.reason}` : ""}`;
    by("viewer-message").textContent = text;
  },

  // ── geometry ──

  /** The size at which the whole picture fits the stage. */
  fit(layer) {
    const width = layer.width || layer.node.naturalWidth || 1;
    const height = layer.height || layer.node.naturalHeight || 1;
    const scale = Math.min(stage.clientWidth / width, stage.clientHeight / height);
    return { width: width * scale, height: height * scale, scale };
  },

  /** Put all layers where zoom and centre say: the same part of the picture in the same place. */
  arrange() {
    if (this.isVideo || !this.dialog.open || !this.layers.length) return;
    const current = this.fit(this.layers[this.place]);
    for (const axis of ["x", "y"]) {
      const [room, length] = axis === "x" ? [stage.clientWidth, current.width] : [stage.clientHeight, current.height];
      const half = room / (2 * length * this.zoom);
      this.centre[axis] = half >= 0.5 ? 0.5 : clamp(this.centre[axis], half, 1 - half);
    }
    for (const layer of this.difference ? [...this.layers, this.difference] : this.layers) {
      const fit = this.fit(layer);
      const [width, height] = [fit.width * this.zoom, fit.height * this.zoom];
      layer.node.style.width = `${width}px`;
      layer.node.style.height = `${height}px`;
      const left = stage.clientWidth / 2 - this.centre.x * width;
      const top = stage.clientHeight / 2 - this.centre.y * height;
      layer.node.style.transform = `translate(${left}px, ${top}px)`;
      const pixel = fit.scale * this.zoom * devicePixelRatio;
      layer.node.classList.toggle("coarse", pixel >= 3 && layer.state === "preview");
    }
    const percent = Math.round(current.scale * this.zoom * devicePixelRatio * 100);
    by("zoom").textContent = `${percent} %`;
    stage.classList.toggle("movable", this.zoom > 1);
  },

  /** Zoom, with the point of the picture under this one of the stage staying there. */
  zoomTo(zoom, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    if (this.isVideo) return;
    const fit = this.fit(this.layers[this.place]);
    const one = 1 / (fit.scale * devicePixelRatio); // where a pixel of the picture is one of the screen
    const next = clamp(zoom, Math.min(1, one), Math.max(1, one * LARGEST_PIXEL));
    const [dx, dy] = [x - stage.clientWidth / 2, y - stage.clientHeight / 2];
    this.centre.x += dx / (fit.width * this.zoom) - dx / (fit.width * next);
    this.centre.y += dy / (fit.height * this.zoom) - dy / (fit.height * next);
    this.zoom = next;
    this.arrange();
  },

  zoomToPixels(x, y) {
    const fit = this.fit(this.layers[this.place]);
    this.zoomTo(1 / (fit.scale * devicePixelRatio), x, y);
  },

  move(dx, dy) {
    if (this.isVideo) return;
    const fit = this.fit(this.layers[this.place]);
    this.centre.x -= dx / (fit.width * this.zoom);
    this.centre.y -= dy / (fit.height * this.zoom);
    this.arrange();
  },

  // ── the difference ──

  async toggleDifference() {
    if (this.isVideo) return;
    if (this.difference) {
      this.difference.node.remove();
      this.difference = null;
      this.refresh();
      return;
    }
    const { view } = this.card;
    const one = this.place;
    const other = one === view.keeper ? (one + 1) % view.replicas.length : view.keeper;
    const node = h("img", { class: "layer on over", alt: `Difference between copy ${one + 1} and copy ${other + 1}`, draggable: false });
    const layer = this.layers[one];
    const difference = { node, width: layer.width, height: layer.height, text: "comparing…", state: "difference" };
    this.difference = difference;
    this.refresh();
    try {
      const response = await fetch(`difference/${view.number}/${one}/${other}`);
      if (!response.ok) throw new Error((await response.json()).error);
      const note = JSON.parse(response.headers.get("Idem-Note"));
      node.src = URL.createObjectURL(await response.blob());
      await node.decode().finally(() => URL.revokeObjectURL(node.src));
      difference.text = differenceText(one, other, note);
    } catch (error) {
      difference.text = `no difference can be shown: ${error.message}`;
    }
    if (this.difference !== difference) return;
    if (node.src) stage.append(node);
    this.arrange();
    this.refresh();
  },

  close() {
    for (const layer of this.layers) if (layer.node.pause) layer.node.pause();
    this.dialog.close();
  },

  closed() {
    for (const layer of this.layers) if (layer.state === "loading" && layer.full) layer.full.src = ""; // nobody waits for it
    stage.replaceChildren();
    by("strip").replaceChildren();
    this.layers = [];
    this.difference = null;
    (this.opener?.isConnected ? this.opener : page.here()?.node)?.focus({ preventScroll: true });
    if (history.state?.viewer) history.back();
  },

  key(event) {
    const keys = {
      ArrowLeft: () => this.flip(-1),
      ArrowRight: () => this.flip(1),
      "+": () => this.zoomTo(this.zoom * 1.5),
      "=": () => this.zoomTo(this.zoom * 1.5),
      "-": () => this.zoomTo(this.zoom / 1.5),
      0: () => this.zoomTo(1),
      z: () => this.zoomToPixels(),
      d: () => this.toggleDifference(),
      p: () => this.playOrPause(),
      " ": () => this.close(),
      "?": () => by("help").showModal(),
    };
    const digit = /^[1-9]$/.test(event.key) ? Number(event.key) - 1 : -1;
    if (digit >= 0 && digit < this.layers.length) this.card.toggle(digit);
    else if (keys[event.key]) keys[event.key]();
    else return false;
    return true;
  },

  playOrPause() {
    const { node } = this.layers[this.place];
    if (this.isVideo) (node.paused ? node.play().catch(() => {}) : node.pause());
  },
};

function differenceText(one, other, note) {
  const share = note.share === 0 ? "no pixel" : `${(note.share * 100).toFixed(note.share < 0.01 ? 2 : 1)} % of the pixels`;
  const size = `compared at ${note.width} × ${note.height}`;
  if (!note.largest) return `copy ${one + 1} against ${other + 1}: no difference, ${size}`;
  const levels = `at most ${note.largest} of 255 levels apart, ${share} by ${note.visible} or more`;
  return `copy ${one + 1} against ${other + 1}, ${note.gain} times brighter: ${levels}; ${size}`;
}

function listenOnStage() {
  stage.addEventListener("wheel", (event) => {
    if (viewer.isVideo) return;
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    const lines = event.deltaMode === 1 ? 30 : 1;
    viewer.zoomTo(viewer.zoom * 1.0025 ** (-event.deltaY * lines * (event.ctrlKey ? 4 : 1)), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => {
    const box = stage.getBoundingClientRect();
    if (viewer.zoom !== 1) viewer.zoomTo(1);
    else viewer.zoomToPixels(event.clientX - box.left, event.clientY - box.top);
  });
  stage.addEventListener("pointerdown", (event) => {
    if (viewer.isVideo || event.button) return;
    stage.setPointerCapture(event.pointerId);
    viewer.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  stage.addEventListener("pointermove", (event) => {
    const before = viewer.pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    const other = [...viewer.pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) pinch(before, now, other);
    else viewer.move(now.x - before.x, now.y - before.y);
    viewer.pointers.set(event.pointerId, now);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    stage.addEventListener(name, (event) => viewer.pointers.delete(event.pointerId));
  }
}

/** One of two fingers has moved: what was under both stays under them. */
function pinch(before, now, other) {
  const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y) || 1;
  const box = stage.getBoundingClientRect();
  const middle = { x: (now.x + other.x) / 2 - box.left, y: (now.y + other.y) / 2 - box.top };
  viewer.move((now.x - before.x) / 2, (now.y - before.y) / 2);
  viewer.zoomTo(viewer.zoom * (distance(now, other) / distance(before, other)), middle.x, middle.y);
}

// ── keys ──

/** Whether the focused element has its own use for this key. */
function isTaken(event) {
  const { target, key } = event;
  if (target.matches("select, textarea, input[type=text]")) return true;
  if (target.matches("input[type=radio]")) return key === " " || key.startsWith("Arrow");
  if (target.matches("input")) return key === " ";
  if (target.matches("video")) return key === " " || key.startsWith("Arrow");
  return target.matches("button, a, summary") && (key === " " || key === "Enter");
}

function pageKey(event) {
  const card = page.here();
  const keys = {
    ArrowDown: () => page.go(1),
    j: () => page.go(1),
    ArrowUp: () => page.go(-1),
    k: () => page.go(-1),
    ArrowRight: () => page.turn("after"),
    ArrowLeft: () => page.turn("before"),
    Enter: () => confirmation.open(),
    u: () => confirmation.undo(),
    "?": () => by("help").showModal(),
  };
  const forGroup = {
    s: () => card.choose({ skipped: !card.view.skipped }),
    n: () => card.cycle("name"),
    f: () => card.cycle("folder"),
    " ": () => viewer.open(card, card.view.keeper),
  };
  const digit = /^[1-9]$/.test(event.key) ? Number(event.key) - 1 : -1;
  if (keys[event.key]) keys[event.key]();
  else if (!card) return false;
  else if (event.key in forGroup && (event.key === "s" || !card.view.skipped)) forGroup[event.key]();
  else if (digit >= 0 && digit < card.view.replicas.length && !card.view.skipped) card.toggle(digit);
  else return false;
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.repeat && event.key === "Enter") event.preventDefault(); // held down, it would press one button after the other
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || isTaken(event)) return;
  if (document.body.classList.contains("over")) return;
  if (by("help").open || confirmation.dialog.open) return;
  const open = viewer.dialog.open;
  if (event.repeat && !event.key.startsWith("Arrow") && !"jk+-".includes(event.key)) return;
  const handled = open ? viewer.key(event) : pageKey(event);
  if (handled) event.preventDefault();
});

// ── start ──

function listen() {
  by("previous").addEventListener("click", () => page.turn("before"));
  by("next").addEventListener("click", () => page.turn("after"));
  for (const name of ["sort", "kind"]) {
    by(name).addEventListener("change", ({ target }) => {
      if (!target.matches(":focus-visible")) target.blur(); // chosen with the mouse: letters are for the page again
      page.filter({ [name]: target.value });
    });
  }
  by("view").addEventListener("click", () => page.filter({ view: page.view === "open" ? "skipped" : "open" }));
  by("confirm").addEventListener("click", () => confirmation.open());
  by("confirm-no").addEventListener("click", () => confirmation.dialog.close());
  by("confirm-yes").addEventListener("click", () => confirmation.run());
  confirmation.dialog.addEventListener("cancel", (event) => page.busy && event.preventDefault());
  by("done").addEventListener("click", finish);
  by("undo-last").addEventListener("click", () => confirmation.undo());
  addEventListener("popstate", () => viewer.dialog.open && viewer.dialog.close());
  by("help-button").addEventListener("click", () => by("help").showModal());
  by("help-close").addEventListener("click", () => by("help").close());
  by("viewer-close").addEventListener("click", () => viewer.close());
  by("viewer-previous").addEventListener("click", () => viewer.flip(-1));
  by("viewer-next").addEventListener("click", () => viewer.flip(1));
  by("viewer-keep").addEventListener("change", () => viewer.card.toggle(viewer.place));
  by("zoom-in").addEventListener("click", () => viewer.zoomTo(viewer.zoom * 1.5));
  by("zoom-out").addEventListener("click", () => viewer.zoomTo(viewer.zoom / 1.5));
  by("zoom-fit").addEventListener("click", () => viewer.zoomTo(1));
  by("zoom-one").addEventListener("click", () => viewer.zoomToPixels());
  by("difference").addEventListener("click", () => viewer.toggleDifference());
  viewer.dialog.addEventListener("close", () => viewer.closed());
  addEventListener("resize", () => viewer.arrange());
  listenOnStage();
}

async function start() {
  listen();
  try {
    await page.load("at", page.recall());
    if (page.data.moving) await confirmation.waitForMoves(page.data.moving);
    else if (page.data.result?.undo) showResult(page.data.result, false);
  } catch (error) {
    showProblem(error);
  }
}

start();
