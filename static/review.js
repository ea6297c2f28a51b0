// The review page of idem. It shows what the server says and sends back numbers and switches, no names and no paths.
// Everything is put on the page as text: a file may be called whatever it likes.

// ── small helpers ──

const by = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** An element with these properties and children; text children become text, never markup. */
function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** 3.2 MB for 3,200,000 bytes, as file managers show it. */
function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  const units = ["KB", "MB", "GB", "TB", "PB"];
  let [value, unit] = [bytes / 1000, 0];
  for (; value >= 999.95 && unit < units.length - 1; unit += 1) value /= 1000;
  return `${value.toFixed(unit === 0 && value >= 9.95 ? 0 : 1)} ${units[unit]}`;
}

const number = (value) => value.toLocaleString("en");
const plural = (count, noun, nouns = `${noun}s`) => `${number(count)} ${count === 1 ? noun : nouns}`;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const path = (replica) => (replica.folder ? `${replica.folder}/${replica.name}` : replica.name);

function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const [first, ...rest] = parts[0] ? parts : parts.slice(1);
  return [first, ...rest.map((part) => String(part).padStart(2, "0"))].join(":");
}

/** A path as text. Each part stands by itself: so one that is written from right to left does not turn the others. */
function pathText(text) {
  return h("span", { class: "path" }, ...text.split(/([\\/])/).map((part) => h("bdi", {}, part)));
}

/** Have screen readers say this. */
function announce(text) {
  by("announcer").textContent = text;
}

const toast = h("p", { class: "toast", "aria-hidden": "true" });
let toastTimer = 0;

/** Say this to everybody: for some seconds, on top of whatever is open. */
function say(text) {
  announce(text);
  toast.textContent = text;
  (document.querySelector("dialog[open]") ?? document.body).append(toast);
  toast.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => toast.classList.remove("shown"), 4000);
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

const factsAsked = new Map(); // "group/replica" -> promise of what the file's header says; they outlive a page

/** Add to a replica what its file says of itself, or the reason why it says nothing. */
async function addFacts(replica, address) {
  if (!factsAsked.has(address)) factsAsked.set(address, ask(`facts/${address}`).catch(() => ({})));
  const { width, height, ...facts } = await factsAsked.get(address);
  if (!replica.width) Object.assign(replica, { width, height }); // what idem has decoded itself counts more
  Object.assign(replica, facts);
}

// ── a group ──

const LISTED = 8; // files that go to the trash; more of them are folded up

function dimensions({ width, height }) {
  if (!width) return "";
  const megapixels = (width * height) / 1e6;
  const about = megapixels < 0.01 ? "" : ` · ${megapixels.toFixed(megapixels < 0.1 ? 2 : 1)} MP`;
  return `${width} × ${height}${about}`;
}

/** The rows of a card's table: what can differ between copies. "…" is not known yet, "—" does not exist. */
function rowsOf(replica, anyTaken, anyCamera) {
  const unknown = replica.reason ? "—" : "…";
  const rows = [
    ["Dimensions", dimensions(replica) || unknown],
    ["Size", size(replica.bytes)],
    ["Format", replica.format || unknown],
  ];
  if (replica.seconds) rows.push(["Length", duration(replica.seconds)]);
  rows.push(anyTaken ? ["Taken", replica.taken || "—"] : ["Modified", replica.modified || "—"]);
  if (anyCamera) rows.push(["Camera", replica.camera || "—"]);
  return rows;
}

/** A group on the page: a card for each copy, and the plan below them. */
class GroupCard {
  constructor(view, ordinal) {
    this.view = view; // the group as the server or the latest change has it
    this.ordinal = ordinal;
    this.replicas = view.replicas; // these stay, whatever is chosen: facts are added to them
    this.unsent = false; // there are changes that the server does not know of
    this.cards = this.replicas.map((replica, place) => this.makeCard(replica, place));
    this.title = h("h2", { id: `group-${view.number}` });
    this.skip = h("button", { type: "button", class: "quiet", onclick: () => this.toggleSkipped() });
    this.plan = h("div", { class: "plan" });
    this.cardBox = h("div", { class: "cards" }, ...this.cards.map((card) => card.node));
    const beCurrent = () => page.setCurrent(this);
    this.node = h("article", {
      class: "group", tabIndex: -1, "aria-labelledby": this.title.id, onfocusin: beCurrent, onpointerdown: beCurrent,
    }, h("header", {}, this.title, this.skip), this.cardBox, this.plan);
    this.update(view);
  }

  /** Where the server has pictures and facts of a copy. */
  address(place) {
    return `${this.view.number}/${place}`;
  }

  makeCard(replica, place) {
    const keep = h("input", {
      type: "checkbox", role: "switch", "aria-label": `Keep ${path(replica)}`, onchange: () => this.toggle(place),
    });
    const state = h("span", { class: "state", "aria-hidden": "true" });
    const digit = place < 9 ? h("kbd", { class: "digit", "aria-hidden": "true" }, String(place + 1)) : null;
    const table = h("dl", { class: "facts" });
    const name = this.makeRadio("name", place, replica.name);
    const folder = this.makeRadio("folder", place, replica.folder || "the top folder");
    const node = h(
      "div",
      { class: "card", role: "group", "aria-label": `Copy ${place + 1}: ${path(replica)}` },
      this.makeWell(replica, place),
      h("div", { class: "keep-row" }, h("label", { class: "switch" }, keep, h("span", {}, "Keep")), state, digit),
      h("p", { class: "name" }, replica.name),
      h("p", { class: "folder" }, replica.folder || "top folder"),
      replica.alike ? this.makeAlike(replica, place) : "",
      table,
      h("div", { class: "uses" }, name, folder),
    );
    return { node, keep, state, table, name: name.control, folder: folder.control };
  }

