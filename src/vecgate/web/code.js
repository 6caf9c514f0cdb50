// A card of code in several tongues, with a button that copies it.

import { h } from "./dom.js";

const KEEP = "vecgate-tongue";

let cards = 0;

// variants: [[name, how it is used, code]].
export function codeCard(title, variants) {
  const id = `code-${(cards += 1)}`;
  const kept = sessionStorage.getItem(KEEP);
  const code = h("code");
  const how = h("p", { class: "hint" });
  const copy = h("button", { type: "button", class: "copy", text: "Copy", onclick: copied });
  const tabs = variants.map(([name], at) =>
    h("button", { type: "button", role: "tab", id: `${id}-${at}`, "aria-controls": id, text: name, onclick: () => choose(at) }),
  );
  const list = h("div", { class: "tabs", role: "tablist", "aria-label": title, onkeydown: walk }, tabs);
  let chosen = 0;

  function choose(at) {
    chosen = at;
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", i === at);
      tab.tabIndex = i === at ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", `${id}-${at}`);
    how.textContent = variants[at][1];
    code.textContent = variants[at][2];
    copy.textContent = "Copy";
    sessionStorage.setItem(KEEP, variants[at][0]);
  }

  function walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    choose((chosen + step + variants.length) % variants.length);
    tabs[chosen].focus();
  }

  async function copied() {
    copy.textContent = (await toClipboard(code)) ? "Copied" : "Selected: press Ctrl C";
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  }

  const pre = h("pre", { tabindex: 0, role: "region", "aria-label": "Code" }, code);
  const panel = h("div", { id, role: "tabpanel", class: "code" }, copy, pre);
  choose(Math.max(0, variants.findIndex(([name]) => name === kept)));
  return h("section", { class: "card" }, h("h2", { text: title }), list, how, panel);
}

// Whether it worked: over http browsers allow it on this machine only, elsewhere the text is at least selected.
async function toClipboard(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return document.execCommand?.("copy") ?? false;
  }
}
