"use strict";
// Nothing here is HTML made of text: whatever comes from data becomes a text node.
const SAE_FEATURES = (() => {
  const $ = (id) => document.getElementById(id);
  const loaded = new Map();
  let data = null, sae = 0, chosen = null, order = [];

  // -- elements --------------------------------------------------------------------------------

  function make(tag, attributes = {}, ...children) {
    const isDrawn = ["svg", "rect", "line", "title"].includes(tag);
    const element = isDrawn ? document.createElementNS("http://www.w3.org/2000/svg", tag)
                            : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes))
      if (value !== null && value !== undefined) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  }
  const visible = (text) => text.replace(/\r?\n/g, "↵").replace(/\t/g, "→");
  const shown = (text) => visible(text).split(/(⟨[0-9A-F]{2}⟩)/).map((part, i) =>
    i % 2 ? make("i", {class: "byte", title: "a byte, which is a part of a letter"}, part) : part);
  const blank = (text) => !text.replace(/⟨[0-9A-F]{2}⟩/g, "").trim();  // nothing that can be read
  const alone = (text) => text.trim() ? text : visible(text).replace(/\s/g, "␣");
  const token = (text) => make("span", {class: "token"}, ...shown(alone(text)));
  const percent = (share) => {
    const value = 100 * share;
    return (value >= 10 ? value.toFixed(1) : value >= 0.1 ? value.toFixed(2)
            : value ? value.toPrecision(2) : "0") + "%";
  };
  const many = (count) => count.toLocaleString("en");
  const short = (value) => Math.abs(value) >= 1000 ? many(value)
                                                   : String(+value.toPrecision(3));
  const address = (number, which = sae) => `#${which ? `${which + 1}:` : ""}${number}`;
  const link = (number, which = sae) =>
    make("a", {href: address(number, which), class: "number"}, `#${number}`);
  const about = (which = sae) => data.saes[which];
  const tops = (number, which = sae) =>
    about(which).tops[number].map((word) => about(which).words[word]);

  // -- the list ---------------------------------------------------------------------------------

  const SORTS = {
    position: {label: "position", value: (s, i) => s.count[i] / data.counted, show: percent,
               by: () => 0},
    density: {label: "density", value: (s, i) => s.count[i] / data.counted, show: percent,
              by: (s) => (i, j) => s.count[j] - s.count[i]},
    token: {label: "top token", value: (s, i) => s.count[i] / data.counted, show: percent,
            by: (s) => {
              const words = s.words.map((word) => blank(word) ? `\ufffe${word}` : word.trim().toLowerCase());
              const key = s.tops.map((all) => all.length ? words[all[0]] : "\uffff");
              return (i, j) => key[i] < key[j] ? -1 : key[i] > key[j] ? 1 : 0;
            }},
    strength: {label: "strongest", value: (s, i) => s.largest[i], show: short,
               by: (s) => (i, j) => s.largest[j] - s.largest[i]},
    near: {label: "nearness", value: (s, i) => s.near[i] / 100, show: (v) => v.toFixed(2),
           by: (s) => (i, j) => s.near[j] - s.near[i]},
    twin: {label: "twin", needs: "twin", value: (s, i) => s.twin[i] / 100, show: (v) => v.toFixed(2),
           by: (s) => (i, j) => s.twin[j] - s.twin[i]},
    alone: {label: "no twin", needs: "twin", value: (s, i) => s.twin[i] / 100, show: (v) => v.toFixed(2),
            by: (s) => (i, j) => (s.count[i] ? s.twin[i] : 999) - (s.count[j] ? s.twin[j] : 999)},
    started: {label: "restarted", needs: "started", value: (s, i) => s.started?.[i] || 0,
              show: (step) => step ? `step ${step}` : "", by: (s) => s.started && ((i, j) => s.started[j] - s.started[i])},
    merges: {label: "merged", needs: "merges", value: (s, i) => s.merges?.[i] || 0,
             show: (times) => times ? `${times} ×` : "", by: (s) => s.merges && ((i, j) => s.merges[j] - s.merges[i])},
  };

  const NOT_AT_ALL = 3;

  function nearness(s, query) {  // of each feature to what is searched, the nearest first
    const digits = /^#?(\d+)$/.exec(query)?.[1];
    const words = s.words.map((word) => {
      const text = visible(word).toLowerCase();
      return text === query ? 0 : text.trim() === query ? 1 : !digits && text.includes(query) ? 2 : NOT_AT_ALL;
    });
    return s.tops.map((top, i) => digits && i === +digits ? -1
      : Math.min(digits && String(i).startsWith(digits) ? 1 : NOT_AT_ALL, ...top.map((w) => words[w])));
  }

  function arrange() {
    const s = about(), query = $("search").value.toLowerCase();  // a token may begin with a space
    const rank = query ? nearness(s, query) : null, by = SORTS[$("sort").value].by(s) || (() => 0);
    order = s.count.map((_, i) => i).filter((i) => !rank || rank[i] < NOT_AT_ALL);
    order.sort((i, j) => (rank ? rank[i] - rank[j] : 0) || by(i, j));
    const all = many(s.count.length);
    $("found").replaceChildren(
      order.length === s.count.length ? `${all} features` : `${many(order.length)} of ${all} features`,
      make("a", {href: address("about")}, "about this SAE"));
    $("list").scrollTop = 0;
    draw();
  }

  const height = () => matchMedia("(max-width: 760px)").matches ? 44 : 34;

  function draw() {  // only the rows in view: there may be a hundred thousand
    const s = about(), sort = SORTS[$("sort").value], tall = height(), list = $("list");
    $("height").style.height = `${order.length * tall}px`;
    const first = Math.max(0, Math.floor(list.scrollTop / tall) - 8);
    const last = Math.min(order.length, first + Math.ceil((list.clientHeight || 900) / tall) + 16);
    $("rows").style.top = `${first * tall}px`;
    $("rows").replaceChildren(...order.slice(first, last).map((i) => {
      const words = s.count[i] ? make("span", {class: "tops"}) : make("span", {class: "never"}, "never fires");
      if (s.count[i]) tops(i).forEach((text, n) => words.append(n ? " " : "", token(text)));
      return make("li", {}, make("a", {href: address(i), "aria-current": i === chosen ? "true" : null},
        make("span", {class: "id"}, `#${i}`), words,
        make("span", {class: "value"}, s.count[i] ? sort.show(sort.value(s, i)) : "")));
    }));
  }

  function reveal() {
    const place = order.indexOf(chosen), list = $("list"), tall = height();
    if (place < 0) return;
    if (place * tall < list.scrollTop || (place + 1) * tall > list.scrollTop + list.clientHeight)
      list.scrollTop = Math.max(0, place * tall - list.clientHeight / 3);
  }

  // -- a feature --------------------------------------------------------------------------------

  function shard(which, number) {
    const key = `${which}-${String(number).padStart(4, "0")}`;
    if (!loaded.has(key)) {
      loaded.set(key, new Promise((resolve, reject) => {
        const script = make("script", {src: `data/${key}.js`});
        script.addEventListener("error", () => {
          loaded.delete(key);
          reject(new Error(`data/${key}.js is not there, or cannot be read`));
        });
        script.done = resolve;
        script.id = `shard-${key}`;
        document.head.append(script);
      }));
    }
    return loaded.get(key);
  }

  async function feature(number, which = sae) {
    const found = await shard(which, Math.floor(number / data.shard));
    return {words: found.words, ...found.features[number % data.shard]};
  }

  function text([peak, tokens, fires], words, largest) {
    const values = new Map();
    for (let i = 0; i < fires.length; i += 2) values.set(fires[i], fires[i + 1]);
    const line = make("span", {class: "words"});
    tokens.forEach((word, i) => {
      const value = values.get(i);
      const alpha = value ? Math.min(1, 0.1 + 0.75 * value / largest).toFixed(3) : 0;
      line.append(make("span", {
        class: i === peak ? "peak" : null,
        style: value ? `background: rgb(var(--heat) / ${alpha})` : null,
        title: value ? `${JSON.stringify(words[word])} ${short(value)}` : null,
      }, ...shown(words[word])));
    });
    return make("p", {class: "text"}, make("span", {class: "value"}, short(values.get(peak))), line);
  }

  function histogram(bars, width) {
    const tallest = Math.max(...bars, 1), bar = 240 / bars.length;
    return make("div", {},
      make("svg", {viewBox: "0 0 240 74", preserveAspectRatio: "none", height: 90, role: "img",
                   "aria-label": "how often each strength of activation occurs"},
        ...bars.map((count, i) => make("rect", {class: "bar", x: i * bar, width: bar * 0.86,
          y: 73 - 72 * count / tallest, height: count ? Math.max(0.7, 72 * count / tallest) : 0},
          make("title", {}, `${short(i * width)} to ${short((i + 1) * width)}: ${count}`))),
        make("line", {class: "axis", x1: 0, x2: 240, y1: 73.5, y2: 73.5})),
      make("div", {class: "ends"}, make("span", {}, "0"), make("span", {}, short(bars.length * width))));
  }

  function words(title, pairs, all, down) {
    const most = Math.max(...pairs.map(([, value]) => Math.abs(value)), 1e-9);
    return make("section", {}, make("h2", {}, title), make("table", {}, ...pairs.map(([word, value]) =>
      make("tr", {}, make("td", {}, token(all[word]), make("div", {
        class: down ? "meter down" : "meter", style: `width: ${(90 * Math.abs(value) / most).toFixed(0)}%`})),
      make("td", {}, value.toFixed(2))))));
  }

  function others(title, rows) {
    const head = make("h2", {}, title);
    if (!rows.length) return make("section", {}, head, make("p", {class: "soft"}, "none"));
    return make("section", {}, head, make("table", {class: "others"}, ...rows.map(([number, value, hint]) =>
      make("tr", {}, make("td", {class: "id"}, link(number)),
        make("td", {}, ...tops(number).slice(0, 1).map(token)),
        make("td", {title: hint}, value)))));
  }

  const twinhood = () => "the feature of the other SAE that fires most alike on this text, if the cosine of "
    + `their activations is at least ${data.alike}`;

  async function twin([number, acts, rows, byRows, byRowsCosine]) {
    const other = 1 - sae, box = make("section", {class: "twin"}), isOne = acts >= data.alike;
    if (number < 0) return make("p", {class: "soft"}, `No twin in ${about(other).name}: nothing there fires where it does.`);
    box.append(make("div", {class: "head"}, make("strong", {}, isOne ? "Twin" : "No twin"),
      make("span", {class: "soft"}, isOne ? `in ${about(other).name}:` : `in ${about(other).name}; nearest is`),
      link(number, other), ...tops(number, other).slice(0, 2).map(token),
      make("small", {}, `activation cosine ${acts.toFixed(2)}, decoder cosine ${rows.toFixed(2)}`)),
      make("p", {class: "soft"}, make("small", {}, `A twin is ${twinhood()}.`)));
    if (byRows !== number)
      box.append(make("p", {class: "soft"}, "nearest decoder row: ", link(byRows, other),
        ` ${byRowsCosine.toFixed(2)}`));
    const found = await feature(number, other);
    if (found.twin[0] !== chosen)
      box.append(make("p", {class: "soft"}, link(number, other), `'s own nearest in ${about().name} is `,
        link(found.twin[0])));
    const largest = about(other).largest[number] || 1;
    box.append(...found.top.slice(0, 3).map((each) => text(each, found.words, largest)));
    return box;
  }

  const BANDS = ["the strongest quarter", "the second quarter", "the third quarter", "the weakest quarter"];

  function examples(found, largest) {
    const column = make("div");
    if (found.top.length)
      column.append(make("h2", {}, "Strongest activations ", make("small", {}, "one of each prompt")),
        ...found.top.map((each) => text(each, found.words, largest)));
    found.sample.forEach((some, i) => {
      if (some.length)
        column.append(make("h2", {}, `Sample of ${BANDS[i]} `, make("small", {}, "of its activations")),
          ...some.map((each) => text(each, found.words, largest)));
    });
    return column;
  }

  function besides(found, s) {
    const column = make("div");
    if (found.bars.length) column.append(make("h2", {}, "Activations"), histogram(found.bars, found.bar));
    if (found.up)
      column.append(
        make("div", {class: "pair"}, words("Promotes", found.up, found.words, false),
          words("Suppresses", found.down, found.words, true)),
        make("p", {class: "soft"}, make("small", {}, `logits along ${s.readout}`)));
    column.append(make("div", {class: "pair"},
      others("Nearest rows", found.near.map(([i, cosine]) => [i, cosine.toFixed(2), "cosine of decoder rows"])),
      others("Fires with", found.with.map(([i, part, n]) => [i, percent(part), `both at ${n} tokens`]))));
    return column;
  }

  function past(number, was) {  // numbers are those of the saved SAE, positions those of then
    if (!was) return [];
    const said = make("p", {class: "soft past"}), at = was.place === number ? "" : ` at position ${was.place}`;
    if (was.started) {
      said.append(`Started again at step ${was.started}${at}`);
      if (was.into !== null && was.into_at === was.started) said.append(", when it was merged into ", link(was.into));
      else if (was.into !== null)
        said.append(`, after what had been there was merged at step ${was.into_at} into `, link(was.into));
      said.append(". ");
    } else if (at) said.append(`Began${at}. `);
    if (was.times)
      said.append(`Merged at step ${was.took_at} with `, link(was.took),
        about().started[was.took] === was.took_at ? ", which started again then" : ", in whose place another has started since",
        was.times > 1 ? `; ${was.times} were merged into it in all.` : ".");
    return [said];
  }

  async function showFeature(number) {
    const which = sae, s = about();
    document.title = `#${number} ${tops(number).slice(0, 1).map((t) => visible(alone(t)).trim())} · ${s.name}`;
    let found;
    try {
      found = await feature(number);
      found.twinBox = found.twin ? await twin(found.twin) : null;
    } catch (error) {
      $("shown").replaceChildren(make("h1", {}, `Feature ${number}`), make("p", {}, error.message));
      return;
    }
    if (chosen !== number || sae !== which) return;  // another one has been chosen meanwhile
    const largest = s.largest[number] || 1, share = s.count[number] / data.counted;
    const head = make("div", {class: "head"}, make("h1", {}, `Feature ${number}`), ...tops(number).map(token));
    const lead = s.count[number]
      ? `fires on ${percent(share)} of tokens (${many(s.count[number])}), at most ${short(largest)}`
      : `never fires on these ${many(data.counted)} tokens`;
    $("shown").replaceChildren(head, make("p", {class: "soft"}, lead), ...past(number, found.past), found.twinBox || "",
      make("div", {class: "columns"}, examples(found, largest), besides(found, s)));
    $("shown").scrollTop = 0;
  }

  // -- the SAE as a whole -----------------------------------------------------------------------

  function showAbout() {
    const s = about(), all = s.count.length, alive = s.count.filter(Boolean).length;
    document.title = `Features of ${s.name}`;
    const facts = [...s.facts, ["text", `${data.text}: ${many(data.counted)} tokens, special ones left out, in prompts of ${data.context}`],
      ["alive", `${many(alive)} of ${many(all)} features fire`],
      ["silent", `${many(all - alive)} of ${many(all)} fire at none of these ${many(data.counted)} tokens`],
      ...s.silent];
    if (s.twin) facts.push(["twins", `${percent(s.twins)} of those that fire have a twin in ${about(1 - sae).name}`
      + `${s.twins ? ` (median activation cosine ${s.twins_median.toFixed(2)})` : ""}: ${twinhood()}`]);
    facts.push(["logits", s.readout || "not shown: this hook is not in the residual stream"]);
    const list = make("dl", {class: "facts"});
    for (const [label, value] of facts) list.append(make("dt", {}, label), make("dd", {}, value));
    const said = [...s.history, ...(s.silent.length ? [data.why_silent] : []), ...data.notes, ...s.notes];
    $("shown").replaceChildren(make("h1", {}, s.name), list,
      ...said.map((sentence) => make("p", {class: "said"}, sentence)),
      ...(s.order ? picture(s) : densities(s)));
  }

  function densities(s) {
    const logs = s.count.filter(Boolean).map((count) => Math.log10(count / data.counted));
    if (!logs.length) return [];
    const low = Math.floor(logs.reduce((a, b) => Math.min(a, b)));
    const high = Math.min(0, Math.ceil(logs.reduce((a, b) => Math.max(a, b))));
    const span = Math.max(1, high - low), bars = new Array(40).fill(0);
    for (const log of logs) bars[Math.min(39, Math.floor(40 * (log - low) / span))]++;
    const drawn = histogram(bars, 1);
    drawn.lastChild.replaceChildren(make("span", {}, percent(10 ** low)), make("span", {}, percent(10 ** (low + span))));
    return [make("h2", {}, "Density ", make("small", {}, "features by how often they fire, on a log scale")), drawn];
  }

  function picture(s) {
    const n = s.count.length, canvas = make("canvas", {"aria-label": "density by position"});
    const under = make("p", {id: "under", class: "soft"}, "Point at the picture to walk along the order.");
    const strength = s.order.correlation;
    const title = make("h2", {}, "The order of the features ",
      make("small", {}, strength === null ? "" : `rank correlation of position and density ${strength.toFixed(2)}`));
    const at = (event) => Math.max(0, Math.min(n - 1, Math.floor(n * event.offsetX / canvas.clientWidth)));
    canvas.addEventListener("pointermove", (event) => {
      const i = at(event);
      under.replaceChildren(link(i), " ", ...tops(i).flatMap((each) => [token(each), " "]),
        s.count[i] ? percent(s.count[i] / data.counted) : "never fires");
    });
    canvas.addEventListener("click", (event) => { location.hash = address(at(event)); });
    const paint = () => paintOrder(canvas, s);
    requestAnimationFrame(paint);
    picture.paint = paint;
    return [title, canvas, make("div", {class: "ends"}, make("span", {}, "position 0"), make("span", {}, String(n - 1))),
      under, make("p", {class: "soft"}, make("small", {}, "Dots: each feature's density, on a log scale. Band: the "
        + "middle two thirds of the features near a position, and their median. Below: the mean cosine of "
        + `neighbours' decoder rows; it is ${s.order.by_chance.toFixed(3)} for random pairs (dashed).`))];
  }

  function paintOrder(canvas, s) {
    if (!canvas.isConnected) return;
    const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
    const width = canvas.clientWidth, tall = 330, ratio = window.devicePixelRatio || 1, n = s.count.length;
    canvas.width = width * ratio; canvas.height = tall * ratio; canvas.style.height = `${tall}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "11px system-ui, sans-serif";
    const floor = 0.5 / data.counted, log = (share) => Math.log10(Math.max(share, floor));
    const shares = s.count.map((count) => count / data.counted);
    let high = -Infinity, low = Infinity;
    for (const share of shares) { high = Math.max(high, log(share)); low = Math.min(low, log(share)); }
    high = Math.ceil(high); low = Math.min(high - 1, Math.floor(low));
    const exact = (power) => power < -1 ? `${(10 ** (power + 2)).toFixed(-power - 2)}%` : `${10 ** (power + 2)}%`;
    const x = (i) => (i + 0.5) / n * width;
    const y = (share) => 16 + 214 * (high - log(share)) / (high - low);
    pen.strokeStyle = colour("--line"); pen.fillStyle = colour("--soft");
    for (let power = high; power > low; power--) {
      pen.beginPath(); pen.moveTo(0, y(10 ** power)); pen.lineTo(width, y(10 ** power)); pen.stroke();
      pen.fillText(exact(power), 2, y(10 ** power) - 3);
    }
    const middle = s.order.edges.slice(0, -1).map((edge, k) => x((edge + s.order.edges[k + 1] - 1) / 2));
    pen.fillStyle = `rgb(${colour("--heat")} / 0.14)`;
    pen.beginPath();
    middle.forEach((at, k) => pen.lineTo(at, y(s.order.density[k][2])));
    [...middle].reverse().forEach((at, k) => pen.lineTo(at, y(s.order.density[middle.length - 1 - k][0])));
    pen.fill();
    pen.fillStyle = `rgb(${colour("--heat")} / ${n > 5000 ? 0.25 : 0.6})`;
    shares.forEach((share, i) => pen.fillRect(x(i) - 1, y(share) - 1, 2, 2));
    pen.strokeStyle = colour("--ink"); pen.lineWidth = 1.5; pen.beginPath();
    middle.forEach((at, k) => pen.lineTo(at, y(s.order.density[k][1])));
    pen.stroke();
    const most = Math.max(0.05, ...s.order.related.map(Math.abs), Math.abs(s.order.by_chance));
    const up = (cosine) => 282 - 38 * cosine / most;
    pen.strokeStyle = colour("--cool"); pen.beginPath();
    middle.forEach((at, k) => pen.lineTo(at, up(s.order.related[k])));
    pen.stroke();
    pen.setLineDash([4, 4]); pen.strokeStyle = colour("--soft"); pen.lineWidth = 1; pen.beginPath();
    pen.moveTo(0, up(s.order.by_chance)); pen.lineTo(width, up(s.order.by_chance)); pen.stroke();
    pen.setLineDash([]); pen.fillStyle = colour("--soft");
    pen.fillText(`neighbours' cosine, up to ${most.toFixed(2)}`, 2, 326);
  }

  // -- where one is -----------------------------------------------------------------------------

  function go() {
    const place = /^#(?:(\d+):)?(\d+|about)?$/.exec(location.hash) || [];
    const which = place[1] ? Math.min(data.saes.length, Math.max(1, +place[1])) - 1 : 0;
    const moved = which !== sae;
    sae = which;
    const isAbout = place[2] === "about", number = place[2] && !isAbout ? +place[2] : null;
    const known = number !== null && number < about().count.length;
    chosen = known ? number : null;
    document.body.classList.toggle("feature", number !== null);
    document.body.classList.toggle("about", isAbout);
    if (moved) { header(); arrange(); }
    if (known) { reveal(); draw(); showFeature(number); }
    else if (number !== null) {
      draw();
      $("shown").replaceChildren(make("h1", {}, `There is no feature ${number}`),
        make("p", {}, `${about().name} has the features 0 to ${about().count.length - 1}.`));
    } else { draw(); showAbout(); }
  }

  function step(by) {
    const place = order.indexOf(chosen);
    const next = order[place < 0 ? 0 : Math.max(0, Math.min(order.length - 1, place + by))];
    if (next !== undefined) location.hash = address(next);
  }

  function header() {
    const several = data.saes.length > 1;
    $("home").textContent = several ? "Features" : `Features of ${about().name}`;
    $("home").classList.toggle("short", several);
    $("home").href = sae ? `#${sae + 1}:` : "#";
    $("switch").replaceChildren(...(several ? data.saes.map((s, i) => make("a",
      {href: i ? `#${i + 1}:` : "#", "aria-current": i === sae ? "true" : null}, s.name)) : []));
  }

  function start(index) {
    data = index;
    for (const [name, sort] of Object.entries(SORTS))
      if (!sort.needs || data.saes.some((s) => s[sort.needs]))
        $("sort").append(make("option", {value: name}, sort.label));
    $("search").addEventListener("input", arrange);
    $("sort").addEventListener("change", arrange);
    $("list").addEventListener("scroll", draw, {passive: true});
    $("previous").addEventListener("click", () => step(-1));
    $("next").addEventListener("click", () => step(1));
    window.addEventListener("hashchange", go);
    window.addEventListener("resize", () => { draw(); if (picture.paint) picture.paint(); });
    document.addEventListener("keydown", (event) => {
      if (["INPUT", "SELECT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "ArrowRight" || event.key === "j") step(1);
      else if (event.key === "ArrowLeft" || event.key === "k") step(-1);
      else if (event.key === "/") $("search").focus();
      else return;
      event.preventDefault();
    });
    header();
    arrange();
    go();
  }

  return {
    index: start,
    shard: (which, number, contents) =>
      $(`shard-${which}-${String(number).padStart(4, "0")}`).done(contents),
  };
})();