  /** Why it is no copy, which opens the viewer where they differ. */
  makeAlike(replica, place) {
    if (this.view.kind === "video") return h("p", { class: "alike" }, replica.alike);
    const open = () => {
      viewer.open(this, place);
      viewer.toggleDifference();
    };
    return h("button", { type: "button", class: "alike", title: "See where they differ", onclick: open }, replica.alike);
  }

  /** The thumbnail, which opens the viewer. */
  makeWell(replica, place) {
    const image = h("img", {
      loading: "lazy", decoding: "async", fetchPriority: "low", alt: "", src: `thumbnail/${this.address(place)}`,
    });
    const well = h("button", {
      type: "button", class: "well", "aria-label": `See ${replica.name} large`, onclick: () => viewer.open(this, place),
    }, image, this.view.kind === "video" ? h("span", { class: "play", "aria-hidden": "true" }) : null);
    image.addEventListener("load", () => well.classList.add("loaded"));
    image.addEventListener("error", () => {
      well.classList.add("broken");
      image.remove();
      well.append(h("span", { class: "broken-text" }, "cannot be shown"));
    });
    return well;
  }

  /** "Use this name" or "Use this folder" of one card. */
  makeRadio(what, place, spoken) {
    const input = h("input", {
      type: "radio", name: `${what}-${this.view.number}`, "aria-label": `Use this ${what}: ${spoken}`,
      onchange: () => this.choose({ [what]: place }),
    });
    return h("label", { class: "use" }, input, h("span", {}, `Use this ${what}`));
  }

  toggle(place) {
    if (place >= this.cards.length) return; // a digit beyond the last copy
    const { keep } = this.view;
    const kept = keep.includes(place) ? keep.filter((each) => each !== place) : [...keep, place].sort((a, b) => a - b);
    if (kept.length) {
      this.choose({ keep: kept });
      return;
    }
    const card = this.cards[place];
    card.keep.checked = true;
    viewer.refresh();
    card.node.classList.remove("refused");
    requestAnimationFrame(() => card.node.classList.add("refused"));
    say("At least one copy stays: switch another one on first, or skip the group.");
  }

  toggleSkipped() {
    this.choose({ skipped: !this.view.skipped });
  }

  /** Take the name or folder of the next copy that has another one. */
  cycle(what) {
    const count = this.replicas.length;
    const now = what === "name" ? this.view.named : this.view.placed;
    const after = this.replicas.map((_, step) => (now + step + 1) % count);
    const other = after.find((place) => this.replicas[place][what] !== this.replicas[now][what]);
    this.choose({ [what]: other ?? now });
  }

  /** Show a change at once, send it, and show what the server makes of it. */
  choose(change) {
    if (page.busy) return;
    Object.assign(this.view, change);
    if ("name" in change) this.view.named = change.name;
    if ("folder" in change) this.view.placed = change.folder;
    this.update(this.view);
    viewer.refresh();
    this.unsent = true;
    page.inTurn(() => this.send());
  }

  /** Send all changes that have not been sent. What is changed meanwhile counts more than the answer. */
  async send() {
    if (!this.unsent || !page.cards.includes(this)) return; // another page has come in between
    this.unsent = false;
    const { number: group, revision, keep, name, folder, skipped } = this.view;
    const answer = await ask(`choose?${page.query()}`, { group, revision, keep, name, folder, skipped });
    for (const view of [answer.group, ...answer.group.others]) { // others: as a name is taken now, or free again
      const card = page.cards.find((each) => each.view.number === view.number);
      if (card?.unsent) card.view.revision = view.revision;
      else card?.update(view);
    }
    if (this.unsent) return;
    Object.assign(page.data, answer.totals);
    page.showTotals();
    viewer.refresh();
    announce(this.summary());
  }

  summary() {
    const { view } = this;
    if (view.skipped) return "Skipped: nothing happens to this group.";
    const trash = view.trash.length ? `${plural(view.trash.length, "file")} to the trash` : "nothing to the trash";
    return `Keeps ${view.keeps}${view.target ? ` as ${view.target}` : ""}, ${trash}.`;
  }

  update(view) {
    this.view = view;
    const count = this.replicas.length;
    const copies = view.kind === "video" ? plural(count, "video") : plural(count, "copy", "copies");
    const frees = view.bytes ? `frees ${size(view.bytes)}` : "frees nothing";
    this.title.replaceChildren(
      h("span", { class: "ordinal" }, number(this.ordinal)),
      h("span", {}, this.replicas[view.keeper].name),
      h("span", { class: "frees" }, `${copies} · ${view.skipped ? "skipped" : frees}`),
    );
    this.skip.textContent = view.skipped ? "Bring back" : "Skip group";
    this.node.classList.toggle("skipped", view.skipped);
    const focused = document.activeElement;
    if (view.skipped && (this.cardBox.contains(focused) || this.plan.contains(focused))) this.skip.focus();
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
    this.showTables();
    this.showPlan();
  }

