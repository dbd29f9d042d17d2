// Arrow keys, the class list and the threshold; without this file the page works by its forms.
"use strict";
(() => {
  const form = document.getElementById("choose");
  const slider = document.getElementById("threshold");
  const choices = ["trial", "class"].map((id) => document.getElementById(id)).filter(Boolean);

  // Left and right turn the page, also from a list: there they would change the class unseen.
  document.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    if (!way || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.matches("input, textarea")) return;
    event.preventDefault();
    const link = document.querySelector(`a[rel="${way}"]`);
    if (link) link.click();
  });

  // A choice by mouse is shown at once; by keyboard at Enter, since every arrow key is a change.
  for (const list of choices) {
    let byKey = false;
    list.addEventListener("keydown", (event) => {
      if (event.key === "Enter") form.requestSubmit();
      else if (event.key !== "Tab") byKey = true;
    });
    list.addEventListener("pointerdown", () => (byKey = false));
    list.addEventListener("change", () => byKey || form.requestSubmit());
  }

  // What the slider says is asked of the server, the latest answer only; marks follow at once.
  let asked = null;
  function show() {
    document.getElementById("cut").textContent = slider.value;
    for (const tile of document.querySelectorAll(".tile")) {
      const above = Number(tile.dataset.score) > Number(slider.value);
      const [kind, words] = (above ? tile.dataset.above : tile.dataset.below).split("|");
      tile.className = `tile ${kind}`;
      tile.querySelector(".mark").textContent = words;
    }
    if (asked) asked.abort();
    asked = new AbortController();
    const query = new URLSearchParams(new FormData(form));
    fetch(`/point?${query}`, { signal: asked.signal })
      .then((answer) => answer.json())
      .then((found) => {
        const line = document.getElementById("point");
        line.textContent = `Score above ${slider.value}: ${found.text}`;
      })
      .catch(() => {});
  }

  // The address, the links and the page form keep the threshold that was chosen.
  function keep() {
    const address = new URL(location.href);
    const named = document.querySelector("nav.pages form [name=class]");
    address.searchParams.set("class", named.value);
    address.searchParams.set("threshold", slider.value);
    history.replaceState(null, "", address);
    for (const link of document.querySelectorAll("nav.pages a, main > p a")) {
      const target = new URL(link.href);
      target.searchParams.set("threshold", slider.value);
      link.href = target;
    }
    const pages = document.querySelector("nav.pages form");
    const field = pages.elements.threshold || document.createElement("input");
    Object.assign(field, { type: "hidden", name: "threshold", value: slider.value });
    pages.append(field);
  }

  if (slider) {
    slider.addEventListener("input", show);
    slider.addEventListener("change", keep);
  }
})();
