// The explorer of items. Texts of models and corpora reach the page by textContent only; nothing is ever parsed as HTML.
"use strict";
(() => {
  const ROW = 28, PRELOADED = 10;
  const by = (id) => document.getElementById(id);
  const blocks = document.querySelectorAll("script[data-block]");
  if (!blocks.length) return;

  // Raw deflate by hand, for browsers without DecompressionStream (RFC 1951).
  function inflate(bytes) {
    let at = 0, bit = 0, held = 0, out = new Uint8Array(bytes.length * 4), n = 0;
    const need = (k) => { while (bit < k) { held |= bytes[at++] << bit; bit += 8; } };
    const take = (k) => { if (!k) return 0; need(k); const v = held & ((1 << k) - 1); held >>>= k; bit -= k; return v; };
    const push = (v) => { if (n === out.length) { const more = new Uint8Array(n * 2); more.set(out); out = more; } out[n++] = v; };
    function tree(lengths) {
      const counts = new Uint16Array(16), offsets = new Uint16Array(16), symbols = new Uint16Array(lengths.length);
      for (const l of lengths) counts[l]++;
      counts[0] = 0;
      for (let i = 1; i < 15; i++) offsets[i + 1] = offsets[i] + counts[i];
      lengths.forEach((l, s) => { if (l) symbols[offsets[l]++] = s; });
      return { counts, symbols };
    }
    function symbol(of) {
      let code = 0, first = 0, index = 0;
      for (let l = 1; l < 16; l++) {
        code |= take(1);
        const count = of.counts[l];
        if (code - count < first) return of.symbols[index + code - first];
        index += count; first = (first + count) << 1; code <<= 1;
      }
      throw new Error("broken data");
    }
    const LENGTH = [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258];
    const EXTRA = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
    const FAR = [1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577];
    const ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    for (let last = 0; !last;) {
      last = take(1);
      const kind = take(2);
      if (kind === 0) {
        held = bit = 0;
        const size = bytes[at] | (bytes[at + 1] << 8);
        at += 4;
        for (let i = 0; i < size; i++) push(bytes[at++]);
        continue;
      }
      let literals, distances;
      if (kind === 1) {
        literals = tree(Array.from({ length: 288 }, (_, i) => (i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8)));
        distances = tree(new Array(30).fill(5));
      } else {
        const nl = take(5) + 257, nd = take(5) + 1, nc = take(4) + 4, code = new Array(19).fill(0), lengths = [];
        for (let i = 0; i < nc; i++) code[ORDER[i]] = take(3);
        const of = tree(code);
        while (lengths.length < nl + nd) {
          const s = symbol(of);
          if (s < 16) lengths.push(s);
          else {
            const v = s === 16 ? lengths[lengths.length - 1] : 0;
            let k = s === 16 ? 3 + take(2) : s === 17 ? 3 + take(3) : 11 + take(7);
            while (k--) lengths.push(v);
          }
        }
        literals = tree(lengths.slice(0, nl));
        distances = tree(lengths.slice(nl));
      }
      for (;;) {
        const s = symbol(literals);
        if (s === 256) break;
        if (s < 256) { push(s); continue; }
        let k = LENGTH[s - 257] + take(EXTRA[s - 257]);
        const d = symbol(distances), far = FAR[d] + take(d < 4 ? 0 : (d >> 1) - 1);
        while (k--) push(out[n - far]);
      }
    }
    return out.subarray(0, n);
  }

  async function read(block) {
    const packed = Uint8Array.from(atob(block.textContent.trim()), (c) => c.charCodeAt(0));
    let bytes;
    try {
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
      bytes = await new Response(stream).arrayBuffer();
    } catch { bytes = inflate(packed); }
    return JSON.parse(new TextDecoder().decode(bytes));
  }

  const loaded = new Map();
  function chunk(number) {
    if (!loaded.has(number)) loaded.set(number, read(blocks[number + 1]));
    return loaded.get(number);
  }

  const element = (tag, text, name) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  };

  let index, shown = [], selected = 0, asked = 0;
  const list = by("list"), space = by("space"), search = by("search"), dialog = by("item");
  const filters = ["task", "outcome", "audit", "slice"];

  async function start() {
    index = await read(blocks[0]);
    for (const name of filters) {
      const options = index[name].names, select = by(`filter-${name}`);
      options.forEach((option, code) => { const one = element("option", option); one.value = code; select.append(one); });
      if (options.length < 2 && name !== "outcome") select.parentElement.hidden = true;
      select.addEventListener("change", filter);
    }
    let timer;
    search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(filter, 150); });
    list.addEventListener("scroll", draw, { passive: true });
    list.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) { selected = Number(row.dataset.place); draw(); open(); }
    });
    list.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
      const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -shown.length, End: shown.length };
      if (event.key in moves) { event.preventDefault(); move(moves[event.key]); }
      else if (event.key === "Enter") { event.preventDefault(); open(); }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName) && !dialog.open) {
        event.preventDefault();
        search.focus();
      }
    });
    dialog.addEventListener("keydown", (event) => {
      if (event.target.tagName === "PRE") return;
      if (event.key === "ArrowRight") { move(1); open(); }
      if (event.key === "ArrowLeft") { move(-1); open(); }
    });
    by("previous").addEventListener("click", () => { move(-1); open(); });
    by("next").addEventListener("click", () => { move(1); open(); });
    by("close").addEventListener("click", () => dialog.close());
    new ResizeObserver(draw).observe(list);
    by("explorer").hidden = false;
    await filter();
  }

  async function filter() {
    const mine = ++asked, wanted = filters.map((name) => by(`filter-${name}`).value);
    const words = search.value.trim().toLowerCase();
    const found = [];
    for (let i = 0; i < index.n; i++) {
      if (filters.every((name, k) => wanted[k] === "" || index[name].codes[i] === Number(wanted[k]))) found.push(i);
    }
    if (!words) { show(found, false); return; }
    const matching = [];
    for (let from = 0; from < found.length;) {
      const number = Math.floor(found[from] / index.chunk), texts = await chunk(number);
      if (mine !== asked) return;
      for (; from < found.length && Math.floor(found[from] / index.chunk) === number; from++) {
        const one = texts[found[from] % index.chunk];
        one.lower ??= [...one.slice(0, 4), index.hash[found[from]]].join("\n").toLowerCase();
        if (one.lower.includes(words)) matching.push(found[from]);
      }
      if (number % PRELOADED === 0) { show(matching, true); await new Promise((done) => setTimeout(done)); }
      if (mine !== asked) return;
    }
    show(matching, false);
  }

  function show(found, searching) {
    shown = found;
    selected = 0;
    list.scrollTop = 0;
    space.style.height = `${Math.max(1, shown.length) * ROW}px`;
    by("count").textContent = `${shown.length.toLocaleString("en")} of ${index.n.toLocaleString("en")} items${searching ? " …" : ""}`;
    draw();
  }

  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 5);
    const rows = [];
    for (let place = first; place < last; place++) {
      const i = shown[place], row = element("div", undefined, "row");
      const outcome = index.outcome.names[index.outcome.codes[i]], audit = index.audit.names[index.audit.codes[i]];
      row.dataset.place = place;
      row.id = `row-${place}`;
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", place === selected);
      row.setAttribute("aria-posinset", place + 1);
      row.setAttribute("aria-setsize", shown.length);
      row.style.top = `${place * ROW}px`;
      row.append(
        element("span", outcome, outcome.replace(" ", "-")), element("span", index.task.names[index.task.codes[i]]),
        element("span", audit === "not audited" ? "" : audit, audit), element("span", `${index.a[i]} → ${index.b[i]}`),
        element("span", index.preview[i], "soft"),
      );
      rows.push(row);
    }
    space.replaceChildren(...rows);
    list.setAttribute("aria-activedescendant", shown.length ? `row-${selected}` : "");
  }

  function move(by_how_many) {
    if (!shown.length) return;
    selected = Math.min(shown.length - 1, Math.max(0, selected + by_how_many));
    const top = selected * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    draw();
  }

  function part(title, ...content) {
    const made = element("div"), pre = element("pre");
    pre.tabIndex = 0;
    pre.append(...content);
    made.append(element("h3", title), pre);
    return made;
  }

  // Pieces of a text by kind: plain, shared with the other text, within an edited copy, left out.
  const MARKS = ["span", "mark", "u"];
  const marked = (pieces) => pieces.map(([kind, text]) => (MARKS[kind] ? element(MARKS[kind], text) : element("i", `\n${text}\n`, "soft")));

  async function open() {
    if (!shown.length) return;
    const i = shown[selected], place = selected;
    const [prompt, target, a, b, leak, words, slice] = (await chunk(Math.floor(i / index.chunk)))[i % index.chunk];
    if (place !== selected) return;
    const body = [];
    const outcome = index.outcome.names[index.outcome.codes[i]], audit = index.audit.names[index.audit.codes[i]];
    by("item-title").textContent = `${index.task.names[index.task.codes[i]]}, item ${index.hash[i].slice(0, 12)}`;
    body.push(element("p", `${outcome}; A ${index.a[i]}, B ${index.b[i]}${audit === "not audited" ? "" : `; ${audit}`}${slice ? `; ${index.slice.title} ${slice}` : ""}`, "soft"));
    // Fields of the item stand in for a prompt that is not known: once is enough.
    if (prompt && !(leak && index.asked === "Item")) body.push(part(index.asked, prompt));
    if (leak) {
      const [where, text, fields] = leak, pair = element("div", undefined, "pair");
      const item = fields.flatMap(([name, pieces], k) => [element("b", `${k ? "\n" : ""}${name}: `), ...marked(pieces)]);
      if (item.length) pair.append(part("Benchmark item", ...item));
      pair.append(part(`Training text: ${where}`, ...marked(text)));
      body.push(pair, element("p", "Marked is what both texts share, word by word; underlined is the rest of an edited copy.", "soft"));
    }
    const answers = element("div", undefined, "pair");
    answers.append(part(`${index.names[0]} (A), score ${index.a[i]}`, a || "—"), part(`${index.names[1]} (B), score ${index.b[i]}`, b || "—"));
    body.push(answers);
    if (target) body.push(part("Right answer", target));
    for (const [title, said] of words || []) body.push(part(title, said));
    by("item-body").replaceChildren(...body);
    by("item-body").scrollTop = 0;
    if (!dialog.open) dialog.showModal();
  }

  start().catch((error) => { by("trouble").textContent = `The items cannot be shown: ${error.message}`; by("trouble").hidden = false; });
})();