  /** What happens to the files: those that stay, then those that go. */
  showPlan() {
    const { view } = this;
    const keep = (...what) => h("p", { class: "keeps" }, h("strong", {}, "Keep"), h("span", {}, ...what));
    const listed = h("ul", {}, ...view.trash.map((each) => h("li", {}, pathText(each))));
    let trash = listed;
    if (!view.trash.length) {
      trash = h("span", {}, "nothing");
    } else if (view.trash.length > LISTED) {
      const open = Boolean(this.plan.querySelector("details")?.open);
      trash = h("details", { open }, h("summary", {}, plural(view.trash.length, "file")), listed);
    }
    this.plan.replaceChildren(
      keep(
        pathText(view.keeps),
        ...(view.target ? [" as ", pathText(view.target)] : []),
        h("span", { class: "why" }, ` (${view.why})`),
      ),
      ...view.stays.map((stay) => keep(pathText(stay))),
      h("div", { class: "trashes" }, h("strong", {}, "Trash"), trash),
      ...view.loses.map((loss) => h("p", { class: "loses" }, h("strong", {}, "Lost"), h("span", {}, loss))),
    );
  }

  showTables() {
    const anyTaken = this.replicas.some((replica) => replica.taken);
    const anyCamera = this.replicas.some((replica) => replica.camera);
    const tables = this.replicas.map((replica) => rowsOf(replica, anyTaken, anyCamera));
    const keeper = new Map(tables[this.view.keeper]);
    tables.forEach((rows, place) => {
      const shown = rows.map(([term, value]) => {
        const known = value !== "…" && keeper.get(term) !== "…";
        const differs = place !== this.view.keeper && known && value !== keeper.get(term);
        const more = differs ? h("span", { class: "unseen" }, " (differs from the kept copy)") : null;
        const cells = [h("dt", {}, term), h("dd", {}, h("span", {}, value), more)];
        return h("div", { class: differs ? "differs" : "" }, ...cells);
      });
      const { reason } = this.replicas[place];
      const why = reason ? h("div", { class: "differs reason" }, h("dd", {}, reason)) : "";
      this.cards[place].table.replaceChildren(...shown, why);
    });
  }

  /** Add to the tables what the files say of themselves. */
  async lookInside() {
    await Promise.all(this.replicas.map((replica, place) => addFacts(replica, this.address(place))));
    this.showTables();
  }
}

/** Looks inside the files of groups that are about to be seen. */
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
  view: "open", // or "skipped"
  data: null, // what the server said of this page
  cards: [],
  current: null, // the card that keys are for
  busy: false, // files are being moved
  queue: Promise.resolve(),

  /** Do one thing after the other; what fails is said. */
  inTurn(work) {
    this.queue = this.queue.then(work).catch((error) => {
      if (viewer.dialog.open) viewer.dialog.close();
      showProblem(error);
      return error instanceof Gone ? null : this.load("at", this.first()).catch(showProblem);
    });
  },

  /** When all that has been asked of the server is answered. */
  async settled() {
    for (let last = null; last !== this.queue; await last) last = this.queue;
  },

  /** Which groups are asked for, and in which order. */
  query: () => new URLSearchParams({ sort: by("sort").value, kind: by("kind").value, view: page.view }),
  first: () => page.cards[0]?.view.number,
  where: () => `page ${number(page.data.page)} of ${number(page.data.pages)}`,

  async load(step, at) {
    const query = this.query();
    query.set("step", step);
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
      if (start) await pause(0);
      const views = data.groups.slice(start, start + SHOWN_AT_ONCE);
      const made = views.map((view, place) => new GroupCard(view, data.first + start + place));
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
    const query = this.query();
    if (this.data.page > 1) query.set("at", this.first());
    history.replaceState(history.state, "", `#${query}`);
  },

  /** Take from the address what `remember` put there, and return the number of the first group. */
  recall() {
    const query = new URLSearchParams(location.hash.slice(1));
    for (const select of [by("sort"), by("kind")]) {
      select.value = query.get(select.id);
      if (select.selectedIndex < 0) select.selectedIndex = 0;
    }
    if (query.get("view") === "skipped") this.view = "skipped";
    return /^\d{1,9}$/.test(query.get("at") ?? "") ? query.get("at") : null;
  },

  /** The cards of the groups that Confirm would act on. */
  open: () => page.cards.filter((card) => !card.view.skipped),

  showTotals() {
    const { left, skipped, undo } = this.data;
    const open = this.open();
    const bytes = open.reduce((sum, card) => sum + card.view.bytes, 0);
    const trash = open.reduce((sum, card) => sum + card.view.trash.length, 0);
    by("totals").replaceChildren(
      h("strong", {}, plural(left.groups, "group")),
      ` ${this.view === "skipped" ? "skipped" : "left"} · ${plural(left.files, "file")} · `,
      h("strong", {}, size(left.bytes)),
      " to free in all",
    );
    const here = [
      h("span", { class: "wide" }, `${plural(open.length, "group")} here · `),
      `${plural(trash, "file")} to the trash · `,
      h("strong", {}, size(bytes)),
      " freed",
    ];
    by("page-totals").replaceChildren(...(open.length ? here : []));
    by("confirm").disabled = !open.length || document.body.classList.contains("gone");
    by("undo-last").hidden = !undo;
    by("view").hidden = this.view === "open" && !skipped;
    by("view").textContent = this.view === "open" ? `Skipped (${number(skipped)})` : "Back to the others";
  },

  showEmpty() {
    const { cards, data } = this;
    by("empty").hidden = cards.length > 0;
    document.body.classList.toggle("nothing-left", !cards.length);
    if (cards.length) return;
    const title = this.view === "skipped" ? "No group is skipped" : "Nothing is left to decide";
    const skipped = plural(data.skipped, "group is skipped", "groups are skipped");
    const more = this.view === "open" && data.skipped ? `${skipped}: see them with the button above. ` : "";
    by("empty").replaceChildren(
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

  /** The current card: from the first key on there is one, unless the page is empty. */
  here() {
    if (!this.current && this.cards.length) this.setCurrent(this.cards[0]);
    return this.current;
  },

  /** Go to the group so many further down. */
  go(step) {
    const place = this.cards.indexOf(this.here()) + step;
    const card = this.cards[clamp(place, 0, this.cards.length - 1)];
    if (!card) return;
    this.setCurrent(card);
    card.node.focus({ preventScroll: true });
    card.node.scrollIntoView({ block: card.node.offsetHeight > innerHeight - 160 ? "start" : "nearest" });
  },

  /** Turn to the page before or after this one; its first group gets the focus. */
  turn(step) {
    if (this.busy || by(step === "after" ? "next" : "previous").disabled) return;
    clearProblem();
    const at = step === "after" ? this.cards.at(-1)?.view.number : this.first();
    this.inTurn(async () => {
      await this.load(step, at);
      this.cards[0]?.node.focus({ preventScroll: true });
      window.scrollTo(0, 0);
      announce(this.where());
    });
  },

  /** Show the groups that are asked for now, from the first one on. */
  filter() {
    this.inTurn(async () => {
      await this.load("at", null);
      announce(`${by("totals").textContent}, ${this.where()}`);
    });
  },
};

// ── confirming, and what came of it ──

const TIME_TO_READ = 400; // ms
const PROGRESS_EVERY = 400; // ms

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
      ["Groups whose kept file lacks something", number(sum((view) => (view.loses.length ? 1 : 0)))],
      ["Space freed, once you empty the trash", size(sum((view) => view.bytes))],
    ];
    this.show("Confirm this page", rows);
    this.showProgress(null);
    by("confirm-yes").disabled = true; // an Enter that was held or pressed twice must not be taken for a yes
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (!this.dialog.open || page.busy) return;
      by("confirm-yes").disabled = false;
      by("confirm-yes").focus({ preventScroll: true });
    }, TIME_TO_READ);
  },

  /** Show the dialog; the numbers in it stay unless new ones are given. */
  show(title, rows = null) {
    const shown = rows?.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value)));
    if (shown) by("confirm-numbers").replaceChildren(...shown);
    by("confirm-title").textContent = title;
    if (!this.dialog.open) this.dialog.showModal();
    by("confirm-title").focus();
    this.dialog.scrollTop = 0;
  },

  /** How many groups are done, of how many; with null, the buttons are there instead. */
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
    if (page.busy) return;
    if (!page.data?.undo) {
      say("There is nothing to undo.");
      return;
    }
    this.show("Putting files back…", []);
    await this.moving(() => ask("undo", {}), [0, 0], null);
  },

  /** Have files moved, show how far it is, then what came of it. */
  async moving(work, start, first) {
    page.busy = true;
    this.showProgress(start);
    const timer = setInterval(async () => {
      const { moving } = await ask("progress").catch(() => ({}));
      if (page.busy && moving) this.showProgress(moving);
    }, PROGRESS_EVERY);
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
    this.show("Moving files…", []);
    await this.moving(async () => {
      while ((await ask("progress")).moving) await pause(PROGRESS_EVERY);
    }, moving, null);
  },
};

/** What was trashed, renamed, put back and refused. */
function showResult(result, fresh) {
  const panel = by("result");
  panel.hidden = !result;
  if (!result) return;
  const { trashed, renamed, companions, returned, refused, error, lines } = result;
  const parts = [
    trashed ? `${plural(trashed, "file")} moved to the trash` : "",
    renamed ? `${number(renamed)} renamed or moved` : "",
    companions ? `${plural(companions, "companion file")} went along` : "",
    returned ? `${plural(returned, "file")} put back` : "",
    refused.length ? `${number(refused.length)} refused` : "",
  ].filter(Boolean);
  const title = parts.length ? `${parts.join(", ")}.` : error ? "Nothing was moved." : "Nothing had to be moved.";
  const freed = result.freed ? `${size(result.freed)} will be free once you empty the trash folder.` : "";
  const undo = h("button", { type: "button", id: "undo", onclick: () => confirmation.undo() });
  undo.textContent = returned ? "Undo the page before" : "Undo";
  const hide = h("button", { type: "button", class: "quiet", "aria-label": "Hide this" }, "×");
  hide.addEventListener("click", () => {
    panel.hidden = true;
    by("main").focus();
  });
  const reasons = refused.map((each) => h("li", {}, pathText(each.path), ` ${each.reason}`));
  const moves = lines.map((line) => h("li", {}, line));
  panel.classList.toggle("problem", Boolean(error || refused.length));
  panel.replaceChildren(
    h("div", { class: "result-head" },
      h("div", {}, h("h2", {}, title), h("p", {}, freed)),
      h("div", { class: "buttons" }, result.undo ? undo : "", hide)),
    error ? h("p", { class: "error" }, error) : "",
    refused.length ? h("ul", { class: "refused-list" }, ...reasons) : "",
    lines.length ? h("details", {}, h("summary", {}, "All moves"), h("ul", { class: "moves" }, ...moves)) : "",
  );
  if (fresh) announce(`${title} ${freed}`);
}

async function finish() {
  await page.settled();
  if (page.busy) return;
  for (const image of document.images) if (!image.complete) image.removeAttribute("src"); // nobody will answer
  try {
    const { lines } = await ask("done", {});
    const said = [...lines.split("\n").filter((line) => !/^─+$/.test(line)), "You can close this tab."];
    document.body.classList.add("over");
    by("main").replaceChildren(
      h("section", { class: "panel empty" }, h("h2", {}, "idem has ended"), ...said.map((line) => h("p", {}, line))),
    );
    by("main").focus();
  } catch (error) {
    showProblem(error);
  }
}

// ── zoom and pan: which part of the pictures the stage shows ──

const LARGEST_PIXEL = 12; // a pixel of the picture fills at most so many of the screen
const ZOOM_STEP = 1.5;
const PIXELS = "pixels"; // the zoom at which a pixel of the picture is one of the screen
const stage = by("stage");

const viewport = {
  layers: [], // pictures on top of each other: { node, replica, sharp }
  shown: null, // the one that zoom and pan are about; none while a video is shown
  zoom: 1, // relative to the whole picture
  centre: { x: 0.5, y: 0.5 }, // what is in the middle of the stage, as a share of the picture

  show(layers, shown) {
    Object.assign(this, { layers, shown });
    this.arrange();
  },

  /** The size at which the whole picture fits the stage. */
  fit({ node, replica }) {
    const width = replica.width || node.naturalWidth || 1;
    const height = replica.height || node.naturalHeight || 1;
    const scale = Math.min(stage.clientWidth / width, stage.clientHeight / height);
    return { width: width * scale, height: height * scale, scale };
  },

  /** Put all layers where zoom and centre say: the same part of the picture in the same place. */
  arrange() {
    if (!this.shown) return;
    const shown = this.fit(this.shown);
    this.centre.x = this.within(this.centre.x, stage.clientWidth / (shown.width * this.zoom));
    this.centre.y = this.within(this.centre.y, stage.clientHeight / (shown.height * this.zoom));
    for (const layer of this.layers) {
      const fit = this.fit(layer);
      const [width, height] = [fit.width * this.zoom, fit.height * this.zoom];
      const left = stage.clientWidth / 2 - this.centre.x * width;
      const top = stage.clientHeight / 2 - this.centre.y * height;
      layer.node.style.width = `${width}px`;
      layer.node.style.height = `${height}px`;
      layer.node.style.transform = `translate(${left}px, ${top}px)`;
      const pixel = fit.scale * this.zoom * devicePixelRatio;
      layer.node.classList.toggle("coarse", pixel >= 3 && Boolean(layer.sharp));
    }
    by("zoom").textContent = `${Math.round(shown.scale * this.zoom * devicePixelRatio * 100)} %`;
    stage.classList.toggle("movable", this.zoom > 1);
  },

  /** The centre along one side, of which the stage shows this share: so that no room is left at either end. */
  within: (centre, share) => (share >= 1 ? 0.5 : clamp(centre, share / 2, 1 - share / 2)),

  /** Zoom, with the point of the picture under this one of the stage staying there. PIXELS: 1:1 on the screen. */
  zoomTo(zoom, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    if (!this.shown) return;
    const fit = this.fit(this.shown);
    const pixels = 1 / (fit.scale * devicePixelRatio);
    const wanted = zoom === PIXELS ? pixels : zoom;
    const next = clamp(wanted, Math.min(1, pixels), Math.max(1, pixels * LARGEST_PIXEL));
    const [dx, dy] = [x - stage.clientWidth / 2, y - stage.clientHeight / 2];
    this.centre.x += dx / (fit.width * this.zoom) - dx / (fit.width * next);
    this.centre.y += dy / (fit.height * this.zoom) - dy / (fit.height * next);
    this.zoom = next;
    this.arrange();
  },

  zoomBy(factor, x, y) {
    this.zoomTo(this.zoom * factor, x, y);
  },

  move(dx, dy) {
    if (!this.shown) return;
    const fit = this.fit(this.shown);
    this.centre.x -= dx / (fit.width * this.zoom);
    this.centre.y -= dy / (fit.height * this.zoom);
    this.arrange();
  },
};

/** Where on the stage a point of the window is. */
function onStage({ x, y }) {
  const box = stage.getBoundingClientRect();
  return [x - box.left, y - box.top];
}

const pointers = new Map(); // those that are pressed, and where

const gestures = {
  wheel(event) {
    if (!viewport.shown) return;
    event.preventDefault();
    const turned = event.deltaY * (event.deltaMode === 1 ? 30 : 1); // lines, in px
    viewport.zoomBy(1.0025 ** (-turned * (event.ctrlKey ? 4 : 1)), ...onStage(event)); // ctrl: a pinch on a touchpad
  },

  dblclick(event) {
    viewport.zoomTo(viewport.zoom === 1 ? PIXELS : 1, ...onStage(event));
  },

  pointerdown(event) {
    if (!viewport.shown || event.button) return;
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.x, y: event.y });
  },

  pointermove(event) {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.x, y: event.y };
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) pinch(before, now, other);
    else viewport.move(now.x - before.x, now.y - before.y);
    pointers.set(event.pointerId, now);
  },

  pointerup: (event) => pointers.delete(event.pointerId),
  pointercancel: (event) => pointers.delete(event.pointerId),
};

/** One of two fingers has moved: what was under both stays under them. */
function pinch(before, now, other) {
  const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y) || 1;
  viewport.move((now.x - before.x) / 2, (now.y - before.y) / 2);
  const middle = { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 };
  viewport.zoomBy(distance(now, other) / distance(before, other), ...onStage(middle));
}

// ── layers: pictures, videos and differences on the stage ──

class Layer {
  message = ""; // what is said while it is shown

  constructor(replica, address, node) {
    Object.assign(this, { replica, address, node });
  }

  say(message) {
    this.message = message;
    viewer.showMessage();
  }
}

class PictureLayer extends Layer {
  full = null; // all pixels, once they are asked for
  sharp = false; // they are shown

  constructor(replica, address) {
    const alt = `${replica.name}, large`;
    super(replica, address, h("img", { class: "layer", alt, draggable: false, src: `thumbnail/${address}` }));
    this.node.addEventListener("load", () => viewport.arrange());
  }

  /** Exchange the thumbnail for all pixels, once they are there and decoded. */
  async sharpen() {
    if (this.full) return;
    this.message = "loading all pixels…";
    this.full = h("img", { src: `preview/${this.address}` });
    try {
      await this.full.decode();
      this.sharp = true;
      this.node.src = this.full.src;
      this.say("");
    } catch {
      this.say("this file cannot be shown");
    }
  }
}

class VideoLayer extends Layer {
  started = false;
  converted = false;
  seconds = 0; // where to go on, once it can play

  constructor(replica, address) {
    const how = { controls: true, preload: "metadata", playsInline: true, poster: `thumbnail/${address}` };
    super(replica, address, h("video", { class: "layer", ...how }));
    this.node.addEventListener("error", () => this.convert());
    this.node.addEventListener("loadedmetadata", () => {
      if (this.seconds) this.node.currentTime = this.seconds;
      this.say("");
    });
  }

  /** Load it as it is if browsers can play that. */
  async start() {
    if (this.started) return;
    this.started = true;
    await addFacts(this.replica, this.address);
    if (this.replica.plays) this.node.src = `video/${this.address}`;
    else this.convert();
  }

  /** Have the server convert the video, and show it when that is done; nothing when the viewer has been closed. */
  async convert() {
    if (this.converted) {
      this.say("this file cannot be shown");
      return;
    }
    this.say("converting for the browser; a long video takes a while…");
    let answer = {};
    while (!answer.ready && this.node.isConnected) {
      answer = await ask(`conversion/${this.address}`).catch((error) => ({ ready: true, reason: error.message }));
      if (!answer.ready) await pause(PROGRESS_EVERY);
    }
    this.converted = true;
    if (answer.reason) this.say(`this file cannot be shown: ${answer.reason}`);
    else if (this.node.isConnected) this.node.src = `converted/${this.address}`;
  }

  /** Go on where this other copy is. */
  takeOver({ node }) {
    this.seconds = node.currentTime;
    node.pause();
    if (this.node.readyState >= HTMLMediaElement.HAVE_METADATA) this.node.currentTime = this.seconds;
  }

  playOrPause() {
    if (this.node.paused) this.node.play().catch(() => {}); // what cannot be played is said already
    else this.node.pause();
  }
}

/** What differs between two copies, made visible by the server; it lies on the first of them. */
class DifferenceLayer extends Layer {
  message = "comparing…";

  constructor(card, one, other) {
    const alt = `Difference between copy ${one + 1} and copy ${other + 1}`;
    const node = h("img", { class: "layer on over", alt, draggable: false });
    super(card.replicas[one], `${card.address(one)}/${other}`, node);
    this.copies = `copy ${one + 1} against ${other + 1}`;
  }

  /** Load the picture. The message then says what it shows, or why there is none. */
  async load() {
    try {
      const response = await fetch(`difference/${this.address}`);
      if (!response.ok) throw new Error((await response.json()).error);
      const note = JSON.parse(response.headers.get("Idem-Note"));
      this.node.src = URL.createObjectURL(await response.blob());
      await this.node.decode().finally(() => URL.revokeObjectURL(this.node.src));
      this.message = this.copies + differenceText(note);
    } catch (error) {
      this.message = `no difference can be shown: ${error.message}`;
    }
  }
}

function differenceText(note) {
  const size = `compared at ${note.width} × ${note.height}`;
  if (!note.largest) return `: no difference, ${size}`;
  const seen = note.reason ? `: ${note.reason}` : "";
  const percent = (note.share * 100).toFixed(note.share < 0.01 ? 2 : 1);
  const share = note.share === 0 ? "no pixel" : `${percent} % of the pixels`;
  const levels = `at most ${note.largest} of 255 levels apart, ${share} by ${note.visible} or more`;
  return `${seen} · ${note.gain} times brighter: ${levels}; ${size}`;
}

// ── the viewer: the copies of one group, large and in the same place ──

const viewer = {
  dialog: by("viewer"),
  card: null,
  opener: null, // what had the focus
  place: 0, // of the copy that is shown
  layers: [], // one for each copy
  difference: null, // what lies on top, if it is asked for

  get layer() {
    return this.layers[this.place];
  },

  get isVideo() {
    return this.card?.view.kind === "video";
  },

  open(card, place) {
    page.setCurrent(card);
    this.card = card;
    this.opener = document.activeElement;
    this.place = place;
    const Layer = this.isVideo ? VideoLayer : PictureLayer;
    this.layers = card.replicas.map((replica, each) => new Layer(replica, card.address(each)));
    stage.replaceChildren(...this.layers.map((layer) => layer.node));
    this.dialog.classList.toggle("is-video", this.isVideo);
    by("strip").replaceChildren(...card.replicas.map((replica, each) => h(
      "button",
      { type: "button", "aria-label": `Copy ${each + 1}: ${path(replica)}`, onclick: () => this.flipTo(each) },
      h("img", { src: `thumbnail/${card.address(each)}`, alt: "" }),
      h("span", {}, String(each + 1)),
    )));
    viewport.zoom = 1;
    this.dialog.showModal();
    history.pushState({ viewer: true }, ""); // so that Back, which phones have a gesture for, closes it
    stage.focus();
    this.flipTo(place);
    card.lookInside().then(() => viewport.arrange()); // dimensions may have become known
  },

  flip(step) {
    const count = this.layers.length;
    this.flipTo((this.place + step + count) % count);
  },

  flipTo(place) {
    const before = this.layer;
    this.place = place;
    this.dropDifference();
    for (const each of this.layers) each.node.classList.toggle("on", each === this.layer);
    if (this.isVideo) {
      if (before !== this.layer) this.layer.takeOver(before);
      this.layer.start();
    } else {
      for (const step of [0, 1, -1]) this.layers.at((place + step) % this.layers.length).sharpen();
    }
    this.showLayers();
  },

  showLayers() {
    const layers = this.difference ? [...this.layers, this.difference] : this.layers;
    if (this.isVideo) viewport.show([], null);
    else viewport.show(layers, this.layer);
    this.refresh();
  },

  /** What is said about the copy that is shown. */
  refresh() {
    if (!this.dialog.open) return;
    const { view, replicas } = this.card;
    const { name, folder, width, height, bytes } = replicas[this.place];
    const place = `${this.place + 1} of ${replicas.length}`;
    const about = [place, folder || "top folder", width ? `${width} × ${height}` : "", size(bytes)];
    by("viewer-name").textContent = by("viewer-name").title = name;
    by("viewer-about").textContent = about.filter(Boolean).join(" · ");
    by("viewer-keep").checked = view.keep.includes(this.place);
    by("difference").setAttribute("aria-pressed", String(Boolean(this.difference)));
    [...by("strip").children].forEach((button, each) => {
      button.setAttribute("aria-pressed", String(each === this.place));
      button.classList.toggle("kept", view.keep.includes(each));
    });
    this.showMessage();
  },

  showMessage() {
    by("viewer-message").textContent = (this.difference ?? this.layer)?.message ?? "";
  },

  /** Show what differs from the kept copy, or from the next one where that is shown; or show it no more. */
  async toggleDifference() {
    if (this.isVideo) return;
    if (this.difference) {
      this.dropDifference();
      this.showLayers();
      return;
    }
    const { keeper } = this.card.view;
    const other = this.place === keeper ? (this.place + 1) % this.layers.length : keeper;
    const difference = new DifferenceLayer(this.card, this.place, other);
    this.difference = difference;
    this.refresh();
    await difference.load();
    if (this.difference !== difference) return; // it is not asked for any more
    if (difference.node.src) stage.append(difference.node);
    this.showLayers();
  },

  dropDifference() {
    this.difference?.node.remove();
    this.difference = null;
  },

  /** However it was closed: by its button, by a key, by Back. */
  closed() {
    for (const { node, full } of this.layers) {
      node.pause?.();
      if (full) full.src = ""; // nobody waits for it
    }
    this.layers = [];
    this.difference = null;
    viewport.show([], null);
    stage.replaceChildren();
    by("strip").replaceChildren();
    (this.opener?.isConnected ? this.opener : page.here()?.node)?.focus({ preventScroll: true });
    if (history.state?.viewer) history.back();
  },
};

// ── keys ──

/** What `act` does with the current group; with none or a skipped one, the key is left to the browser. */
const onGroup = (act) => (key) => {
  const card = page.here();
  return card && !card.view.skipped ? act(card, key) : false;
};

const DIGITS = "1 2 3 4 5 6 7 8 9";
const ARROWS = "ArrowLeft ArrowRight";
const flip = (key) => viewer.flip(key === "ArrowLeft" ? -1 : 1);
const showHelp = () => by("help").showModal();

// From these two tables follow what keys do, the help, and what the buttons do that stand for keys.
// Columns: keys; words in the help, if it is there; action, which is told the key and returns false if there is none;
// buttons in the order of their keys.
const PAGE_KEYS = [
  ["ArrowDown j", "next group", () => page.go(1)],
  ["ArrowUp k", "previous group", () => page.go(-1)],
  [DIGITS, "keep that copy, or not", onGroup((card, key) => card.toggle(key - 1))],
  ["n", "the name of the next copy", onGroup((card) => card.cycle("name"))],
  ["f", "the folder of the next copy", onGroup((card) => card.cycle("folder"))],
  ["s", "skip the group, or bring it back", () => page.here()?.toggleSkipped()],
  ["Space", "see it large", onGroup((card) => viewer.open(card, card.view.keeper))],
  [ARROWS, "previous, next page", (key) => page.turn(key === "ArrowLeft" ? "before" : "after"), "previous next"],
  ["Enter", "confirm this page", () => confirmation.open(), "confirm"],
  ["u", "undo the last page", () => confirmation.undo(), "undo-last"],
  ["?", "this list", showHelp, "help-button"],
];
const VIEWER_KEYS = [
  [ARROWS, "flip between the copies, in place", flip, "viewer-previous viewer-next"],
  ["+ -", "larger, smaller", (key) => viewport.zoomBy(key === "+" ? ZOOM_STEP : 1 / ZOOM_STEP), "zoom-in zoom-out"],
  ["0", "the whole picture", () => viewport.zoomTo(1), "zoom-fit"],
  ["z", "1:1, a pixel for a pixel", () => viewport.zoomTo(PIXELS), "zoom-one"],
  ["d", "the difference to the kept copy", () => viewer.toggleDifference(), "difference"],
  [DIGITS, "keep that copy, or not", (key) => viewer.card.toggle(key - 1)],
  ["p", "play or pause a video (one that has the focus has keys of its own)", () => viewer.layer.playOrPause?.()],
  ["Space Escape", "back to the page", () => viewer.dialog.close()],
  ["?", "", showHelp],
];
const KEY_LABELS = { ArrowDown: "↓", ArrowUp: "↑", ArrowLeft: "←", ArrowRight: "→", Escape: "Esc", "-": "−" };

/** List the keys of a table in the help, and have its buttons do what their keys do. */
function connect(table, list) {
  for (const [names, help, act, buttons] of table) {
    const keys = names.split(" ");
    const labels = keys.map((key) => KEY_LABELS[key] ?? key);
    const [first, ...rest] = labels.map((label) => h("kbd", {}, label));
    const listed = keys.length > 2 ? [first, " … ", rest.at(-1)] : [first, ...rest.flatMap((each) => [" ", each])];
    if (help) list.append(h("div", {}, h("dt", {}, ...listed), h("dd", {}, help)));
    buttons?.split(" ").forEach((id, place) => {
      const button = by(id);
      button.addEventListener("click", () => act(keys[place]));
      if (button.title) button.title += ` (${labels[place]})`;
    });
  }
}

/** Whether the focused element has its own use for this key. */
function isTaken(event) {
  const { target, key } = event;
  if (target.matches("select, textarea, input[type=text]")) return true;
  if (target.matches("input[type=radio], video")) return key === " " || key.startsWith("Arrow");
  if (target.matches("input")) return key === " ";
  return target.matches("button, a, summary") && (key === " " || key === "Enter");
}

document.addEventListener("keydown", (event) => {
  const { key, repeat } = event;
  if (repeat && key === "Enter") event.preventDefault(); // held down, it would press one button after the other
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || isTaken(event)) return;
  if (document.body.classList.contains("over") || by("help").open || confirmation.dialog.open) return;
  if (repeat && !key.startsWith("Arrow") && !"jk+-".includes(key)) return;
  if (key === "Escape") return; // the browser closes dialogs itself
  const isOpen = viewer.dialog.open;
  if (!isOpen) page.here(); // any key shows which group is the current one
  const name = { " ": "Space", "=": "+" }[key] ?? key; // "=" is "+" without Shift
  const row = (isOpen ? VIEWER_KEYS : PAGE_KEYS).find(([keys]) => keys.split(" ").includes(name));
  if (row && row[2](name) !== false) event.preventDefault();
});

// ── start ──

function listen() {
  connect(PAGE_KEYS, by("page-keys"));
  connect(VIEWER_KEYS, by("viewer-keys"));
  for (const select of [by("sort"), by("kind")]) {
    select.addEventListener("change", () => {
      if (!select.matches(":focus-visible")) select.blur(); // chosen with the mouse: letters are for the page again
      page.filter();
    });
  }
  const clicked = (id, act) => by(id).addEventListener("click", act);
  clicked("view", () => {
    page.view = page.view === "open" ? "skipped" : "open";
    page.filter();
  });
  clicked("confirm-no", () => confirmation.dialog.close());
  clicked("confirm-yes", () => confirmation.run());
  clicked("done", finish);
  clicked("help-close", () => by("help").close());
  clicked("viewer-close", () => viewer.dialog.close());
  by("viewer-keep").addEventListener("change", () => viewer.card.toggle(viewer.place));
  confirmation.dialog.addEventListener("cancel", (event) => page.busy && event.preventDefault());
  viewer.dialog.addEventListener("close", () => viewer.closed());
  addEventListener("popstate", () => viewer.dialog.open && viewer.dialog.close());
  addEventListener("resize", () => viewport.arrange());
  for (const [name, act] of Object.entries(gestures)) stage.addEventListener(name, act, { passive: false });
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
